"""Models that ComfyUI uses at the end of the prompt are protected, and models with pinned memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.comfyui_process import NO_API_NODES, Server, comfyui
from tests.comfyui.dynamic_patchers import prepare_dynamic_patchers
from tests.comfyui.graphs import PURGES, Graph, insert, node


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("tracking")
    prepare_dynamic_patchers(folder)
    with comfyui(folder, NO_API_NODES) as server:
        yield server


def _graph(seed: int) -> Graph:
    return {
        "load": node("LoadDynamic", seed=seed),
        "noise": node("Noise", seed=seed, megapixels=2),
        "run": node("RunModel", model=("load", 0), image=("noise", 0)),
        "bright": node("Brighten", image=("run", 0), by=1.0),
        "end": node("Digest", image=("bright", 0)),
    }


def has_thread_errors(server: Server) -> bool:
    """Whether a thread or a finalizer raised an error; SQLAlchemy logs other tracebacks."""
    return any(text in server.log() for text in ("PurgedError", "Exception in thread", "Exception ignored"))


@pytest.mark.parametrize("protect", [True, False])
@pytest.mark.parametrize("key", ["CleanMemory_PurgeAll", "CleanMemory_PurgeRAM", "CleanMemory_PurgeVRAM"])
def test_a_purge_as_the_last_node_does_not_break_the_end_of_the_prompt(
    tracking: Server, seed: int, key: str, protect: bool
) -> None:
    options: dict[str, Any] = {} if key == "CleanMemory_PurgeVRAM" else {"protect_pending": protect}
    first = tracking.run(_graph(seed)).digest()
    for at in range(2):
        last = _graph(seed + at)
        del last["end"]
        last["purge"] = node(key, anything=("bright", 0), **options)
        result = tracking.run(last)
        assert result.status == "success", result.error
        assert "failed" not in result.shown_text()
    assert tracking.run(_graph(seed)).digest() == first
    assert not has_thread_errors(tracking)
    assert tracking.run({"leak": node("LeakDynamic", seed=0)}).outputs["leak"]["pinned"] == [0]


@pytest.mark.parametrize("purge", PURGES.values(), ids=PURGES)
def test_a_purge_in_the_middle_does_not_change_the_result(tracking: Server, seed: int, purge: Any) -> None:
    graph = _graph(seed)
    insert(graph, purge, ("run", 0), "bright", "image")
    with_purge = tracking.run(graph).digest()
    assert tracking.run(_graph(seed)).digest() == with_purge
    assert not has_thread_errors(tracking)


@pytest.mark.parametrize("key", ["CleanMemory_PurgeAll", "CleanMemory_PurgeRAM"])
def test_a_model_is_kept_while_its_patcher_has_pinned_memory(tracking: Server, seed: int, key: str) -> None:
    tracking.run({"end": node("Digest", image=("noise", 0)), "noise": node("Noise", seed=seed, megapixels=1)})
    assert tracking.run({"leak": node("LeakDynamic", seed=seed)}).outputs["leak"]["pinned"] == [1 << 20]
    purged = tracking.run({"purge": node(key)})
    text = purged.shown_text()
    assert "kept for memory pinned by ComfyUI: Sequential in a model patcher of ComfyUI (20.2 MiB)" in text
    assert "released" not in text
    tracking.run({"leak": node("LeakDynamic", seed=0)})
    assert tracking.run({"leak": node("LeakDynamic", seed=0)}).outputs["leak"]["pinned"] == [0]
    assert not has_thread_errors(tracking)
