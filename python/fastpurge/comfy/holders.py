"""What custom nodes keep at module and class level, and whether they would load it again.

A purge may only take what its pack would miss if the pack notices. So before a sweep what is about to go is
looked up in the modules of custom nodes, from the outside in: an entry of a dict that is filled when a key
is missing, a name or an attribute that is asked for ``None`` and assigned again, an `lru_cache`, a list that
is only ever added to. What is found in such a place may go, and after the sweep the place is emptied: the
pack finds it as it was before it had loaded anything. All else is missed by its pack.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch

from fastpurge import _core
from fastpurge.comfy.code import Clear, Code, Function, emptying_a_name, emptying_an_entry, is_only_added_to
from fastpurge.comfy.packs import Packs
from fastpurge.imported import namespace
from fastpurge.library_folders import libraries
from fastpurge.tombstones import PurgedModule, PurgedTensor

_DEPTH = 8
_SHORT = 40
_KEYS = (str, int, float, bool, type(None))
_SEQUENCES = (list, deque, set)


@dataclass(slots=True, eq=False)
class _Slot:
    """A place that holds a value.

    Attributes:
        pack: whose it is.
        place: where it is, to print.
        name: what code knows it by: of what has no name of its own, that of what is around it.
        value: what it holds.
        emptying: says how to empty it, if that can be done.
        parent: the place that it is in, which for a global is the module.
        beside: what has a name beside it, if it has one.

    """

    pack: str
    place: str
    name: str
    value: Any
    emptying: Callable[[], Clear | None]
    parent: "_Slot | None" = None
    beside: dict[str, Any] | None = None

    def part(self, place: str, value: Any, emptying: Callable[[], Clear | None]) -> "_Slot":
        """A place in this one that has no name."""
        return _Slot(self.pack, place, self.name, value, emptying, self)


@dataclass(slots=True)
class Holdings:
    """What custom nodes keep of what is about to go.

    Attributes:
        missed: what its packs would miss: they would not load it again.
        missed_at: where that is.

    """

    missed: list[Any] = field(default_factory=list)
    missed_at: list[str] = field(default_factory=list)
    _places: list[tuple[_Slot, Clear]] = field(default_factory=list)
    _packs: set[str] = field(default_factory=set)

    def take(self, slot: _Slot, clear: Clear | None) -> None:
        """Note what can be emptied, or that it cannot."""
        self._packs.add(slot.pack)
        if clear is None:
            self.missed.append(slot.value)
            self.missed_at.append(slot.place)
        else:
            self._places.append((slot, clear))

    def empty(self) -> tuple[list[str], set[str]]:
        """Empty those places that lead to tombstones by now; say which, and whose packs hold tombstones."""
        tombstones = (*_core.scan((PurgedTensor, PurgedModule)),)
        spoiled = {id(slot) for slot in _leading_to(tombstones, [slot for slot, _ in self._places])}
        emptied = []
        for slot, clear in self._places:
            if id(slot) in spoiled and clear is not _leave:
                with suppress(Exception):  # code of the pack may run; one place is no reason to leave others
                    clear()
                    emptied.append(slot.place)
        return [*dict.fromkeys(emptied)], self._packs


def find(targets: tuple[Any, ...], packs: Packs) -> Holdings:
    """Look for tensors and modules in what custom nodes keep."""
    search, holdings = _Search(packs), Holdings()
    level = _leading_to(targets, [*search.roots()])
    for _ in range(_DEPTH):
        looked_into = []
        for slot in level:
            if search.has_parts(slot.value):
                looked_into.append(slot)
            else:
                holdings.take(slot, search.emptying(slot))
        level = _leading_to(targets, [part for slot in looked_into for part in search.parts(slot)])
        explained = {id(part.parent) for part in level}
        for slot in looked_into:
            if id(slot) not in explained and not search.is_known(slot):
                holdings.take(slot, None)  # it holds them where nobody can see
    for slot in level:
        holdings.take(slot, None)
    return holdings


def _leading_to(targets: tuple[Any, ...], slots: list[_Slot]) -> list[_Slot]:
    """Those places from which a target can be reached; one walk over the heap for all of them."""
    if not slots or not targets:
        return []
    found = _core.reached((*(slot.value for slot in slots),), targets, libraries=libraries())
    return [slot for slot, hits in zip(slots, found, strict=True) if hits]


class _Search:
    """Goes down from the modules of custom nodes, a level at a time."""

    def __init__(self, packs: Packs) -> None:
        self._modules: dict[str, list[ModuleType]] = {}
        for pack, module in packs.modules:
            self._modules.setdefault(pack, []).append(module)
        self._own = {module.__name__ for of in self._modules.values() for module in of}
        self._code = Code([module for _, module in packs.modules])
        self._met: dict[int, _Slot] = {}

    def roots(self) -> Iterator[_Slot]:
        """The globals of every module of a pack: its own, not what it has imported."""
        for pack, modules in self._modules.items():
            for module in modules:
                within = _Slot(pack, _short_name(module), "", module, _cannot)
                for name, value in [*namespace(module).items()]:
                    if not _is_special(name) and _is_own(value, module):
                        yield self._named(within, name, value)

    def emptying(self, slot: _Slot) -> Clear | None:
        """How to empty the place of one that has no parts."""
        if type(slot.value) is functools._lru_cache_wrapper:
            return slot.value.cache_clear
        with suppress(Exception):
            return slot.emptying()
        return None

    def has_parts(self, value: Any) -> bool:
        """Whether a value is looked into, and not one thing: a model, an object of a library, a tombstone."""
        of = type(value)
        if issubclass(of, (torch.Tensor, torch.nn.Module, PurgedTensor, PurgedModule)):
            return False
        looked_into = (*_SEQUENCES, tuple, frozenset, dict, staticmethod, classmethod, type, FunctionType)
        return issubclass(of, (*looked_into, SimpleNamespace)) or self._is_own_class(of)

    def is_known(self, slot: _Slot) -> bool:
        """Whether the value of a place was looked into as that of another place."""
        return self._met.get(id(slot.value), slot) is not slot

    def parts(self, slot: _Slot) -> list[_Slot]:
        """What a value is made of; nothing if it was met before, or does not let itself be looked into."""
        if self._met.setdefault(id(slot.value), slot) is not slot:
            return []
        with suppress(Exception):
            return [*self._parts(slot)]
        return []

    def _parts(self, slot: _Slot) -> Iterator[_Slot]:
        value, of = slot.value, type(slot.value)
        if issubclass(of, dict):
            yield from self._entries(slot)
        elif issubclass(of, _SEQUENCES):
            base: Any = next(one for one in _SEQUENCES if issubclass(of, one))
            # A list inside of something else goes with that.
            emptying = slot.emptying if slot.beside is None else partial(self._leak, slot)
            yield from (slot.part(f"{slot.place}[]", one, emptying) for one in [*base.__iter__(value)])
        elif issubclass(of, (tuple, frozenset)):
            base = tuple if issubclass(of, tuple) else frozenset
            yield from (slot.part(slot.place, one, slot.emptying) for one in base.__iter__(value))
        elif issubclass(of, (staticmethod, classmethod)):
            yield slot.part(slot.place, value.__func__, _cannot)
        else:
            for name, held in [*vars(value).items()]:
                if not _is_special(name) or name == "__wrapped__":
                    yield self._named(slot, name, held)
            yield from (slot.part(slot.place, one, _cannot) for one in self._beneath(value))

    def _beneath(self, value: Any) -> Iterator[Any]:
        """What an object, a class or a function leads to besides its attributes."""
        of = type(value)
        if of is FunctionType:
            yield from (value.__defaults__, value.__kwdefaults__)
            for cell in value.__closure__ or ():
                with suppress(ValueError):  # an empty one
                    yield cell.cell_contents
        elif issubclass(of, type):
            yield from (one for one in value.__bases__ if self._is_own_class(one))
        if self._is_own_class(of):
            yield of

    def _named(self, within: _Slot, name: str, value: Any) -> _Slot:
        """A global of a module, or an attribute."""
        holder = within.value

        def emptying() -> Clear | None:
            clear = emptying_a_name(holder, name, self._functions(within.pack))
            # Or else the place of the object, with all of it. A module, class or function stays where it is.
            if clear is None and not issubclass(type(holder), (ModuleType, type, FunctionType)):
                return within.emptying()
            return clear

        beside = {**vars(holder)}
        return _Slot(within.pack, f"{within.place}.{name}", name, value, emptying, within, beside)

    def _entries(self, slot: _Slot) -> Iterator[_Slot]:
        counted = self._is_counted(slot)
        for key, value in [*dict.items(slot.value)]:
            stays = counted or issubclass(type(value), (type, FunctionType))
            emptying = _cannot if stays else partial(self._entry, slot, key)
            yield slot.part(f"{slot.place}[{_shown(key)}]", value, emptying)

    def _entry(self, slot: _Slot, key: Any) -> Clear | None:
        return emptying_an_entry(slot.value, key, slot.name, self._functions(slot.pack))

    def _leak(self, slot: _Slot) -> Clear | None:
        """A list that nobody reads keeps its tombstones: nothing in it moves up."""
        return _leave if is_only_added_to(slot.name, self._functions(slot.pack)) else None

    def _is_counted(self, slot: _Slot) -> bool:
        """Whether something beside a dict keeps a tally of it: its keys in an order, or how much is in it."""
        beside = slot.beside or {}
        keys = {*dict.keys(slot.value)}
        fill = [one for one in self._functions(slot.pack) if one.names(slot.name) and one.fills_by_key()]
        for name, one in beside.items():
            if type(one) in (int, float) and any(each.assigns(name) for each in fill):
                return True
            is_order = type(one) in _SEQUENCES and one and all(_is_key(key, keys) for key in [*one])
            if is_order and any(each.names(name) for each in fill):
                return True
        return False

    def _functions(self, pack: str) -> list[Function]:
        return self._code.of(self._modules[pack])

    def _is_own_class(self, of: type) -> bool:
        name = type.__getattribute__(of, "__module__")
        return isinstance(name, str) and name in self._own


def _leave() -> None:
    """Empty nothing."""


def _cannot() -> None:
    """Say that a place cannot be emptied."""


def _is_key(one: Any, keys: set[Any]) -> bool:
    return type(one) in _KEYS and one in keys


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_own(value: Any, module: ModuleType) -> bool:
    """Whether a global is the module's own, and not a module, class or function that it has imported."""
    of = type(value)
    if issubclass(of, type):
        return bool(type.__getattribute__(value, "__module__") == module.__name__)
    return not issubclass(of, ModuleType)


def _short_name(module: ModuleType) -> str:
    *_, last = module.__name__.replace("\\", "/").split("/")
    return last


def _shown(key: Any) -> str:
    """A key to print: one of a custom node's own class is not asked for its name."""
    text = repr(key) if type(key) in _KEYS else type(key).__name__
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."
