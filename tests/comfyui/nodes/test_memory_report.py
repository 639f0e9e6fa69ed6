"""The report node: its text, its numbers and its image, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from tests.comfyui.comfyui_process import Server
from tests.comfyui.graphs import PURGES, Graph, node

MiB = 2**20
FREE = {"ram_before": 3, "ram_after": 4, "vram_before": 5, "vram_after": 6}


def report(*wire: Any, **options: Any) -> dict[str, Any]:
    wires = {"anything": wire} if wire else {}
    return node("FastPurge_MemoryReport", **{"top": 5, "every_queue": False, **options, **wires})


def leak(seed: int, mebibytes: int) -> Graph:
    return {
        "noise": node("Noise", seed=seed, megapixels=1),
        "leak": node("Leak", image=("noise", 0), mebibytes=mebibytes),
        "end": node("Digest", image=("leak", 0)),
    }


def free(server: Server, graph: Graph) -> dict[str, int]:
    """The free bytes that a report returns."""
    shows = {name: node("PreviewAny", source=("report", at)) for name, at in FREE.items()}
    outputs = server.run(graph | shows).outputs
    return {name: int(outputs[name]["text"][0]) for name in FREE}


def test_the_report_lists_the_largest_owners(server: Server, seed: int) -> None:
    server.run(leak(seed, 300))
    outputs = server.run({"report": report(), "show": node("PreviewAny", source=("report", 1))}).outputs
    (census,) = outputs["report"]["census"]
    (words,) = outputs["show"]["text"]
    assert census["largest"][0]["nbytes"] == 300 * MiB
    assert "leaked" in census["largest"][0]["path"]
    assert len(census["largest"]) <= 5
    assert "live tensors and arrays" in words
    assert "leaked" in words
    purged = server.run({"purge": node("CleanMemory_PurgeRAM")})
    assert "released 1 tensors" in purged.shown_text()  # the report had kept it intact


def test_the_picture_can_be_saved(server: Server, home: Path) -> None:
    from PIL import Image

    graph = {"report": report(), "save": node("SaveImage", images=("report", 2), filename_prefix="report")}
    (saved,) = server.run(graph).outputs["save"]["images"]
    with Image.open(home / "base" / "output" / saved["filename"]) as picture:
        assert picture.width == 768
        assert len(picture.getcolors(1 << 20) or []) > 5  # background, text, bars


def test_inputs_are_passed_through_unchanged_lists_included(server: Server, seed: int) -> None:
    graph = {
        "batch": node("Batch", seed=seed, count=3),
        "end": node("Digest", image=("batch", 0)),
    }
    without = server.run(graph).outputs["end"]["digest"]
    graph["report"] = report("batch", 0)
    graph["end"] = node("Digest", image=("report", 0))
    result = server.run(graph)
    assert len(without) == 3
    assert result.outputs["end"]["digest"] == without
    assert result.ran.count("report") == 1


def test_a_report_has_the_free_memory_before_and_after_the_purge(server: Server, seed: int) -> None:
    server.run(leak(seed, 4096))  # other tests start servers, which use less
    graph = {
        "noise": node("Noise", seed=seed, megapixels=1),
        "purge": PURGES["Pass RAM"](("noise", 0)),
        "report": report("purge", 0),
    }
    told = free(server, graph)
    assert told["ram_after"] - told["ram_before"] > 1024 * MiB
    assert abs(told["ram_after"] - psutil.virtual_memory().available) < 2000 * MiB
    assert told["vram_before"] == told["vram_after"] == 0  # there is no GPU


def test_without_a_purge_in_the_prompt_before_equals_after(server: Server) -> None:
    server.run({"purge": node("CleanMemory_PurgeRAM")})
    told = free(server, {"report": report(top=6)})
    assert told["ram_before"] == told["ram_after"] > 0


def test_a_report_runs_again_with_every_queue_or_after_an_upstream_change(server: Server, seed: int) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=1),
        "report": report("noise", 0),
        "end": node("Digest", image=("report", 0)),
    }
    assert {"report", "end"} <= {*server.run(graph).ran}
    assert server.run(graph).ran == []
    graph["report"]["inputs"]["every_queue"] = True
    for _ in range(2):
        assert {"report", "end"} <= {*server.run(graph).ran}
