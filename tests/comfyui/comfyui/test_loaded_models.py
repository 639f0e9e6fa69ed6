"""Models: wired ones are kept, purged ones are loaded again, and ComfyUI's list has no stripped one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.comfyui.comfyui_process import HAS_VRAM, Result, Server
from tests.comfyui.graphs import PURGES, Graph, insert, node


def _graph(seed: int, by: float = 1.0, **more: Any) -> Graph:
    return {
        "load": node("LoadModel", seed=seed),
        "noise": node("Noise", seed=seed, megapixels=1),
        "run": node("RunModel", model=("load", 0), image=("noise", 0)),
        "bright": node("Brighten", image=("run", 0), by=by),
        "end": node("Digest", image=("bright", 0)),
        **more,
    }


def _stats(server: Server) -> dict[str, Any]:
    return _stats_of(server.run({"stats": node("Stats")}))


def _stats_of(result: Result) -> dict[str, Any]:
    stats: dict[str, Any] = result.outputs["stats"]["stats"][0]
    return stats


def _expected(server: Server, seed: int, by: float) -> str:
    """The result without a purge and without a cache."""
    server.run({"stats": node("Stats")})
    return server.run(_graph(seed, by)).digest()


@pytest.mark.parametrize("key", ["CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"])
def test_an_evicted_model_is_loaded_again(server: Server, seed: int, key: str) -> None:
    if HAS_VRAM and key == "CleanMemory_PurgeRAM":
        pytest.skip("the model is in VRAM")
    purged = server.run(_graph(seed, purge=node(key, anything=("bright", 0))))
    assert "dropped from the cache" in purged.shown_text()
    assert "FPT_LoadModel (node load)" in purged.shown_text()
    assert _stats(server)["loaded"] == 0
    later = server.run(_graph(seed, by=1.5))
    assert "load" in later.ran
    assert later.digest() == _expected(server, seed, 1.5)


@pytest.mark.parametrize("name", ["RAM", "ALL", "Pass RAM", "Pass VRAM"])
def test_a_wired_model_is_kept_and_computes_the_same(server: Server, seed: int, name: str) -> None:
    graph = _graph(seed)
    insert(graph, PURGES[name], ("load", 0), "run", "model")
    first = server.run(graph)
    graph["bright"]["inputs"]["by"] = 1.5
    later = server.run(graph)
    assert "load" not in later.ran
    assert later.digest() == _expected(server, seed, 1.5)
    assert first.digest() == _expected(server, seed, 1.0)


def test_vram_unloads_models_that_are_not_wired_into_a_pass_node(server: Server, seed: int) -> None:
    graph = {
        **_graph(seed),
        "other": node("LoadModel", seed=seed + 1),
        "second": node("RunModel", model=("other", 0), image=("run", 0)),
        "purge": node("CleanMemory_PurgePassMultiInput", data0=("second", 0), data1=("load", 0), mode="VRAM"),
        "bright": node("Brighten", image=("purge", 0), by=1.0),
        "stats": node("Stats", after=("purge", 0)),
    }
    result = server.run(graph)
    assert "unloaded Sequential" in result.shown_text()
    assert result.outputs["stats"]["stats"][0]["loaded"] == 1
    server.run({"noise": graph["noise"], "purge": node("CleanMemory_PurgeVRAM", anything=("noise", 0))})
    assert _stats(server)["loaded"] == 0


@pytest.mark.parametrize("key", ["CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"])
@pytest.mark.parametrize(("kind", "place"), [("OwnModel", "OwnModel().model"), ("ModuleModel", "MODELS")])
def test_a_model_of_a_pack_is_kept(server: Server, seed: int, key: str, kind: str, place: str) -> None:
    def graph(by: float) -> Graph:
        return {
            "noise": node("Noise", seed=seed, megapixels=1),
            "keeps": node(kind, image=("noise", 0), seed=1),
            "bright": node("Brighten", image=("keeps", 0), by=by),
            "end": node("Digest", image=("bright", 0)),
        }

    first = server.run(graph(1.0)).digest()
    loads = _stats_of(server.run({**graph(1.0), "stats": node("Stats", after=("bright", 0))}))["runs"]
    purged = server.run({**graph(1.0), "purge": node(key, anything=("bright", 0))})
    assert f"fastpurge_tests.models.{place} (20.3 MiB)" in purged.shown_text()
    assert server.run(graph(2.0)).status == "success"
    again = server.run({**graph(1.0), "stats": node("Stats", after=("bright", 0))})
    assert again.digest() == first
    assert _stats_of(again)["runs"][f"{kind}.load"] == loads[f"{kind}.load"]


@pytest.mark.parametrize("what", ["patcher", "model"])
def test_the_list_of_loaded_models_contains_no_stripped_model(server: Server, seed: int, what: str) -> None:
    graph = _graph(seed)
    graph["leak"] = node("LeakModel", image=("run", 0), seed=seed, what=what)
    graph["bright"]["inputs"]["image"] = ["leak", 0]
    graph["purge"] = node("CleanMemory_PurgeAll", anything=("bright", 0))
    del graph["end"]  # ComfyUI may run it after the purge
    assert "stripped" in server.run(graph).shown_text()
    stats = _stats(server)
    assert stats["loaded"] == len(stats["on_device"]) == 0
    assert server.post("/free", {"unload_models": True, "free_memory": True}).status_code == 200
    assert server.run(_graph(seed, by=1.5)).digest() == _expected(server, seed, 1.5)
    # Not every exception: SQLAlchemy logs one if a connection is collected in another thread.
    assert "Exception during processing" not in server.log()
    assert "PurgedError" not in server.log()


def test_a_loaded_model_is_protected(server: Server, seed: int) -> None:
    graph = _graph(seed)
    graph["leak"] = node("LeakModel", image=("run", 0), seed=seed, what="patcher")
    graph["bright"]["inputs"]["image"] = ["leak", 0]
    graph["purge"] = node("CleanMemory_PurgeRAM", anything=("bright", 0))
    assert "stripped" not in server.run(graph).shown_text()
    unloads = server.run({"purge": node("CleanMemory_PurgeVRAM")})
    assert "unloaded Sequential" in unloads.shown_text()
    assert "stripped" in server.run({"purge": node("CleanMemory_PurgeRAM")}).shown_text()
