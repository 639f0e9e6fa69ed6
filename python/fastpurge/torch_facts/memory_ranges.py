"""Ranges of memory, by address and device."""

from bisect import bisect_right
from collections.abc import Iterable

from fastpurge.torch_facts.tensors import Extent


class MemoryMap:
    """Memory that is spoken for: merged ranges per device, searched by bisection."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        by_device: dict[str, list[tuple[int, int]]] = {}
        for extent in extents:
            by_device.setdefault(extent.device, []).append((extent.start, extent.end))
        self._ranges = {device: _merge(ranges) for device, ranges in by_device.items()}

    def overlaps(self, extent: Extent) -> bool:
        """Whether any byte of the extent is spoken for."""
        starts, ends = self._ranges.get(extent.device, ([], []))
        at = bisect_right(starts, extent.end - 1)
        return at > 0 and ends[at - 1] > extent.start


def _merge(ranges: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted(ranges):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends
