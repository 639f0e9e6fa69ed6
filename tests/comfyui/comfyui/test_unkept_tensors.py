"""Objects that no node input and no cache reaches, but that a node still to run will read, are kept."""

from __future__ import annotations

from typing import Any

import pytest

from tests.comfyui.comfyui_process import Server
from tests.comfyui.graphs import PURGES, Graph, node

RELEASING = {name: PURGES[name] for name in ("RAM", "ALL", "Pass RAM")}


def test_a_model_that_an_expanding_node_returns_besides_its_sub_graph(server: Server, seed: int) -> None:
    def graph(purge: str) -> Graph:
        return {
            "noise": node("Noise", seed=seed, megapixels=2),
            "expand": node("ExpandModel", image=("noise", 0), seed=seed, purge=purge),
            "run": node("RunModel", model=("expand", 0), image=("expand", 1)),
            "end": node("Digest", image=("run", 0)),
        }

    assert server.run(graph("CleanMemory_PurgePass")).digest() == server.run(graph("")).digest()


@pytest.mark.parametrize("purge", RELEASING.values(), ids=RELEASING)
def test_models_that_an_async_node_has_loaded_or_is_loading(server: Server, seed: int, purge: Any) -> None:
    mark = f"purged for {seed}"
    graph = {
        "names": node("Names", until=mark),
        "slow": node("SlowModel", seed=seed, until=("names", 0)),
        "bright": node("Brighten", image=("names", 1), by=1.1),
        "purge": purge(("bright", 0)),
        "mark": node("Mark", image=("bright", 0), name=mark),
        "run": node("RunModel", model=("slow", 0), image=("mark", 0)),
        "end": node("Digest", image=("run", 0)),
    }
    if "Pass" in graph["purge"]["class_type"]:
        graph["mark"]["inputs"]["image"] = ["purge", 0]
    result = server.run(graph)
    assert result.status == "success", result.error
    assert result.ran.index("slow") < result.ran.index("purge") < result.ran.index("mark")
    del graph["purge"]
    graph["mark"]["inputs"]["image"] = ["bright", 0]
    server.run({"stats": node("Stats")})  # evicts the first prompt from the cache
    assert server.run(graph).outputs["end"] == result.outputs["end"]


@pytest.mark.parametrize("purge", RELEASING.values(), ids=RELEASING)
def test_an_image_stored_under_a_name_that_is_an_input(server: Server, seed: int, purge: Any) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=2),
        "put": node("Put", image=("noise", 0), name=f"image {seed}"),
        "other": node("Noise", seed=seed + 1, megapixels=2),
        "purge": purge(("other", 0)),
        "mark": node("Mark", image=("other", 0), name="stored"),
        "fetch": node("Fetch", name=("put", 0), after=("mark", 0)),
        "end": node("Digest", image=("fetch", 0)),
    }
    if "Pass" in graph["purge"]["class_type"]:
        graph["mark"]["inputs"]["image"] = ["purge", 0]
    expected = server.run({"noise": graph["noise"], "end": node("Digest", image=("noise", 0))}).digest()
    assert server.run(graph).digest() == expected


@pytest.mark.parametrize("between", ["", "StringConcatenate", "CleanMemory_PurgePass"])
@pytest.mark.parametrize("key", ["CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"])
def test_an_image_stored_under_a_cached_name(server: Server, seed: int, key: str, between: str) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=2),
        "put": node("Put", image=("noise", 0), name=f"image {seed}"),
        "other": node("Noise", seed=seed + 1, megapixels=2),
        "fetch": node("Fetch", name=("put", 0), after=("other", 0)),
    }
    if between:
        inputs = {"StringConcatenate": {"string_a": ("put", 0), "string_b": "", "delimiter": ""}}
        graph["between"] = node(between, **inputs.get(between, {"data": ("put", 0), "mode": "VRAM"}))
        graph["fetch"]["inputs"]["name"] = ["between", 0]
    end = {"end": node("Digest", image=("fetch", 0))}
    expected = server.run({**graph, **end}).digest()
    server.run({**graph, "purge": node(key, anything=("fetch", 0))})
    graph["other"]["inputs"]["seed"] = seed + 2
    assert server.run({**graph, **end}).digest() == expected


def test_a_global_that_a_node_of_another_pack_will_read(server: Server, seed: int) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=2),
        "keep": node("Keeper", way="in_a_dict", salt=seed),
        "purge": node("CleanMemory_PurgePass", data=("noise", 0), mode="RAM"),
        "read": node("KeeperReader", way="in_a_dict", image=("purge", 0), after=("keep", 0)),
        "end": node("Digest", image=("read", 0)),
    }
    result = server.run(graph)
    assert result.status == "success", result.error


@pytest.mark.parametrize("key", ["CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"])
def test_the_outer_prompt_of_a_nested_one(server: Server, seed: int, key: str) -> None:
    def graph(purge: str) -> Graph:
        return {
            "noise": node("Noise", seed=seed, megapixels=2),
            "load": node("LoadModel", seed=seed),
            "first": node("RunModel", model=("load", 0), image=("noise", 0)),
            "inner": node("Inner", image=("first", 0), purge=purge),
            "run": node("RunModel", model=("load", 0), image=("inner", 0)),
            "blend": node("Blend", a=("run", 0), b=("noise", 0)),
            "end": node("Digest", image=("blend", 0)),
        }

    assert server.run(graph(key)).digest() == server.run(graph("")).digest()
