"""What valgrind counts the instructions of: one thing done so many times, on the same heap each time."""

from __future__ import annotations

import gc
import sys
from typing import Any

from fastpurge import _core
from fastpurge._core import Libraries

RECORDS = 4_000


class Record:
    """An instance, with a list, a dict, another list and a tuple: five objects, and a cycle."""

    def __init__(self, number: int) -> None:
        self.values = [number]
        self.more = {"key": [number, (number, self)]}


class Wanted:
    pass


def main() -> None:
    what, times = sys.argv[1], int(sys.argv[2])
    heap: Any = [Record(number) for number in range(RECORDS)]
    libraries = Libraries((), ())
    gc.collect()
    if what == "closure":
        gc.freeze()  # or the walk over the whole heap would be counted with it
    for _ in range(times):
        if what == "scan":
            _core.scan((Wanted,))
        else:
            _core.closure((heap,), libraries=libraries)


if __name__ == "__main__":
    main()
