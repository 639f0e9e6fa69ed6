"""Inputs of nodes still to run are protected without a wire: lazy inputs, lists, sub-graphs, loops."""

from __future__ import annotations

from typing import Any

import pytest

from tests.comfyui.comfyui_process import Server
from tests.comfyui.graphs import PURGES, Graph, chain, insert, node

RAM = {name: PURGES[name] for name in ("RAM", "ALL", "Pass RAM", "RAM Multi", "Pass Multi RAM")}


@pytest.mark.parametrize("purge", RAM.values(), ids=RAM)
@pytest.mark.parametrize("first", [True, False])
def test_a_lazy_input_that_is_read_later(server: Server, seed: int, purge: Any, first: bool) -> None:
    graph = {
        **chain(None, seed),
        "other": node("Noise", seed=seed + 500, megapixels=2),
        "switch": node("Switch", first=first, a=("noise", 0), b=("other", 0)),
        "blend": node("Blend", a=("switch", 0), b=("bright", 0)),
    }
    insert(graph, purge, ("bright", 0), "blend", "b")
    result = server.run(graph)
    del graph["purge"]
    graph["blend"]["inputs"]["b"] = ["bright", 0]
    assert result.digest() == server.run(graph).digest()
    assert ("other" in result.ran) is not first


@pytest.mark.parametrize("purge", RAM.values(), ids=RAM)
def test_a_list_that_is_read_later(server: Server, seed: int, purge: Any) -> None:
    graph = {
        "batch": node("Batch", seed=seed, count=3),
        "noise": node("Noise", seed=seed, megapixels=1),
        "blend": node("Blend", a=("batch", 0), b=("noise", 0)),
        "end": node("Digest", image=("blend", 0)),
    }
    without = server.run(graph).outputs["end"]["digest"]
    server.run(chain(None, seed + 500))  # evicts the first prompt from the cache
    insert(graph, purge, ("noise", 0), "blend", "b")
    assert server.run(graph).outputs["end"]["digest"] == without


@pytest.mark.parametrize("inner", ["CleanMemory_PurgePass", "CleanMemory_PurgePassMultiInput"])
def test_a_sub_graph_with_purges_in_it(server: Server, seed: int, inner: str) -> None:
    def graph(purge: str) -> Graph:
        return {
            "noise": node("Noise", seed=seed, megapixels=2),
            "expand": node("Expand", image=("noise", 0), steps=3, purge=purge),
            "blend": node("Blend", a=("noise", 0), b=("expand", 0)),
            "end": node("Digest", image=("blend", 0)),
        }

    with_purges = server.run(graph(inner))
    assert with_purges.digest() == server.run(graph("no")).digest()
    assert server.run(graph(inner)).digest() == with_purges.digest()


@pytest.mark.parametrize("purge", RAM.values(), ids=RAM)
def test_a_sub_graph_that_is_still_to_run(server: Server, seed: int, purge: Any) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=2),
        "bright": node("Brighten", image=("noise", 0), by=1.1),
        "expand": node("Expand", image=("noise", 0), steps=2, purge="no"),
        "blend": node("Blend", a=("expand", 0), b=("bright", 0)),
        "end": node("Digest", image=("blend", 0)),
    }
    without = server.run(graph).digest()
    server.run(chain(None, seed + 500))
    insert(graph, purge, ("bright", 0), "blend", "b")
    assert server.run(graph).digest() == without


@pytest.mark.parametrize("loop", ["Loop", "V3Loop"])
def test_a_loop_of_copies_of_what_is_upstream(server: Server, seed: int, loop: str) -> None:
    def graph(purge: bool) -> Graph:
        made = {
            "noise": node("Noise", seed=seed, megapixels=2),
            "bright": node("Brighten", image=("noise", 0), by=1.1),
            "again": node("Brighten", image=("bright", 0), by=1.1),
            "loop": node(loop, image=("again", 0), left=3),
            "end": node("Digest", image=("loop", 0)),
        }
        if purge:
            insert(made, PURGES["RAM"], ("again", 0), "loop", "image")
        return made

    with_purge = server.run(graph(True))
    assert with_purge.digest() == server.run(graph(False)).digest()
    assert with_purge.ran.count("noise") == 1


@pytest.mark.parametrize("purge", RAM.values(), ids=RAM)
def test_a_node_that_fails_before_a_purge_or_after(server: Server, seed: int, purge: Any) -> None:
    graph = chain(purge, seed)
    expected = server.run(graph).digest()
    for wire, to, socket in ((("noise", 0), "bright", "image"), (("blend", 0), "end", "image")):
        broken = chain(purge, seed + 300)
        broken["fail"] = node("Fail", image=wire)
        broken[to]["inputs"][socket] = ["fail", 0]
        result = server.run(broken)
        assert result.status == "error"
        assert result.error["exception_message"].startswith("meant to fail")
        assert server.run(graph).digest() == expected


@pytest.mark.parametrize("purge", RAM.values(), ids=RAM)
def test_an_interrupt_during_a_purge(server: Server, seed: int, purge: Any) -> None:
    graph = chain(purge, seed)
    graph["wait"] = node("Wait", image=("blend", 0), seconds=20.0)
    graph["end"]["inputs"]["image"] = ["wait", 0]
    (result,) = server.run_all([graph], interrupt_at="purge")
    assert result.status == "error"
    assert result.error["node_type"] == "FPT_Wait" or "executed" in result.error
    graph["wait"]["inputs"]["seconds"] = 0.0
    assert server.run(graph).digest() == server.run(chain(None, seed)).digest()


def test_prompts_that_are_queued_together(server: Server, seed: int) -> None:
    graphs = [chain(purge, seed + at % 2) for at, purge in enumerate(RAM.values())]
    digests = [result.digest() for result in server.run_all(graphs)]
    expected = [server.run(chain(None, seed + at)).digest() for at in range(2)]
    assert digests == [expected[at % 2] for at in range(len(graphs))]


@pytest.mark.parametrize("key", ["CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"])
def test_an_unprotected_pending_node_fails_and_the_purge_lists_it(
    server: Server, seed: int, key: str
) -> None:
    graph = chain(None, seed)
    graph["purge"] = node(key, anything=("bright", 0), protect_pending=False)
    result = server.run(graph)
    assert result.status == "error"
    assert "was released by fastpurge" in result.error["exception_message"]
    assert f"{key} (node purge)" in result.error["exception_message"]
    assert "not protected, will fail if run: FPT_Blend (node blend)" in result.shown_text()
    # The cache must have no tombstone: the next prompt is correct.
    graph["purge"]["inputs"]["protect_pending"] = True
    assert server.run(graph).digest() == server.run(chain(None, seed)).digest()
