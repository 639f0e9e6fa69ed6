"""Results are correct with every cache that ComfyUI offers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.comfyui_process import NO_API_NODES, Server, comfyui
from tests.comfyui.graphs import PURGES, chain, insert, node

MODES = {
    "classic": ["--cache-classic"],
    "LRU": ["--cache-lru", "10"],
    "RAM pressure": ["--cache-ram", "1"],
    "none": ["--cache-none"],
}
RELEASING = {name: PURGES[name] for name in ("ALL", "Pass RAM")}


@pytest.fixture(scope="module", params=MODES.values(), ids=[*MODES])
def server(request: pytest.FixtureRequest, home: Path) -> Iterator[Server]:
    with comfyui(home, NO_API_NODES, *request.param) as running:
        yield running


@pytest.mark.parametrize("purge", RELEASING.values(), ids=RELEASING)
def test_consecutive_prompts_are_correct(server: Server, seed: int, purge: Any) -> None:
    expected = server.run(chain(None, seed)).digest()
    for _ in range(3):
        assert server.run(chain(purge, seed)).digest() == expected
    assert server.run(chain(None, seed)).digest() == expected
    graph = chain(purge, seed)
    graph["end"]["inputs"]["image"] = ["bright", 0]
    assert server.run(graph).status == "success"


@pytest.mark.parametrize("purge", RELEASING.values(), ids=RELEASING)
def test_models_and_sub_graphs_are_correct(server: Server, seed: int, purge: Any) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=2),
        "load": node("LoadModel", seed=seed),
        "own": node("OwnModel", image=("noise", 0), seed=seed),
        "expand": node("Expand", image=("own", 0), steps=2, purge="no"),
        "run": node("RunModel", model=("load", 0), image=("expand", 0)),
        "end": node("Digest", image=("run", 0)),
    }
    expected = server.run(graph).digest()
    insert(graph, purge, ("expand", 0), "run", "image")
    for _ in range(2):
        assert server.run(graph).digest() == expected


def test_a_cache_that_is_always_under_memory_pressure(home: Path, seed: int) -> None:
    with comfyui(home, "--cache-ram", "1000") as server:  # GB to leave free
        expected = server.run(chain(None, seed)).digest()
        assert server.run(chain(PURGES["ALL"], seed)).digest() == expected
        assert server.run(chain(PURGES["Pass RAM"], seed)).digest() == expected
