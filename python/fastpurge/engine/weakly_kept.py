"""What ``keep`` names, remembered without keeping it alive: a plan may lie in a notebook's history for days.

What was kept when a plan was made was not planned, so `SweepPlan.apply` does not touch it. What is
remembered here protects what has become reachable since.
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
from fastpurge.engine.keep_argument import is_exactly, named
from fastpurge.python_facts.imported_modules import namespace
from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts.hidden_references import contents
from fastpurge.torch_facts.numpy_arrays import array_types


@dataclass(slots=True)
class _Trace:
    """How to recognize an object that is not weakly referenced: by what it held, or by what referred to it.

    The address alone does not tell: another object of its type may have come to lie there. Where that
    would do no harm, ``held`` is None.
    """

    of: type
    held: frozenset[int] | None
    owners: set[int] = field(default_factory=set)

    def fits(self, obj: object) -> bool:
        """Whether an object at the same address is the same one."""
        if type(obj) is not self.of:
            return False
        if self.held is None or any(id(one) in self.held for one in gc.get_referents(obj)):
            return True
        return bool(self.owners) and any(id(one) in self.owners for one in gc.get_referrers(obj))


_Mark = weakref.ref[Any] | int


class WeaklyKept:
    """What a keep names, of which nothing is kept alive."""

    def __init__(self, keep: object, *, is_temporary: bool) -> None:
        """Remember what ``keep`` names.

        Args:
            keep: what was given.
            is_temporary: whether only the call itself refers to it, as in ``plan(keep=[model])``. Then it is
                gone when the call returns.

        """
        self._traces: dict[int, _Trace] = {}
        names = named(keep)
        self._named = self._remember(names)
        within = _within(names)
        self._within = self._remember(within)
        self._note_owners((*names[is_temporary:], *within), (names, within, *names[:is_temporary]))

    def alive(self) -> list[object]:
        """A keep that names what is still alive."""
        types = {id(trace.of): trace.of for trace in self._traces.values()}
        found = {}
        for obj in _core.scan((*types.values(),)) if types else ():
            if (trace := self._traces.get(id(obj))) is not None and trace.fits(obj):
                found[id(obj)] = obj
        # What is deeper within is no name: a module there is a boundary, as it was for the plan.
        return [*_living(self._named, found), [*_living(self._within, found)]]

    def _remember(self, objects: Iterable[object]) -> list[_Mark]:
        return [mark for mark in map(self._mark, objects) if mark is not None]

    def _mark(self, obj: object) -> _Mark | None:
        if is_a(obj, torch.Tensor):
            # `torch.utils.swap_tensors` refuses tensors that are weakly referenced. Whatever comes to lie
            # there was not planned, and leads to little.
            self._traces[id(obj)] = _Trace(type(obj), None)
            return id(obj)
        try:
            return weakref.ref(obj)
        except TypeError:
            pass
        if type(obj) is not dict and (type(obj) is tuple or not gc.is_tracked(obj)):
            return None  # what it leads to never changes
        held = (one for one in gc.get_referents(obj) if gc.is_tracked(one) and not is_a(one, type))
        self._traces[id(obj)] = _Trace(type(obj), frozenset(map(id, held)))
        return id(obj)

    def _note_owners(self, objects: tuple[object, ...], ours: tuple[object, ...]) -> None:
        """Note what refers to objects, so that one is recognized whose contents were all exchanged."""
        sought = [one for one in objects if (trace := self._traces.get(id(one))) and trace.held is not None]
        del sought[_MOST_OWNED:]
        ignored = _core.IdSet((*ours, objects, sought))
        for owner in gc.get_referrers(*sought) if sought else ():
            for held in gc.get_referents(owner) if owner not in ignored else ():
                if (trace := self._traces.get(id(held))) is not None:
                    trace.owners.add(id(owner))


# The time that `gc.get_referrers` takes grows with their number. Most often the outermost leads to the rest.
_MOST_OWNED = 8


def _living(marks: list[_Mark], found: dict[int, object]) -> Iterable[object]:
    for mark in marks:
        obj = found.get(mark) if isinstance(mark, int) else mark()
        if obj is not None:
            yield obj


def _within(names: tuple[object, ...]) -> list[object]:
    """What is meant by what may be made for the call alone: what is in a container, or behind a method."""
    namespaces = _core.IdSet(namespace(one) for one in [*sys.modules.values()] if is_a(one, ModuleType))
    met, found = _core.IdSet(names), list(names)
    for at, obj in enumerate(found):  # which grows meanwhile
        if at >= len(names) and obj in namespaces:
            continue
        for one in _handed_on(obj):
            if one not in met and _may_have_referents(one):
                met.add(one)
                found.append(one)
    return found[len(names) :]


def _may_have_referents(obj: object) -> bool:
    return gc.is_tracked(obj) or is_a(obj, dict, *array_types())


_CONTAINERS = (list, tuple, dict, set, frozenset, deque, OrderedDict, defaultdict)
_CALLABLES = (partial, MethodType, BuiltinMethodType)
_has_weak_references = cast(Any, type.__dict__["__weakrefoffset__"]).__get__


def _handed_on(obj: object) -> Iterable[object]:
    of = type(obj)
    if of is FunctionType:  # not its globals
        function = cast(FunctionType, obj)
        return (*(function.__closure__ or ()), function.__defaults__, function.__kwdefaults__)
    if is_a(obj, *array_types()):
        return contents((obj,))
    if is_exactly(obj, (*_CONTAINERS, *_CALLABLES)) or not _has_weak_references(of):
        return gc.get_referents(obj)
    return ()
