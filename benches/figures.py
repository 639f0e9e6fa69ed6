"""Command line and output of the benchmarks: the size of the heap, figures as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from fastpurge import _core
from rich.console import Console
from rich.table import Table

Figures = dict[str, float]


def run(about: str | None, measure: Callable[[int], Figures], ratios: Callable[[Figures], Figures]) -> None:
    """Measure on a heap of the size on the command line; print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--objects", type=int, default=1_000_000, help="size of the heap")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    times = measure(options.objects)
    show(options.objects, times, ratios(times))
    if options.json:
        heap = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "objects": options.objects,
        }
        options.json.write_text(json.dumps({**heap, "ms": times, "ratios": ratios(times)}, indent=2))


def show(objects: int, times: Figures, ratios: Figures) -> None:
    """Print the times in milliseconds and the ratios, measured on a heap of ``objects`` objects."""
    console = Console()
    console.print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {objects:,} objects, "
        f"stream: {_core.object_stream()}"
    )
    table = Table("what", "ms", "ratio")
    for what, milliseconds in times.items():
        table.add_row(what, f"{milliseconds:.1f}", "")
    for what, ratio in ratios.items():
        table.add_row(what, "", f"{ratio:.2f}x")
    console.print(table)
