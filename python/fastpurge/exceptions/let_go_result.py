"""What `let_go` freed: live tensors and modules are recorded first, and compared afterwards."""

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
    """What had a single owner, and is freed.

    Attributes:
        holder: the owner: a function of a traceback, such as ``"forward (model.py:33)"``, or an entry of a
            notebook's history, such as ``"Out[3]"``.
        items: the tensors and modules. Memory that a live tensor shares counts as 0 bytes.

    """

    holder: str
    items: tuple[Item, ...]

    @property
    def nbytes(self) -> int:
        """The size of their storages, in bytes."""
        return sum(item.nbytes for item in self.items)


@dataclass(frozen=True, slots=True)
class LetGo(Printable):
    """What was freed, by owner. What has another owner stays alive and is not in it.

    Attributes:
        held: the former owners, each with what was freed.
        remains: the reasons why something could not be freed, one line each.

    """

    held: tuple[Held, ...]
    remains: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of all freed storages, in bytes."""
        return sum(held.nbytes for held in self.held)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for `json.dumps`."""
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
    """Weak references to all live tensors and modules, to find out which are deallocated later.

    Collects garbage first, so that it is not counted for an owner.
    """

    def __init__(self) -> None:
        gc.collect()
        self._alive = [_LiveObject(weakref.ref(obj), *_facts(obj)) for obj in _core.scan(_TYPES)]

    def pop_dead(self) -> tuple[Item, ...]:
        """The items deallocated since the last call. Shared memory counts once, or not if still in use."""
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
        """The same after a garbage collection."""
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
    except Exception:  # noqa: BLE001 - a subclass whose accessors raise
        return Item("tensor", type_name(obj)), None
    return tensor_item(facts), facts.memory_range


class _KeptObjects:
    """Whether objects are kept: by the closure, by a hidden reference, or by shared memory."""

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


def reaching_unkept(owners: Iterable[object], keep: object) -> list[bool]:
    """Which of some objects reach a tensor or a module that ``keep`` does not reach.

    An object that reaches something named in ``keep`` does not count: it may be its only owner.
    """
    names = named(keep)
    alive = tuple(obj for obj in _core.scan(_TYPES) if not is_purged(obj))
    is_kept = _KeptObjects(names, alive)
    # Only names that reach tensors or modules: almost everything reaches `()` or a small number.
    leads = _core.reachable_targets(names, alive, libraries=libraries())
    needed = [name for name, indices in zip(names, leads, strict=True) if indices]
    targets = (*needed, *(obj for obj in alive if not is_kept(obj)))
    reached = _core.reachable_targets(tuple(owners), targets, libraries=libraries())
    return [bool(indices) and min(indices) >= len(needed) for indices in reached]
