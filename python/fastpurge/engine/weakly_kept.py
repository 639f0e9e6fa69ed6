"""Weak references to what ``keep`` names: a plan must not keep it alive, for days in a notebook's history.

What was kept when the plan was made is not in the plan, so `SweepPlan.apply` does not touch it. These
references protect what has become reachable from ``keep`` since.
"""

import gc
import sys
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch

from fastpurge import _core
from fastpurge.engine.keep_argument import named
from fastpurge.python_facts.imported_modules import namespace
from fastpurge.python_facts.object_types import is_a, is_exactly
from fastpurge.torch_facts.hidden_references import contents
from fastpurge.torch_facts.numpy_arrays import array_types


@dataclass(slots=True)
class _Trace:
    """How to recognize an object without a weak reference: by its referents or its referrers.

    Its address alone is not enough: another object of its type may have reused the memory. Where that does no
    harm, ``referents`` is None.
    """

    of: type
    referents: frozenset[int] | None
    owners: set[int] = field(default_factory=set)

    def fits(self, obj: object) -> bool:
        """Whether an object at the same address is the same one."""
        if type(obj) is not self.of:
            return False
        if self.referents is None or any(id(one) in self.referents for one in gc.get_referents(obj)):
            return True
        return bool(self.owners) and any(id(one) in self.owners for one in gc.get_referrers(obj))


_Reference = weakref.ref[Any] | int


class WeaklyKept:
    """Weak references to everything that a ``keep`` names."""

    def __init__(self, keep: object, *, is_temporary: bool) -> None:
        """Remember what ``keep`` names.

        Args:
            keep: the argument of `plan`.
            is_temporary: whether only the call references it, as in ``plan(keep=[model])``. Then it is
                deallocated when the call returns.

        """
        self._traces: dict[int, _Trace] = {}
        names = named(keep)
        self._named = self._remember(names)
        within = _within(names)
        self._within = self._remember(within)
        self._note_owners((*names[is_temporary:], *within), (names, within, *names[:is_temporary]))

    def alive(self) -> list[object]:
        """A ``keep`` that names the objects that are still alive."""
        types = {id(trace.of): trace.of for trace in self._traces.values()}
        found = {}
        for obj in _core.scan((*types.values(),)) if types else ():
            if (trace := self._traces.get(id(obj))) is not None and trace.fits(obj):
                found[id(obj)] = obj
        # Objects deeper inside are not named themselves: a module there is a boundary, as for the plan.
        return [*_alive(self._named, found), [*_alive(self._within, found)]]

    def _remember(self, objects: Iterable[object]) -> list[_Reference]:
        return [one for one in map(self._reference_to, objects) if one is not None]

    def _reference_to(self, obj: object) -> _Reference | None:
        if is_a(obj, torch.Tensor):
            # `torch.utils.swap_tensors` refuses tensors with weak references. If another tensor reuses the
            # memory, it was not planned, and little is reachable from it.
            self._traces[id(obj)] = _Trace(type(obj), None)
            return id(obj)
        try:
            return weakref.ref(obj)
        except TypeError:
            pass
        if type(obj) is not dict and (type(obj) is tuple or not gc.is_tracked(obj)):
            return None  # its referents never change
        referents = (one for one in gc.get_referents(obj) if gc.is_tracked(one) and not is_a(one, type))
        self._traces[id(obj)] = _Trace(type(obj), frozenset(map(id, referents)))
        return id(obj)

    def _note_owners(self, objects: tuple[object, ...], ours: tuple[object, ...]) -> None:
        """Note the referrers of objects, to recognize one whose contents were all replaced."""
        sought = [
            one for one in objects if (trace := self._traces.get(id(one))) and trace.referents is not None
        ]
        del sought[_MOST_SOUGHT:]
        ignored = _core.IdSet((*ours, objects, sought))
        for owner in gc.get_referrers(*sought) if sought else ():
            for one in gc.get_referents(owner) if owner not in ignored else ():
                if (trace := self._traces.get(id(one))) is not None:
                    trace.owners.add(id(owner))


# `gc.get_referrers` takes time for each. Most often the rest is reachable from the outermost.
_MOST_SOUGHT = 8


def _alive(references: list[_Reference], found: dict[int, object]) -> Iterable[object]:
    for one in references:
        obj = found.get(one) if isinstance(one, int) else one()
        if obj is not None:
            yield obj


def _within(names: tuple[object, ...]) -> list[object]:
    """The objects inside named containers and callables, which may exist for the call alone."""
    namespaces = _core.IdSet(namespace(one) for one in [*sys.modules.values()] if is_a(one, ModuleType))
    met, found = _core.IdSet(names), list(names)
    for at, obj in enumerate(found):  # the list grows meanwhile
        if at >= len(names) and obj in namespaces:
            continue
        for one in _referents(obj):
            if one not in met and _may_have_referents(one):
                met.add(one)
                found.append(one)
    return found[len(names) :]


def _may_have_referents(obj: object) -> bool:
    return gc.is_tracked(obj) or is_a(obj, dict, *array_types())


_CONTAINERS = (list, tuple, dict, set, frozenset, deque, OrderedDict, defaultdict)
_CALLABLES = (partial, MethodType, BuiltinMethodType)
_has_weak_references = cast(Any, type.__dict__["__weakrefoffset__"]).__get__


def _referents(obj: object) -> Iterable[object]:
    of = type(obj)
    if of is FunctionType:  # not its globals
        function = cast(FunctionType, obj)
        return (*(function.__closure__ or ()), function.__defaults__, function.__kwdefaults__)
    if is_a(obj, *array_types()):
        return contents((obj,))
    if is_exactly(obj, (*_CONTAINERS, *_CALLABLES)) or not _has_weak_references(of):
        return gc.get_referents(obj)
    return ()
