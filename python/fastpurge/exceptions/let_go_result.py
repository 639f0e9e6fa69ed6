"""Dropping references that nobody meant to hold, and telling what died of it."""

import gc
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from fastpurge import _core
from fastpurge.engine.keep_argument import named
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a, type_name
from fastpurge.reporting.items import Item, as_plain, tensor_item
from fastpurge.reporting.text import Printable, human
from fastpurge.tombstones import is_purged
from fastpurge.torch_facts.hidden_references import contents, gradients, memory_ranges
from fastpurge.torch_facts.memory_ranges import MemoryRange, MemoryRangeSet
from fastpurge.torch_facts.tensors import facts_of

_TYPES = (torch.Tensor, torch.nn.Module)


@dataclass(frozen=True, slots=True)
class Held:
    """What was alive because of one holder alone, and is gone.

    Attributes:
        holder: who held it: a function of a traceback, as in ``"forward (model.py:33)"``, or an entry of
            a notebook's history, as in ``"Out[3]"``.
        items: the tensors and modules. Memory that something alive stands on as well counts as 0 bytes.

    """

    holder: str
    items: tuple[Item, ...]

    @property
    def nbytes(self) -> int:
        """The size of their storages, in bytes."""
        return sum(item.nbytes for item in self.items)


@dataclass(frozen=True, slots=True)
class LetGo(Printable):
    """What was let go, by holder; what somebody else holds as well is not in it, and lives on.

    Attributes:
        held: the holders of something that is gone.
        remains: why something could not be let go, one line each.

    """

    held: tuple[Held, ...]
    remains: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of all storages that are gone, in bytes."""
        return sum(held.nbytes for held in self.held)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values that `json.dumps` takes."""
        return {"nbytes": self.nbytes, **as_plain(self)}

    def _renderable(self) -> RenderableType:
        headline = Text(f"fastpurge let go of {human(self.nbytes)}", style="bold")
        remains = Text("\n".join(self.remains)) if self.remains else ""
        return Group(headline, *([self._table()] if self.held else []), *([remains] if remains else []))

    def _table(self) -> Table:
        table = Table("held by", *(Column(name, justify="right") for name in ("tensors", "modules", "size")))
        for held in self.held:
            kinds = [item.kind for item in held.items]
            table.add_row(
                Text(held.holder), str(kinds.count("tensor")), str(kinds.count("module")), human(held.nbytes)
            )
        return table


class LiveObjects:
    """The tensors and modules that are alive, and which of them died since it was last asked.

    Garbage is collected first, so that it is not taken for what a holder held. Holds nothing itself.
    """

    def __init__(self) -> None:
        gc.collect()
        self._alive = [_LiveObject(weakref.ref(obj), *_facts(obj)) for obj in _core.scan(_TYPES)]

    def pop_dead(self) -> tuple[Item, ...]:
        """What died since. Memory counts at the first of those that stood on it, if nothing alive does."""
        dead = [one for one in self._alive if one.reference() is None]
        if not dead:
            return ()
        self._alive = [one for one in self._alive if one.reference() is not None]
        seen: set[MemoryRange | None] = {one.memory_range for one in self._alive} - {None}
        items = []
        for one in dead:
            items.append(replace(one.item, nbytes=0) if one.memory_range in seen else one.item)
            seen |= {one.memory_range} - {None}
        return tuple(items)

    def collect_and_pop_dead(self) -> tuple[Item, ...]:
        """What died since, and what dies now that garbage is collected."""
        gc.collect()
        return self.pop_dead()


@dataclass(frozen=True, slots=True)
class _LiveObject:
    reference: weakref.ref[Any]
    item: Item
    memory_range: MemoryRange | None


def _facts(obj: Any) -> tuple[Item, MemoryRange | None]:
    if not is_a(obj, torch.Tensor):
        return Item("module", type_name(obj)), None
    try:
        facts = facts_of(obj)
    except Exception:  # noqa: BLE001 - a subclass that cannot say what it is dies like any other
        return Item("tensor", type_name(obj)), None
    return tensor_item(facts), facts.memory_range


class _KeptObjects:
    """What names keep: by the closure, by what torch and NumPy hide from it, and by memory."""

    def __init__(self, names: tuple[object, ...], alive: tuple[Any, ...]) -> None:
        self._closure = _core.closure(names, libraries=libraries())
        kept = [*names, *(obj for obj in alive if obj in self._closure)]
        self._hidden = _core.IdSet(contents(kept))
        self._hidden.update(gradients(kept) or ())
        self._memory = MemoryRangeSet(memory_ranges(kept))

    def __call__(self, obj: Any) -> bool:
        if obj in self._closure or obj in self._hidden:
            return True
        _, memory_range = _facts(obj)
        return memory_range is not None and self._memory.overlaps(memory_range)


def reaching_unkept(holders: Iterable[object], keep: object) -> list[bool]:
    """Which of some objects lead to a tensor or a module that ``keep`` does not reach.

    One that leads to something named in ``keep`` does not count: it may be what holds it.
    """
    names = named(keep)
    alive = tuple(obj for obj in _core.scan(_TYPES) if not is_purged(obj))
    is_kept = _KeptObjects(names, alive)
    # Much leads to `()` or to a small number, whoever named it.
    leads = _core.reached(names, alive, libraries=libraries())
    needed = [name for name, indices in zip(names, leads, strict=True) if indices]
    targets = (*needed, *(obj for obj in alive if not is_kept(obj)))
    reached = _core.reached(tuple(holders), targets, libraries=libraries())
    return [bool(indices) and min(indices) >= len(needed) for indices in reached]
