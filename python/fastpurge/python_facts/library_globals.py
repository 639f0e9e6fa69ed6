"""Library state: what imported libraries keep in their globals, caches and classes."""

import collections
import contextvars
import functools
import gc
import types
import weakref
from typing import Any

from fastpurge import _core
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.running_code import CALLABLES, ITERATORS, PLAIN, root_objects

_LIBRARY_DEPTH = 6


def _of_contexts() -> tuple[type, ...]:
    """The types that a `contextvars.Context` consists of: its own, and those of its tree (Python/hamt.c)."""
    made = contextvars.Context()
    for number in range(64):  # more than fit into one node
        made.run(contextvars.ContextVar[None](f"{__name__}.{number}").set, None)
    found: dict[type, None] = {}
    pending: list[object] = [made]
    while pending:
        at = pending.pop()
        if type(at) is contextvars.Context or type(at).__name__.startswith("hamt"):
            found[type(at)] = None
            pending += gc.get_referents(at)
    return tuple(found)


_NAMESPACES = (
    types.SimpleNamespace,
    types.MappingProxyType,
    weakref.ReferenceType,
    contextvars.ContextVar,
    *_of_contexts(),
)


def library_state(scan_for: tuple[type, ...], *, where_known: bool = False) -> list[Any]:
    """Instances that imported libraries keep in globals and class attributes.

    Looks through plain containers, one object of a library's class (a singleton), and any depth of functions
    and decorators: hooks that a library will call, results that it caches.

    Args:
        scan_for: the types of the instances.
        where_known: look only into the modules that had some when all were read last.

    """
    if where_known and not _keepers:
        return []
    found = _core.library_globals(
        scan_for,
        libraries=libraries(),
        containers=(*PLAIN, collections.defaultdict, *ITERATORS, *_NAMESPACES),
        wrappers=(*CALLABLES, staticmethod, classmethod, property),
        caches=(functools._lru_cache_wrapper,),
        root_objects=root_objects(threads=True),
        depth=_LIBRARY_DEPTH,
        modules=_keepers if where_known else None,
    )
    if not where_known:
        _keepers.clear()
        _keepers.update(module for _, module in found)
    return [obj for obj, _ in found]


# The modules that had some. A library that keeps tensors usually still does, so these are read first.
_keepers: set[str] = set()
