"""Whether what a process holds stays flat over a series of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

MiB = 2**20

# How much more at the end than at the beginning is no growth: allocators keep some memory in hand, and
# threads that compute hold now more objects and now fewer.
ALLOWED = {"rss": 24 * MiB, "objects": 400, "handles": 1, "threads": 0}


def rising(
    series: Sequence[Mapping[str, float]], allowed: Mapping[str, float] = ALLOWED, *, per_step: float = 0
) -> dict[str, float]:
    """By how much the median of the last third of a series lies above that of the second fifth.

    Says it of what rose by more than is allowed; ``per_step`` objects more are, for each step from sample to
    sample. The first fifth is warming up: allocators and caches fill.
    """
    fifth = len(series) // 5
    early, late = series[fifth : 2 * fifth + 1], series[-(len(series) // 3) :]
    grown = {name: middle(late, name) - middle(early, name) for name in allowed}
    steps = middle(late, "at") - middle(early, "at")
    room = {**allowed, "objects": allowed["objects"] + per_step * steps}
    return {name: by for name, by in grown.items() if by > room[name]}


def middle(samples: Sequence[Mapping[str, float]], name: str) -> float:
    """The median of one quantity."""
    return median(one[name] for one in samples)
