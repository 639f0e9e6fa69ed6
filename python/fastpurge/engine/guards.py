"""Rules that spare candidates nobody named. Each is small, has a name, and can be switched off."""

import collections
import contextvars
import functools
import types
from bisect import bisect_right
from collections.abc import Iterable
from enum import Flag, auto
from typing import Any

from fastpurge import _core
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.running_code import CALLABLES, EXECUTING, ITERATORS, PLAIN, root_objects
from fastpurge.torch_facts.tensors import Extent


class Guard(Flag):
    """The guards of a sweep; ``Guard.ALL`` is the default, and they join with ``|``."""

    AUTOGRAD = auto()
    """What the graph of a kept tensor holds: the leaves it feeds, what it saved for backward; and, if a graph
    is kept or in the hands of running code, whatever hooks lead to: C++ holds them, and will call them."""

    LIBRARY = auto()
    """What imported libraries keep at module or class level, with all that they will call leads to; and what
    `torch.compile` has compiled."""

    ALIAS = auto()
    """What stands on the memory of a kept tensor, storage or NumPy array; and, while there is a graph to
    replay (`torch.cuda.CUDAGraph`), whatever is on its kind of device or pinned: what it reads it does not
    say."""

    RUNNING = auto()
    """What running code holds: locals of running functions in any thread, values on their stacks, exceptions
    being handled, context variables, and work that waits to be done; directly, or through plain containers,
    closures and iterators. An object of a library's class that it holds so is in use with everything it leads
    to; one of the program's own class is not looked into, unless it is a context manager. So is what
    else the collector cannot see, such as a tensor that a NumPy array stands on. Switched off, what is
    held directly is left alone all the same while other threads run: one may be using it right now; and
    with a torch before 2.10."""

    ALL = AUTOGRAD | LIBRARY | ALIAS | RUNNING
    NONE = 0


_LIBRARY_DEPTH = 6
_NAMESPACES = (types.SimpleNamespace, types.MappingProxyType, contextvars.ContextVar)


def library_state(scan_for: tuple[type, ...], *, where_known: bool = False) -> list[Any]:
    """Instances that imported libraries keep in their modules and classes, and not deep in objects.

    In plain containers, as an attribute of one object: a library's singleton; and however deep behind
    functions and decorators (a hook that a library is to call, a result that it caches). If only
    ``where_known``, of those modules that kept something when all were looked into last.
    """
    if where_known and not _keepers:
        return []
    found = _core.library_state(
        scan_for,
        libraries=libraries(),
        containers=(*PLAIN, collections.defaultdict, *ITERATORS, *_NAMESPACES),
        wrappers=(*CALLABLES, staticmethod, classmethod, property),
        caches=(functools._lru_cache_wrapper,),
        roots=root_objects(threads=True),
        depth=_LIBRARY_DEPTH,
        modules=_keepers if where_known else None,
    )
    if not where_known:
        _keepers.clear()
        _keepers.update(module for _, module in found)
    return [obj for obj, _ in found]


# A library that keeps tensors goes on to: what is looked for there first need not be looked for everywhere.
_keepers: set[str] = set()


def callbacks() -> list[Any]:
    """What C code is to call: hooks of a graph, and what turns back what they packed for backward.

    Autograd holds these in C++ (torch/csrc/autograd/python_hook.h) and shows them to nobody. A dict of
    hooks is one as well.
    """
    return _core.callbacks(
        function=types.FunctionType,
        method=types.MethodType,
        others=(functools.partial, collections.OrderedDict),
        executing=EXECUTING,
    )


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
