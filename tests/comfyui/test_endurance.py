"""Memory, objects, open files and threads of a server stay flat over many prompts.

``FASTPURGE_COMFYUI_PROMPTS`` is the number of prompts. The measured series is written to the file
``FASTPURGE_COMFYUI_SERIES``.
"""

from __future__ import annotations

import json
import os
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tests.comfyui.comfyui_process import Server
from tests.comfyui.graphs import PURGES, chain, node
from tests.memory_growth import ALLOWED, MiB, growth

PROMPTS = int(os.environ.get("FASTPURGE_COMFYUI_PROMPTS", "200"))
SAMPLES = max(20, PROMPTS // 20)
# ComfyUI's history of prompts grows, by up to a hundred objects each, until it holds ten thousand prompts.
HISTORY = 150


def _stats(server: Server) -> dict[str, Any]:
    stats: dict[str, Any] = server.run({"stats": node("Stats")}).outputs["stats"]["stats"][0]
    return stats


def test_memory_of_a_server_stays_flat_over_many_prompts(server: Server, seed: int) -> None:
    graphs = [chain(purge, seed + at % 7) for at, purge in enumerate(islice(cycle(PURGES.values()), PROMPTS))]
    expected = [server.run(chain(None, seed + at)).digest() for at in range(7)]
    series: list[dict[str, Any]] = []
    started = time.monotonic()
    for at, graph in enumerate(graphs):
        assert server.run(graph).digest() == expected[at % 7]
        if at % -(-PROMPTS // SAMPLES) == 0:
            series.append({"at": at, "seconds": round(time.monotonic() - started, 2), **_stats(server)})
    if file := os.environ.get("FASTPURGE_COMFYUI_SERIES"):
        Path(file).write_text(json.dumps({"series": series}))
    allowed = {**ALLOWED, "rss": 64 * MiB, "tensors": 10, "tombstones": 0, "handles": 2, "threads": 1}
    assert growth(series, allowed, per_step=HISTORY) == {}
    assert series[-1]["tombstones"] == 0
