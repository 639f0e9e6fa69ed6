"""The census: all live tensors and arrays of the process, by device, type, owner and module."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fastpurge import _core
from fastpurge.allocators import memory
from fastpurge.allocators.memory import MemoryReading
from fastpurge.arguments import parse_count
from fastpurge.inspection import roots
from fastpurge.inspection.roots import Root
from fastpurge.inspection.why import explain, find_hidden_references, not_used_by_other_threads
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a, safe_repr, type_name
from fastpurge.python_facts.running_code import PLAIN
from fastpurge.reporting.text import Printable, human, right
from fastpurge.tombstones import is_purged
from fastpurge.torch_facts import cpp_owners, numpy_arrays
from fastpurge.torch_facts.memory_ranges import MemoryRangeSet
from fastpurge.torch_facts.recorders import Unrecorded, never_compiled
from fastpurge.torch_facts.tensors import facts_of

_GROUPS = 10


@dataclass(frozen=True, slots=True)
class Holding:
    """One tensor or array, and its owner.

    Attributes:
        kind: ``"tensor"`` or ``"array"``.
        type_name: the name of its class.
        shape: its shape; ``None`` if it has no single one.
        dtype: such as ``"float32"``.
        device: such as ``"cuda:0"``.
        nbytes: the size of its memory in bytes; 0 if that is counted at an alias.
        owner: the type of the nearest owner that is no plain container; ``"(global)"`` or ``"(local)"`` if
            that is a variable.
        holder: the module or library whose variables lead to it; ``"garbage"``; or, for an external
            reference, ``"torchscript"``, ``"autograd hooks"``, ``"numpy"`` or, if the owner is not known,
            ``"C or C++ code"``.
        path: code that leads to it; only the largest have one. ``None`` if there is none.

    """

    kind: str
    type_name: str
    shape: tuple[int, ...] | None
    dtype: str
    device: str
    nbytes: int
    owner: str
    holder: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """The number of tensors and arrays with a property in common, and the size of their memory in bytes."""

    name: str
    count: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """The memory of one device in bytes.

    Attributes:
        live: in the tensors and arrays that were found.
        allocated: allocated by torch, also without a Python object. ``None`` for the host, where it is not
            known.
        reserved: taken from the driver, with the cache; for the host the resident set.
        fragmented: the part of the cache that cannot be freed, because it is between allocated blocks.

    """

    live: int
    allocated: int | None
    reserved: int
    fragmented: int

    @property
    def cached(self) -> int:
        """The size of the allocator's cache: reserved, but not allocated."""
        return 0 if self.allocated is None else self.reserved - self.allocated


@dataclass(frozen=True, slots=True)
class Census(Printable):
    """The live tensors and arrays of the process.

    Attributes:
        count: how many there are.
        nbytes: the size of their memory in bytes; shared memory counts once.
        by_device: shares by device, the largest first, as in the following.
        by_dtype: shares by dtype.
        by_owner: shares by the type of the owner.
        by_holder: shares by the module or library whose variables lead to them.
        garbage: those that only reference cycles keep alive: `gc.collect` would free them.
        largest: the largest, each with the path to it.
        devices: the memory of each device; ``"cpu"`` is the host.
        seconds: the duration of the census.

    """

    count: int
    nbytes: int
    by_device: tuple[Share, ...]
    by_dtype: tuple[Share, ...]
    by_owner: tuple[Share, ...]
    by_holder: tuple[Share, ...]
    garbage: Share
    largest: tuple[Holding, ...]
    devices: dict[str, DeviceUse]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The census as plain values for `json.dumps`."""
        return asdict(self)

    def _renderable(self) -> RenderableType:
        return Lines(
            Text(
                f"{human(self.nbytes)} in {self.count:,} live tensors and arrays, found in "
                f"{self.seconds * 1e3:.0f} ms",
                style="bold",
            ),
            self._devices_table(),
            _shares_table("held in", self.by_holder),
            _shares_table("held by", self.by_owner),
            _shares_table("dtype", self.by_dtype),
            _largest_table(self.largest),
            Text(
                f"garbage that is not collected yet: {human(self.garbage.nbytes)} in {self.garbage.count:,}"
            ),
        )

    def _devices_table(self) -> Table:
        table = Table(
            "device", *(right(name) for name in ("live", "allocated", "reserved", "cached", "fragmented"))
        )
        for name, use in self.devices.items():
            if use.allocated is None:
                table.add_row(f"{name} (resident)", human(use.live), "", human(use.reserved), "", "")
            else:
                sizes = (use.live, use.allocated, use.reserved, use.cached, use.fragmented)
                table.add_row(name, *map(human, sizes))
        return table


@never_compiled
def census(top: int = 20) -> Census:
    """Find all live tensors and NumPy arrays, and their owners. Touches nothing.

    Shared memory counts once. A storage without a tensor does not count. One walk over the heap finds all
    owners.

    Args:
        top: for how many of the largest to find the path.

    Returns:
        The tensors and arrays, by device, dtype and owner.

    Raises:
        TypeError: ``top`` is not an int.
        ValueError: ``top`` is negative.

    Examples:
        >>> import torch
        >>> cache = {"sdxl": [torch.nn.Linear(1000, 1000)]}
        >>> print(census())
        3.8 MiB in 2 live tensors and arrays, found in ...
        >>> census(top=1).largest[0].path
        "__main__.cache['sdxl'][0].weight"

    """
    top = parse_count("top", top, "an int", "0 or more")
    started = perf_counter()
    with Unrecorded():
        found, reading = _find_all(roots.caller(), top), memory.read()
    largest = sorted(found, key=lambda one: -one.nbytes)[:top]
    garbage = [one for one in found if one.holder == _GARBAGE]
    return Census(
        count=len(found),
        nbytes=_sum(found),
        by_device=_shares(found, "device"),
        by_dtype=_shares(found, "dtype"),
        by_owner=_shares(found, "owner"),
        by_holder=_shares(found, "holder"),
        garbage=Share(_GARBAGE, len(garbage), _sum(garbage)),
        largest=tuple(one for one in largest if one.nbytes),
        devices=dict(_devices(found, reading)),
        seconds=perf_counter() - started,
    )


_GARBAGE = "garbage"
_NATIVE_CODE = "C or C++ code"
_Found = tuple[Any, int | None, type | None, bool]


def _find_all(caller: FrameType | None, top: int) -> list[Holding]:
    """All live tensors and arrays, with paths for the largest."""
    starts = roots.find(caller)
    objs = [root.obj for root in starts]
    hidden = find_hidden_references(starts)
    types = (torch.Tensor, *numpy_arrays.array_types())
    found = _core.nearest_owners(types, objs, through=PLAIN, hidden=hidden.pairs)
    found = [one for one in found if not is_purged(one[0])]
    # Shared memory is counted at an object reachable from a root first, and at a tensor before an array.
    found.sort(key=lambda one: (one[1] is None, not is_a(one[0], torch.Tensor)))
    names = _OwnerNames(starts, _owners_in_cpp(found, starts))
    facts = _FactsReader()
    counted = [names.with_owner(facts.of(one[0]), one) for one in found]
    ranked = sorted(range(len(found)), key=lambda at: -counted[at].nbytes)[:top]
    chosen = [at for at in ranked if found[at][1] is not None]
    explained = explain(tuple(found[at][0] for at in chosen), caller, hidden) if chosen else []
    for at, why in zip(chosen, explained, strict=True):
        counted[at] = replace(counted[at], path=why.path)
    return counted


def _owners_in_cpp(found: list[_Found], starts: list[Root]) -> dict[int, str]:
    """The known owners in C and C++, by the id of the object, of what no root reaches and is no garbage."""
    outside = [obj for obj, at, _, is_garbage in found if at is None and not is_garbage]
    among = (
        not_used_by_other_threads([obj for obj, *_ in found if is_a(obj, torch.Tensor)], starts)
        if outside
        else ()
    )
    names = cpp_owners.names_of(outside, among)
    return {id(obj): name for obj, name in zip(outside, names, strict=True) if name is not None}


class _FactsReader:
    """Reads the facts of tensors and arrays, and counts shared memory once."""

    def __init__(self) -> None:
        self._counted = MemoryRangeSet()

    def of(self, obj: Any) -> Holding:
        """The facts of one."""
        return self._of_tensor(obj) if is_a(obj, torch.Tensor) else self._of_array(obj)

    def _of_tensor(self, tensor: torch.Tensor) -> Holding:
        try:
            facts = facts_of(tensor)
        except Exception:  # noqa: BLE001 - a subclass whose accessors raise
            return Holding("tensor", type_name(tensor), None, "?", "?", 0, "", "")
        nbytes = facts.nbytes if facts.memory_range is None else self._counted.add(facts.memory_range)
        return Holding("tensor", facts.type_name, facts.shape, facts.dtype, str(facts.device), nbytes, "", "")

    def _of_array(self, array: Any) -> Holding:
        import numpy as np

        nbytes = self._counted.add(numpy_arrays.range_of_array(_base_array(array)))
        shape, dtype = np.ndarray.shape.__get__(array), np.ndarray.dtype.__get__(array)
        return Holding("array", type_name(array), shape, str(dtype), "cpu", nbytes, "", "")


def _base_array(array: Any) -> Any:
    """The array that owns the memory of a view, or of a view of a view."""
    while is_a(base := numpy_arrays.base_of_array(array), *numpy_arrays.array_types()):
        array = base
    return array


class _OwnerNames:
    """Names the owners of what was found."""

    def __init__(self, starts: list[Root], owners: dict[int, str]) -> None:
        self._starts = starts
        self._owners = owners
        self._names: dict[int, str] = {}

    def with_owner(self, holding: Holding, found: _Found) -> Holding:
        """The same with its owner and its holder."""
        obj, at, owner, is_garbage = found
        if at is None:
            holder = _GARBAGE if is_garbage else self._owners.get(id(obj), _NATIVE_CODE)
            return replace(holding, owner=_name(owner, "(nobody)"), holder=holder)
        variable = "(local)" if self._starts[at].where else "(global)"
        return replace(holding, owner=_name(owner, variable), holder=self._name_of(at))

    def _name_of(self, at: int) -> str:
        if at not in self._names:
            module = self._starts[at].module
            is_library = libraries().is_library(module)
            self._names[at] = module.partition(".")[0] if is_library else module
        return self._names[at]


def _name(of: type | None, otherwise: str) -> str:
    return otherwise if of is None else safe_repr(of)


def _sum(found: Iterable[Holding]) -> int:
    return sum(one.nbytes for one in found)


def _shares(found: list[Holding], attribute: str) -> tuple[Share, ...]:
    """The sums by an attribute, the largest first."""
    groups: dict[str, list[Holding]] = {}
    for one in found:
        groups.setdefault(getattr(one, attribute), []).append(one)
    shares = [Share(name, len(group), _sum(group)) for name, group in groups.items()]
    return tuple(sorted(shares, key=lambda share: (-share.nbytes, -share.count, share.name)))


def _devices(found: list[Holding], reading: MemoryReading) -> Iterator[tuple[str, DeviceUse]]:
    live = {share.name: share.nbytes for share in _shares(found, "device")}
    yield "cpu", DeviceUse(live.get("cpu", 0), None, reading.rss, 0)
    for name, device in reading.devices.items():
        fragmented = memory.fragmented(name)
        yield name, DeviceUse(live.get(name, 0), device.allocated, device.reserved, fragmented)


def _shares_table(title: str, shares: tuple[Share, ...]) -> Table:
    table = Table(title, right("count"), right("size"))
    for share in shares[:_GROUPS]:
        table.add_row(share.name, f"{share.count:,}", human(share.nbytes))
    if rest := shares[_GROUPS:]:
        count = sum(share.count for share in rest)
        table.add_row(f"{len(rest)} more", f"{count:,}", human(sum(share.nbytes for share in rest)))
    return table


def _largest_table(largest: tuple[Holding, ...]) -> Table:
    table = Table(right("size"), "largest", "held by")
    for one in largest:
        shape = "" if one.shape is None else f" {one.shape}"
        what = f"{one.dtype} {one.type_name}{shape} on {one.device}"
        table.add_row(human(one.nbytes), what, Text(one.path or one.holder, overflow="fold"))
    return table
