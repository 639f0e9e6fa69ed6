"""Every purge node on a real server: the results of the running prompt and of the next are correct."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.comfyui.comfyui_process import Server
from tests.comfyui.graphs import PURGES, Graph, chain, insert, node


@pytest.mark.parametrize("purge", PURGES.values(), ids=PURGES)
def test_this_prompt_and_the_next_have_the_same_results_as_without_a_purge(
    server: Server, seed: int, purge: Any
) -> None:
    first = server.run(chain(purge, seed))
    again = server.run(chain(purge, seed))
    after = server.run(chain(None, seed))
    server.post("/free", {"free_memory": True})
    server.run(chain(None, seed + 10_000))  # which evicts the first prompt from the cache
    without = server.run(chain(None, seed))
    assert "noise" in without.ran
    assert first.digest() == again.digest() == after.digest() == without.digest()
    assert first.shown_text().startswith("freed ")
    assert "resident" in first.shown_text()


@pytest.mark.parametrize("purge", [PURGES[name] for name in PURGES if "Pass" not in name])
def test_a_terminal_purge_runs_on_every_queue(server: Server, seed: int, purge: Any) -> None:
    for _ in range(3):
        assert "purge" in server.run(chain(purge, seed)).ran


@pytest.mark.parametrize("purge", [PURGES[name] for name in PURGES if "Pass" in name])
def test_a_pass_node_does_not_rerun_downstream_nodes(server: Server, seed: int, purge: Any) -> None:
    server.run(chain(purge, seed))
    assert server.run(chain(purge, seed)).ran == []


@pytest.mark.parametrize("name", ["Pass RAM", "Pass VRAM"])
def test_a_list_is_passed_through_whole_and_causes_one_purge(server: Server, seed: int, name: str) -> None:
    graph = {
        "batch": node("Batch", seed=seed, count=3),
        "bright": node("Brighten", image=("batch", 0), by=1.1),
        "end": node("Digest", image=("bright", 0)),
    }
    without = server.run(graph).outputs["end"]["digest"]
    insert(graph, PURGES[name], ("batch", 0), "bright", "image")
    result = server.run(graph)
    assert result.outputs["end"]["digest"] == without
    assert len(without) == 3
    assert result.shown_text().count("freed") == 1


@pytest.mark.parametrize("name", ["RAM", "ALL", "RAM Multi"])
def test_a_wired_node_stays_cached_with_all_of_its_outputs(server: Server, seed: int, name: str) -> None:
    graph = {"pair": node("Pair", seed=seed), "purge": PURGES[name](("pair", 0))}
    assert "pair" in server.run(graph).ran
    graph["other"] = node("Digest", image=("pair", 1))
    later = server.run(graph)
    assert "other" in later.ran
    assert "pair" not in later.ran


@pytest.mark.parametrize("name", ["RAM", "ALL"])
def test_cached_tensors_in_an_array_of_objects_are_kept(server: Server, seed: int, name: str) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=2),
        "box": node("Box", image=("noise", 0)),
        "unbox": node("Unbox", box=("box", 0)),
        "end": node("Digest", image=("unbox", 0)),
    }
    expected = server.run(graph).digest()
    server.run({**graph, "purge": PURGES[name](("unbox", 0))})
    graph["bright"] = node("Brighten", image=("unbox", 0), by=1.0)
    graph["end"]["inputs"]["image"] = ["bright", 0]
    assert server.run(graph).digest() == expected


def test_inputs_may_be_missing_or_none_in_any_position(server: Server, seed: int) -> None:
    graph: Graph = {
        "noise": node("Noise", seed=seed, megapixels=2),
        "none": node("Nothing", image=("noise", 0)),
        "purge": node("CleanMemory_PurgePassMultiInput", data0=("none", 0), data2=("noise", 0), mode="RAM"),
        "empty": node("Nothing", image=("purge", 1)),
        "multi": node("CleanMemory_PurgeRAMProtectedMulti", data0=("none", 0), data3=("purge", 2)),
        "alone": node("CleanMemory_PurgeRAM"),
        "end": node("Digest", image=("purge", 2)),
        "other": node("CleanMemory_PurgeVRAM", anything=("empty", 0)),
    }
    result = server.run(graph)
    expected = server.run({"noise": graph["noise"], "end": node("Digest", image=("noise", 0))})
    assert result.digest() == expected.digest()
    for purge in ("purge", "multi", "alone", "other"):
        assert result.shown_text(purge).startswith("freed ")


def test_sockets_accept_every_type_and_keep_their_names(server: Server) -> None:
    info = server.get("/object_info")
    keys = {
        "CleanMemory_PurgeVRAM": ("🧹Purge VRAM", ["anything"], []),
        "CleanMemory_PurgeRAM": ("🧹Purge RAM (Protected)", ["anything"], []),
        "CleanMemory_PurgeAll": ("🧹Purge ALL", ["anything"], []),
        "CleanMemory_PurgePass": ("🧹Purge & Pass", ["data", "mode"], ["*"]),
        "CleanMemory_PurgeRAMProtectedMulti": ("🧹Purge RAM Multi", ["data0", "data1", "data2", "data3"], []),
        "CleanMemory_PurgePassMultiInput": (
            "🧹Purge & Pass Multi",
            ["data0", "mode", "data1", "data2", "data3"],
            ["*"] * 4,
        ),
    }
    for key, (title, inputs, outputs) in keys.items():
        shown = info[key]
        assert shown["display_name"] == title
        assert shown["category"] == "fastpurge"
        assert shown["output"] == outputs
        assert shown["output_node"] is (outputs == [])
        names = [*shown["input_order"].get("required", []), *shown["input_order"]["optional"]]
        assert [name for name in names if name not in ("protect_pending", "only_above")] == inputs
        assert names[-1] == "only_above"  # a saved workflow has widget values by position


def test_the_result_is_in_the_history_and_in_the_log(server: Server, seed: int) -> None:
    result = server.run(chain(PURGES["RAM"], seed))
    (data,) = result.outputs["purge"]["fastpurge"]
    assert data["label"] == "CleanMemory_PurgeRAM (node purge)"
    assert data["before"]["cpu"] > 0
    assert data["seconds"] < 60
    assert "CleanMemory_PurgeRAM (node purge): freed" in server.log()


@pytest.mark.parametrize("name", PURGES)
def test_below_its_threshold_a_node_passes_its_inputs_through(server: Server, seed: int, name: str) -> None:
    without = server.run(chain(None, seed)).digest()
    graph = chain(PURGES[name], seed)
    graph["purge"]["inputs"]["only_above"] = 99
    result = server.run(graph)
    assert result.digest() == without
    used = r"V?RAM is at \d+%(, VRAM is at \d+%)?"
    assert re.fullmatch(f"{used}: not above 99%, nothing purged", result.shown_text())
    assert result.outputs["purge"]["fastpurge"] == []
    assert result.shown_text() in server.log()
    if "VRAM is at 0%" in result.shown_text():
        return  # below one percent, on a large device
    graph["purge"]["inputs"]["only_above"] = 1
    result = server.run(graph)
    assert result.shown_text().startswith("freed ")
    assert result.digest() == without


@pytest.mark.parametrize("value", [-1, 100, "often"])
def test_an_invalid_threshold_is_refused_before_the_prompt_runs(server: Server, value: object) -> None:
    graph = {"purge": node("CleanMemory_PurgeRAM", only_above=value)}
    answer = server.post("/prompt", {"prompt": graph})
    assert answer.status_code == 400
    assert "only_above" in answer.text
