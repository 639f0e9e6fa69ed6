"""Who holds the memory: the live tensors and arrays of the process, by device, type, owner and module."""

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
    """One tensor or array, and who holds it.

    Attributes:
        kind: ``"tensor"`` or ``"array"``.
        type_name: the name of its class.
        shape: its shape; ``None`` if it has no single one.
        dtype: such as ``"float32"``.
        device: such as ``"cuda:0"``.
        nbytes: size of the memory that it stands on, in bytes; 0 if it is counted at another one.
        owner: the type of the nearest object that holds it, containers aside; ``"(global)"`` or ``"(local)"``
            if that is a variable.
        holder: the module or library it is held in; ``"garbage"``; ``"torchscript"``, ``"autograd hooks"``
            or ``"numpy"``; or ``"C or C++ code"``, if that is not known.
        path: code that leads to it, of the largest; ``None`` if there is none.

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
    """How many tensors and arrays have something in common, and the bytes that they stand on."""

    name: str
    count: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What an allocator holds on one device, in bytes.

    Attributes:
        live: in the tensors and arrays that were found.
        allocated: handed out: to those, and to what no Python object stands for. Of the host it is not known.
        reserved: taken from the driver, the cache included; of the host the resident set.
        fragmented: of the cache what lies between allocated blocks, and cannot be given back.

    """

    live: int
    allocated: int | None
    reserved: int
    fragmented: int

    @property
    def cached(self) -> int:
        """What the allocator keeps for later."""
        return 0 if self.allocated is None else self.reserved - self.allocated


@dataclass(frozen=True, slots=True)
class Census(Printable):
    """The live tensors and arrays of the process.

    Attributes:
        count: how many there are.
        nbytes: the memory that they stand on, in bytes; views count once.
        by_device: the shares of the devices, the largest first; so are the others.
        by_dtype: those of the types of elements.
        by_owner: those of the types that hold them.
        by_holder: those of the modules and libraries that they are held in.
        garbage: those that only reference cycles hold: `gc.collect` would free them.
        largest: the largest, each with the path to it.
        devices: what the allocator of each device holds beside them; ``"cpu"`` is the host.
        seconds: how long the census took.

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
        """The census as plain values that `json.dumps` takes."""
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
    """Say what is alive and who holds it. Touches nothing.

    Tensors, and NumPy arrays that anything holds, each counted with the memory that it stands on; memory
    that several stand on counts once, and a storage that no tensor stands on does not count. Who holds
    what is found in one walk over the heap.

    Args:
        top: how many of the largest to name, each with the path that leads to it.

    Raises:
        TypeError: ``top`` is no int.
        ValueError: ``top`` is negative.

    Examples:
        >>> import torch
        >>> cache = {"sdxl": [torch.nn.Linear(1000, 1000)]}
        >>> print(census())
        3.8M in 2 live tensors and arrays, found in ...
        >>> census(top=1).largest[0].path
        "__main__.cache['sdxl'][0].weight"

    """
    top = parse_count("top", top, "an int", "0 or more")
    started = perf_counter()
    with Unrecorded():
        found, reading = _count(roots.caller(), top), memory.read()
    largest = sorted(found, key=lambda one: -one.nbytes)[:top]
    lost = [one for one in found if one.holder == _GARBAGE]
    return Census(
        count=len(found),
        nbytes=_sum(found),
        by_device=_shares(found, "device"),
        by_dtype=_shares(found, "dtype"),
        by_owner=_shares(found, "owner"),
        by_holder=_shares(found, "holder"),
        garbage=Share(_GARBAGE, len(lost), _sum(lost)),
        largest=tuple(one for one in largest if one.nbytes),
        devices=dict(_devices(found, reading)),
        seconds=perf_counter() - started,
    )


_GARBAGE = "garbage"
_OUTSIDE = "C or C++ code"
_Found = tuple[Any, int | None, type | None, bool]


def _count(caller: FrameType | None, top: int) -> list[Holding]:
    """Every live tensor and array, with the paths of the largest."""
    starts = roots.find(caller)
    objs = [root.obj for root in starts]
    hidden = find_hidden_references(starts)
    types = (torch.Tensor, *numpy_arrays.array_types())
    found = _core.holdings(types, objs, through=PLAIN, hidden=hidden.pairs)
    found = [one for one in found if not is_purged(one[0])]
    # What is held by name counts the memory that it shares with what is not, and a tensor before an array.
    found.sort(key=lambda one: (one[1] is None, not is_a(one[0], torch.Tensor)))
    place = _Places(starts, _owners_in_cpp(found, starts))
    facts = _Facts()
    counted = [place.settle(facts.of(one[0]), one) for one in found]
    ranked = sorted(range(len(found)), key=lambda at: -counted[at].nbytes)[:top]
    chosen = [at for at in ranked if found[at][1] is not None]
    explained = explain(tuple(found[at][0] for at in chosen), caller, hidden) if chosen else []
    for at, why in zip(chosen, explained, strict=True):
        counted[at] = replace(counted[at], path=why.path)
    return counted


def _owners_in_cpp(found: list[_Found], starts: list[Root]) -> dict[int, str]:
    """Who holds what no root leads to and that is no garbage, by its identity, as far as that is known."""
    outside = [obj for obj, at, _, is_garbage in found if at is None and not is_garbage]
    among = (
        not_used_by_other_threads([obj for obj, *_ in found if is_a(obj, torch.Tensor)], starts)
        if outside
        else ()
    )
    names = cpp_owners.names_of(outside, among)
    return {id(obj): name for obj, name in zip(outside, names, strict=True) if name is not None}


class _Facts:
    """What there is to say of tensors and arrays, with memory that is met again counted once."""

    def __init__(self) -> None:
        self._counted = MemoryRangeSet()

    def of(self, obj: Any) -> Holding:
        """The facts of one."""
        return self._of_tensor(obj) if is_a(obj, torch.Tensor) else self._of_array(obj)

    def _of_tensor(self, tensor: torch.Tensor) -> Holding:
        try:
            facts = facts_of(tensor)
        except Exception:  # noqa: BLE001 - a subclass that cannot say what it is
            return Holding("tensor", type_name(tensor), None, "?", "?", 0, "", "")
        nbytes = facts.nbytes if facts.memory_range is None else self._counted.add(facts.memory_range)
        return Holding("tensor", facts.type_name, facts.shape, facts.dtype, str(facts.device), nbytes, "", "")

    def _of_array(self, array: Any) -> Holding:
        import numpy as np

        nbytes = self._counted.add(numpy_arrays.range_of_array(_owner_of(array)))
        shape, dtype = np.ndarray.shape.__get__(array), np.ndarray.dtype.__get__(array)
        return Holding("array", type_name(array), shape, str(dtype), "cpu", nbytes, "", "")


def _owner_of(array: Any) -> Any:
    """The array that a view, of whatever array, stands on."""
    while is_a(base := numpy_arrays.base_of_array(array), *numpy_arrays.array_types()):
        array = base
    return array


class _Places:
    """Where roots are, in one word each."""

    def __init__(self, starts: list[Root], owners: dict[int, str]) -> None:
        self._starts = starts
        self._owners = owners
        self._names: dict[int, str] = {}

    def settle(self, holding: Holding, found: _Found) -> Holding:
        """A holding with its owner and its holder."""
        obj, at, owner, is_garbage = found
        if at is None:
            holder = _GARBAGE if is_garbage else self._owners.get(id(obj), _OUTSIDE)
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
    """What those with the same attribute come to, the largest first."""
    groups: dict[str, list[Holding]] = {}
    for one in found:
        groups.setdefault(getattr(one, attribute), []).append(one)
    shares = [Share(name, len(group), _sum(group)) for name, group in groups.items()]
    return tuple(sorted(shares, key=lambda share: (-share.nbytes, -share.count, share.name)))


def _devices(found: list[Holding], reading: MemoryReading) -> Iterator[tuple[str, DeviceUse]]:
    live = {share.name: share.nbytes for share in _shares(found, "device")}
    yield "cpu", DeviceUse(live.get("cpu", 0), None, reading.rss, 0)
    for name, held in reading.devices.items():
        fragmented = memory.fragmented(name)
        yield name, DeviceUse(live.get(name, 0), held.allocated, held.reserved, fragmented)


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
