"""Data that custom nodes store for each other is the same with and without purges."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.comfyui.comfyui_process import NO_API_NODES, PATIENCE, Result, Server, comfyui
from tests.comfyui.graphs import PURGES, Graph, insert, node

Steps = list[Graph]
MIB = 1 << 20


def _noise(seed: int, megapixels: int = 2) -> dict[str, Any]:
    return node("Noise", seed=seed, megapixels=megapixels)


def _through(kind: str, name: str, seed: int, **inputs: Any) -> Graph:
    """A graph with a node that stores an image, and its output."""
    return {
        "noise": _noise(seed),
        "it": node(kind, name=name, image=("noise", 0), **inputs),
        "bright": node("Brighten", image=("it", 0), by=1.0),
        "end": node("Digest", image=("bright", 0)),
    }


def _taken(kind: str, name: str) -> Graph:
    return {"it": node(kind, name=name), "end": node("Digest", image=("it", 0))}


def frames(name: str, seed: int) -> Steps:
    """Three prompts that store eight frames each, and a fourth that returns them all."""
    collecting: Steps = []
    for part in range(3):
        graph: Graph = {}
        last: dict[str, Any] = {}
        for at in range(8):
            graph[f"noise{at}"] = _noise(seed + 8 * part + at, megapixels=1)
            graph[f"it{at}"] = node("CollectFrames", name=name, image=(f"noise{at}", 0), **last)
            last = {"after": (f"it{at}", 0)}
        graph["bright"] = node("Brighten", image=("it7", 0), by=1.0)
        graph["end"] = node("Digest", image=("bright", 0))
        collecting.append(graph)
    return [*collecting, _taken("TakeFrames", name)]


def memory(name: str, seed: int) -> Steps:
    return [_through("Remember", name, seed), _taken("Recall", name), _taken("Recall", name)]


def backend_with_a_tag(name: str, seed: int) -> Steps:
    return [
        _through("CacheBackend", name, seed, tag="sdxl"),
        _through("CacheBackend", name, seed + 1, tag="sdxl"),
        _taken("FromBackend", name),
    ]


def running_sum(name: str, seed: int) -> Steps:
    return [_through("RunningSum", name, seed + at) for at in range(3)]


def two_under_one_key(name: str, seed: int) -> Steps:
    return [_through("LoadTwo", name, seed + at) for at in range(2)]


def in_about_something_else(name: str, seed: int) -> Steps:
    return [_through("Buffer", name, seed + at) for at in range(2)]


def flag_beside_a_model(name: str, seed: int) -> Steps:
    return [_through("RunPipeline", name, seed + at) for at in range(2)]


def on_the_instance(name: str, seed: int) -> Steps:
    graphs = [_through("OnItself", name, seed + at) for at in range(3)]
    for graph in graphs:  # ComfyUI caches an instance by the id of its node
        graph[f"it {name}"] = graph.pop("it")
        graph["bright"]["inputs"]["image"] = [f"it {name}", 0]
    return graphs


def behind_a_weak_reference(name: str, seed: int) -> Steps:
    def graph() -> Graph:
        return {
            "lend": node("Lend", name=name, seed=seed),
            "it": node("Borrow", name=name, after=("lend", 0)),
            "end": node("Digest", image=("it", 0)),
        }

    return [graph(), graph()]


SCENARIOS: tuple[Callable[[str, int], Steps], ...] = (
    *(frames, memory, backend_with_a_tag, running_sum, two_under_one_key, in_about_something_else),
    *(flag_beside_a_model, on_the_instance, behind_a_weak_reference),
)


def _shown(result: Result) -> tuple[str, Any]:
    """The results of a prompt: its image, and what its stateful node shows."""
    return result.digest(), {name: of for name, of in result.outputs.items() if name == "it"}


def _sweep(server: Server, **fields: Any) -> None:
    requests.post(f"{server.url}/fastpurge/sweep", json=fields, timeout=PATIENCE).raise_for_status()


BETWEEN: dict[str, Callable[[Server], Any]] = {
    "RAM": lambda server: server.run({"purge": node("CleanMemory_PurgeRAM")}),
    "ALL": lambda server: server.run({"purge": node("CleanMemory_PurgeAll")}),
    "HTTP": lambda server: _sweep(server, min_bytes=MIB),
    "HTTP, all": lambda server: _sweep(server, purge="all"),
}
WITHIN = {name: PURGES[name] for name in ("RAM", "ALL", "Pass RAM", "Pass Multi RAM", "RAM Multi")}


@pytest.fixture(scope="module")
def expected(server: Server) -> dict[str, list[Any]]:
    """The results of each scenario without a purge."""
    return {
        scenario.__name__: [_shown(server.run(graph)) for graph in scenario(f"plain {at}", 10_000 * (at + 1))]
        for at, scenario in enumerate(SCENARIOS)
    }


@pytest.mark.parametrize("purge", BETWEEN.values(), ids=BETWEEN)
def test_results_are_the_same_with_purges_between_prompts(
    server: Server, expected: dict[str, list[Any]], request: pytest.FixtureRequest, purge: Any
) -> None:
    for at, scenario in enumerate(SCENARIOS):
        if purge in (BETWEEN["RAM"], BETWEEN["ALL"]) and scenario in (
            on_the_instance,
            behind_a_weak_reference,
        ):
            continue  # ComfyUI itself evicts instances and outputs when a prompt has other nodes
        found = []
        for graph in scenario(request.node.name, 10_000 * (at + 1)):
            found.append(_shown(server.run(graph)))
            purge(server)
        assert found == expected[scenario.__name__], scenario.__name__


@pytest.mark.parametrize("purge", WITHIN.values(), ids=WITHIN)
def test_results_are_the_same_with_purges_in_prompts(
    server: Server, expected: dict[str, list[Any]], request: pytest.FixtureRequest, purge: Any
) -> None:
    for at, scenario in enumerate(SCENARIOS):
        found = []
        for graph in scenario(request.node.name, 10_000 * (at + 1)):
            wire = tuple(graph["end"]["inputs"]["image"])
            insert(graph, purge, wire, "end", "image")
            found.append(_shown(server.run(graph)))
        assert found == expected[scenario.__name__], scenario.__name__


def test_a_loop_with_a_purge_in_each_turn_has_all_of_its_frames(server: Server, seed: int) -> None:
    graph: Graph = {}
    last: dict[str, Any] = {}
    for at in range(24):
        graph[f"noise{at}"] = _noise(seed + at, megapixels=1)
        graph[f"it{at}"] = node("CollectFrames", name=f"loop {seed}", image=(f"noise{at}", 0), **last)
        graph[f"purge{at}"] = node("CleanMemory_PurgePass", data=(f"it{at}", 0), mode="RAM")
        last = {"after": (f"purge{at}", 0)}
    graph["take"] = node("TakeFrames", name=f"loop {seed}", **last)
    graph["end"] = node("Digest", image=("take", 0))
    result = server.run(graph)
    assert result.status == "success", result.error
    assert result.outputs["take"]["frames"] == [24]


def test_kept_objects_are_listed_with_owner_and_size(server: Server, seed: int) -> None:
    for kind in ("Remember", "RunPipeline"):
        server.run(_through(kind, f"told {seed}", seed))
    for key in ("CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"):
        purged = server.run({"purge": node(key)})
        assert "kept by custom nodes: " in purged.shown_text()
        (data,) = purged.outputs["purge"]["fastpurge"]
        sizes = {one["where"]: one["nbytes"] for one in data["left"]}
        assert sizes["fastpurge_keepers.stateful.MEMORY"] >= 24 * MIB
        assert sizes["fastpurge_keepers.stateful.PIPELINES"] >= 20 * MIB
        row = next(one for one in data["stayed"] if one["what"] == "fastpurge_keepers.stateful.MEMORY")
        assert row["why"] == "its node pack keeps it"
        assert row["nbytes"] == sizes["fastpurge_keepers.stateful.MEMORY"]


@pytest.mark.parametrize("key", ["CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"])
def test_outputs_are_evicted_although_a_node_keeps_an_exception(server: Server, seed: int, key: str) -> None:
    graph = {
        "noise": _noise(seed),
        "bright": node("Brighten", image=("noise", 0), by=1.0),
        "small": _noise(seed + 1, megapixels=1),
        "it": node("KeepError", name=f"an error {seed}", image=("small", 0), after=("bright", 0)),
        "purge": node(key, anything=("it", 0)),
    }
    (data,) = server.run(graph).outputs["purge"]["fastpurge"]
    assert "FPT_Noise (node noise)" in data["let_go"]


@pytest.fixture
def watched(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose memory usage is always above the threshold."""
    monkeypatch.setenv("FASTPURGE_WATCH", str(800 * MIB))
    with comfyui(home, NO_API_NODES) as server:
        yield server


def test_results_are_the_same_with_automatic_purges(watched: Server, expected: Any) -> None:
    steps = {
        scenario.__name__: scenario(scenario.__name__, 10_000 * (at + 1))
        for at, scenario in enumerate(SCENARIOS)
        if scenario not in (on_the_instance, behind_a_weak_reference)  # as above
    }
    found: dict[str, list[Any]] = {name: [] for name in steps}
    for turn in range(2):
        for name, graphs in steps.items():
            found[name] += [_shown(watched.run(graph)) for graph in (graphs[:1], graphs[1:])[turn]]
        if turn == 0:
            deadline = time.monotonic() + PATIENCE
            while not re.search(r"FASTPURGE_WATCH=\d+: .* freed .*kept by custom nodes", watched.log()):
                assert time.monotonic() < deadline, watched.log()
                time.sleep(0.2)
    assert found == {name: expected[name] for name in steps}
