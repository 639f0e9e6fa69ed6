"""Whether memory, objects, files and threads of a process grow over a series of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

MiB = 2**20

# Allowed differences between the end and the beginning: allocators cache memory, and the number of
# objects of computing threads varies.
ALLOWED = {"rss": 24 * MiB, "objects": 400, "handles": 1, "threads": 0}


def growth(
    series: Sequence[Mapping[str, float]], allowed: Mapping[str, float] = ALLOWED, *, per_step: float = 0
) -> dict[str, float]:
    """The growth of each quantity that grew by more than is allowed, by name.

    Growth is the median of the last third of the series less that of the second fifth. ``per_step`` more
    objects are allowed for each step of a sample's ``at``. The first fifth is warm-up: caches fill.
    """
    fifth = len(series) // 5
    early, late = series[fifth : 2 * fifth + 1], series[-(len(series) // 3) :]
    grown = {name: median_of(late, name) - median_of(early, name) for name in allowed}
    steps = median_of(late, "at") - median_of(early, "at")
    room = {**allowed, "objects": allowed["objects"] + per_step * steps}
    return {name: by for name, by in grown.items() if by > room[name]}


def median_of(samples: Sequence[Mapping[str, float]], name: str) -> float:
    """The median of one quantity."""
    return median(one[name] for one in samples)
