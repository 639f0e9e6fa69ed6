"""Where custom nodes hold what was released, at module and class level, and how they load it again.

A node that keeps its model in a global looks there first: it would meet the tombstone on every prompt until
ComfyUI is started anew. So the place is emptied, in the way that the pack's own code finds it empty: an
entry goes out of a dict, an `lru_cache` is cleared, a name or an attribute becomes ``None`` (or goes, if the
code asks with `hasattr`). Names and attributes are emptied only where some function of the pack assigns them
again: what was made on import never comes back, and its tombstone stays, to say so. A list keeps its
tombstones as well: without them what follows would move up, and be taken for something else.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

from fastpurge import _core, keep
from fastpurge.comfy.code import Code
from fastpurge.comfy.packs import Packs, namespace
from fastpurge.tombstones import PurgedModule, PurgedTensor, is_purged

_DEPTH = 8
_SHORT = 40
_SCALARS = (str, int, float, bool, type(None))

# Empties a place; whether it could.
_Clear = Callable[[], bool]


@dataclass(slots=True)
class Forgotten:
    """What became of the tombstones in custom nodes.

    Attributes:
        places: where they were taken out.
        packs: the packs that held one, whether it could be taken out or not.

    """

    places: list[str] = field(default_factory=list)
    packs: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place that holds a value, and how to empty it."""

    pack: str
    place: str
    value: Any
    clear: _Clear


def forget_tombstones() -> Forgotten:
    """Take what was released out of the globals and classes of custom nodes."""
    forgotten = Forgotten()
    tombstones = (*_core.scan((PurgedTensor, PurgedModule)),)
    search = _Search()
    level = [*search.roots()] if tombstones else []
    for _ in range(_DEPTH):
        level = [
            inner for slot in _leading_to(tombstones, level) for inner in search.look_into(slot, forgotten)
        ]
    forgotten.places = [*dict.fromkeys(forgotten.places)]
    return forgotten


def _leading_to(tombstones: tuple[Any, ...], slots: list[_Slot]) -> list[_Slot]:
    """Those places from which a tombstone can be reached; one walk over the heap for all of them."""
    if not slots:
        return []
    found = _core.reached((*(slot.value for slot in slots),), tombstones, libraries=keep.libraries())
    return [slot for slot, hits in zip(slots, found, strict=True) if hits]


class _Search:
    """Goes down from the modules of custom nodes to what holds tombstones, a level at a time."""

    def __init__(self) -> None:
        self._modules = [*Packs().modules()]
        self._pack_of = {module.__name__: pack for pack, module in self._modules}
        self._code = Code()
        self._met = _core.IdSet()

    def roots(self) -> Iterator[_Slot]:
        """The globals of every module of a pack: its own, not what it has imported."""
        for pack, module in self._modules:
            for name, value in [*namespace(module).items()]:
                if name.startswith("__") or not _is_own(value, module):
                    continue
                clear = partial(self._code.empty, module, name, (namespace(module),))
                yield _Slot(pack, f"{_short_name(module)}.{name}", value, clear)

    def look_into(self, slot: _Slot, forgotten: Forgotten) -> list[_Slot]:
        """What a value that leads to a tombstone is made of; if it has no parts, its place is emptied."""
        forgotten.packs.add(slot.pack)
        if _has_parts(slot.value) or type(slot.value).__module__ in self._pack_of:
            if slot.value in self._met:
                return []
            self._met.add(slot.value)
            return [*self._parts(slot)]
        clear = _clear_cache(slot.value) if type(slot.value) is functools._lru_cache_wrapper else slot.clear
        with suppress(Exception):  # code of the pack may run, and one place is no reason to leave the others
            if clear():
                forgotten.places.append(slot.place)
        return []

    def _parts(self, slot: _Slot) -> Iterator[_Slot]:
        value, of = slot.value, type(slot.value)
        if issubclass(of, MutableMapping):
            yield from _entries(slot)
        elif issubclass(of, (list, deque, set)):
            yield from (_Slot(slot.pack, f"{slot.place}[]", one, _leave) for one in [*value])
        elif issubclass(of, (tuple, frozenset)):
            yield from (_Slot(slot.pack, slot.place, one, slot.clear) for one in value)
        elif issubclass(of, (staticmethod, classmethod)):
            yield _Slot(slot.pack, slot.place, value.__func__, _leave)
        else:
            yield from self._attributes(slot)

    def _attributes(self, slot: _Slot) -> Iterator[_Slot]:
        """Attributes of a class, a function, an object: each is emptied, or else the place of the object."""
        holder, of = slot.value, type(slot.value)
        code = holder if issubclass(of, (type, FunctionType)) else of
        otherwise = _leave if code is holder else slot.clear
        scopes = (*(namespace(one) for pack, one in self._modules if pack == slot.pack),)
        with suppress(TypeError):  # one with slots has none to look at
            for name, value in [*vars(holder).items()]:
                if not name.startswith("__") or name == "__wrapped__":
                    clear = partial(self._code.empty, holder, name, scopes, otherwise=otherwise)
                    yield _Slot(slot.pack, f"{slot.place}.{name}", value, clear)


def _has_parts(value: Any) -> bool:
    """Whether a value is looked into, and not one thing: a tombstone, a model, an object of a library."""
    parts = (
        list,
        deque,
        set,
        tuple,
        frozenset,
        staticmethod,
        classmethod,
        type,
        FunctionType,
        SimpleNamespace,
    )
    return not is_purged(value) and issubclass(type(value), (MutableMapping, *parts))


def _entries(slot: _Slot) -> Iterator[_Slot]:
    """The entries of a dict. One that also holds plain values is a record, whose keys must stay."""
    of = slot.value
    items = [*of.items()]
    is_record = any(type(value) in _SCALARS for _, value in items)
    for key, value in items:
        if issubclass(type(value), (type, FunctionType)):
            clear: _Clear = _leave
        else:
            clear = partial(_blank, of, key) if is_record else partial(_take_out, of, key)
        yield _Slot(slot.pack, f"{slot.place}[{_shown(key)}]", value, clear)


def _leave() -> bool:
    return False


def _take_out(of: MutableMapping[Any, Any], key: Any) -> bool:
    of.pop(key, None)
    return True


def _blank(of: MutableMapping[Any, Any], key: Any) -> bool:
    of[key] = None
    return True


def _clear_cache(function: Any) -> _Clear:
    def clear() -> bool:
        function.cache_clear()
        return True

    return clear


def _is_own(value: Any, module: ModuleType) -> bool:
    """Whether a global is the module's own, and not a module or class that it has imported."""
    of = type(value)
    if issubclass(of, type):
        return bool(type.__getattribute__(value, "__module__") == module.__name__)
    return not issubclass(of, ModuleType)


def _short_name(module: ModuleType) -> str:
    *_, last = module.__name__.replace("\\", "/").split("/")
    return last


def _shown(key: Any) -> str:
    """A key to print: one of a custom node's own class is not asked for its name."""
    text = repr(key) if type(key) in _SCALARS else type(key).__name__
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."
