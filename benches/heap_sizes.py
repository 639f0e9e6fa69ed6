"""Heaps of several sizes, each in a process of its own: a table of ratios for each, and one plot.

Run by ``make bench`` on each interpreter. Writes ``docs/growth-3.x.svg`` and ``.json`` beside it.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SIZES = (1_000_000, 2_000_000, 5_000_000, 10_000_000)
LINES = ("plain scan", "gc.collect()", "gc.get_objects()", "idle sweep")
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def measure(objects: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benches.ratios", f"--objects={objects}", f"--json={file}"]
        subprocess.run(command, check=True, cwd=ROOT)
        figures: dict[str, Any] = json.loads(file.read_text())
    return figures


def draw(runs: list[dict[str, Any]], file: Path) -> None:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for line in LINES:
        axes.plot([run["objects"] / 1e6 for run in runs], [run["ms"][line] for run in runs], "o-", label=line)
    axes.set(xlabel="objects on the heap (millions)", ylabel="milliseconds", xscale="log", yscale="log")
    axes.set_title(f"Python {runs[0]['python']}")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    version = ".".join(platform.python_version_tuple()[:2])
    runs = [measure(objects) for objects in SIZES]
    draw(runs, DOCS / f"growth-{version}.svg")
    (DOCS / f"growth-{version}.json").write_text(json.dumps(runs, indent=2) + "\n")


if __name__ == "__main__":
    main()
