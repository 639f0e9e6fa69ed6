"""What imported libraries keep in their globals, caches and classes."""

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
    """The types that a context is made of: itself, and its tree (Python/hamt.c)."""
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
    """Instances that imported libraries keep in their modules and classes, and not deep in objects.

    In plain containers, as an attribute of one object: a library's singleton; and however deep behind
    functions and decorators (a hook that a library is to call, a result that it caches). If only
    ``where_known``, of those modules that kept something when all were looked into last.
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


# A library that keeps tensors goes on to: what is looked for there first need not be looked for everywhere.
_keepers: set[str] = set()
