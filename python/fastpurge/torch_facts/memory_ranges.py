"""Ranges of memory addresses on devices."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """The addresses from ``start`` to ``end`` (exclusive) on a device such as ``"cuda:0"``."""

    device: str
    start: int
    end: int


class MemoryRangeSet:
    """A set of addresses: for each device ranges that do not overlap, in order, searched by bisection."""

    def __init__(self, ranges: Iterable[MemoryRange] = ()) -> None:
        self._by_device: dict[str, tuple[list[int], list[int]]] = {}
        """For each device the starts and the ends of its ranges."""
        for one in ranges:
            self.add(one)

    def add(self, new: MemoryRange) -> int:
        """Add a range, merged with those that it overlaps or touches. Returns how many bytes were new."""
        starts, ends = self._by_device.setdefault(new.device, ([], []))
        touched = slice(bisect_left(ends, new.start), bisect_right(starts, new.end))
        pairs = zip(starts[touched], ends[touched], strict=True)
        known = sum(min(new.end, end) - max(new.start, start) for start, end in pairs)
        starts[touched] = [min(new.start, *starts[touched], new.start)]
        ends[touched] = [max(new.end, *ends[touched], new.end)]
        return new.end - new.start - known

    def overlaps(self, other: MemoryRange) -> bool:
        """Whether any byte of a range is in the set."""
        starts, ends = self._by_device.get(other.device, ([], []))
        at = bisect_right(starts, other.end - 1)
        return at > 0 and ends[at - 1] > other.start
