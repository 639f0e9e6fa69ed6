"""Prompt after prompt: memory and objects stay flat."""

from __future__ import annotations

import os
from itertools import cycle, islice
from typing import Any

from .graphs import PURGES, chain, node
from .server import Server

PROMPTS = int(os.environ.get("FASTPURGE_COMFYUI_PROMPTS", "200"))
MiB = 2**20


def _stats(server: Server) -> dict[str, Any]:
    stats: dict[str, Any] = server.run({"stats": node("Stats")}).outputs["stats"]["stats"][0]
    return stats


def test_memory_and_objects_stay_flat_over_many_prompts(server: Server, seed: int) -> None:
    graphs = [chain(purge, seed + at % 7) for at, purge in enumerate(islice(cycle(PURGES.values()), PROMPTS))]
    expected = [server.run(chain(None, seed + at)).digest() for at in range(7)]
    early: dict[str, Any] = {}
    for at, graph in enumerate(graphs):
        if at == PROMPTS // 4:
            early = _stats(server)
        assert server.run(graph).digest() == expected[at % 7]
    late = _stats(server)
    assert late["rss"] < early["rss"] + 64 * MiB
    assert late["tensors"] <= early["tensors"] + 10
    # ComfyUI's history of prompts grows, by some hundred objects each.
    assert late["objects"] < early["objects"] + 400 * PROMPTS
    assert late["tombstones"] == 0
