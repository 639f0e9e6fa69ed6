"""Thousands of sweeps beside computing threads: samples of memory, objects, files and threads, as a plot.

``python -m benches.soak --sweeps 10000 --plot docs/soak.svg`` writes the figures beside the plot. The exit
status is 1 if a result was wrong or a quantity grew. ``--prompts FILE`` adds the samples of ComfyUI prompts,
as tests/comfyui/test_endurance.py writes them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from tests.memory_growth import MiB, growth

STRESS = Path(__file__).parents[1] / "tests" / "unit" / "engine" / "sweep_beside_threads.py"
COLOURS = {"rss": "#3b8fd4", "objects": "#e08214", "handles": "#1b9e77", "threads": "#808080"}
LABELS = {
    "rss": "resident set (MiB)",
    "objects": "objects (thousands)",
    "handles": "open files",
    "threads": "threads",
}
SCALES = {"rss": MiB, "objects": 1000}
GREY = "#808080"
STYLE: Any = {
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastpurge",
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def soak(sweeps: int, pause: float, *options: str) -> dict[str, Any]:
    """Run the sweeps in a process of their own."""
    command = [
        sys.executable,
        str(STRESS),
        f"--sweeps={sweeps}",
        f"--pause={pause}",
        "--samples=200",
        *options,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def draw(runs: dict[str, list[dict[str, float]]], file: Path) -> None:
    """A column for each run, a row for each quantity, with axes from zero."""
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(runs), 5.2), layout="constrained", facecolor="none")
        grid = figure.subplots(len(LABELS), len(runs), squeeze=False, sharex="col")
        for column, (title, series) in enumerate(runs.items()):
            for row, (name, label) in enumerate(LABELS.items()):
                axes = grid[row][column]
                every = series[:: -(-len(series) // 100)]
                values = [one[name] / SCALES.get(name, 1) for one in every]
                axes.plot([one["at"] for one in every], values, color=COLOURS[name])
                axes.set_ylim(0, 1.3 * max(values))
                axes.set_title(label, loc="left", fontsize=9)
                axes.spines[["top", "right"]].set_visible(False)
            grid[-1][column].set_xlabel(title)
        figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=10_000)
    parser.add_argument(
        "--pause", type=float, default=0.02, help="seconds that a thread rests between results"
    )
    parser.add_argument("--plot", type=Path, default=Path("soak.svg"))
    parser.add_argument("--prompts", type=Path, help="the series of a ComfyUI, to draw beside it")
    parser.add_argument("--from-json", type=Path, help="figures to judge and draw, instead")
    asked = parser.parse_args()
    found = json.loads(asked.from_json.read_text()) if asked.from_json else soak(asked.sweeps, asked.pause)
    asked.plot.with_suffix(".json").write_text(json.dumps(found) + "\n")
    runs = {"sweeps beside eight threads": found["series"]}
    if asked.prompts:
        runs["prompts of a ComfyUI"] = json.loads(asked.prompts.read_text())["series"]
    draw(runs, asked.plot)
    grown = growth(found["series"])
    print(f"{found['sweeps']} sweeps, {sum(found['checked'])} results checked")
    print(f"wrong: {found['errors'] or 'nothing'}")
    print(f"risen: {grown or 'nothing'}")
    return 1 if grown or found["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
