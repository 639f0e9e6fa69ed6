"""keep -> closure -> scan -> guards: what a sweep would release, and why it would leave the rest."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastpurge import _core, keep
from fastpurge.guards import Guard, MemoryMap
from fastpurge.report import Item
from fastpurge.request import Request
from fastpurge.tensors import Extent, facts_of, is_a, storage_of, tensors_within, type_name
from fastpurge.tombstones import is_purged


@dataclass(slots=True)
class Candidate:
    """A live tensor or module outside the closure of keep."""

    obj: Any
    item: Item
    extent: Extent | None = None


@dataclass(slots=True)
class Survey:
    """The state of the heap as a sweep sees it."""

    objects_scanned: int
    planned: list[Candidate] = field(default_factory=list)
    skipped: list[Item] = field(default_factory=list)
    spared: dict[str, int] = field(default_factory=dict)

    def tensors_with_memory(self) -> list[torch.Tensor]:
        """The tensors among the planned that stand on memory of their own."""
        return [candidate.obj for candidate in self.planned if candidate.extent is not None]


def survey(request: Request, within: list[Any] | None = None) -> Survey:
    """Find what can be released; of ``within`` only, if given. Touches nothing."""
    snapshot = _snapshot(request)
    found = Survey(snapshot.objects_scanned)
    _consider_all(snapshot.candidates, within, request, found)
    if found.planned:
        _spare_aliases(request, snapshot.kept, found)
        _spare_lent(found)
        _count_storages_once(found)
    return found


def _snapshot(request: Request) -> _core.Snapshot:
    """Closure and scan, with the roots that torch and NumPy hide.

    The hidden roots are looked for only while there is something to release, and the snapshot is
    taken anew until it shows none: what they reach may hide more.
    """
    named = keep.named(request.keep)
    scan_for = (torch.Tensor, torch.nn.Module) if request.models else (torch.Tensor,)
    hidden: list[object] = []
    known = _core.IdSet()
    while True:
        snapshot = _core.snapshot(
            named,
            hidden,
            scan_for=scan_for,
            report=keep.reported_types(),
            libraries=keep.libraries(),
        )
        if not snapshot.candidates:
            return snapshot
        fresh = []
        for root in keep.hidden(snapshot.kept):
            if root not in known:
                known.add(root)
                fresh.append(root)
        if not fresh:
            return snapshot
        hidden += fresh


def _consider_all(objects: list[Any], within: list[Any] | None, request: Request, found: Survey) -> None:
    chosen = None if within is None else _core.IdSet(within)
    for obj in objects:
        if not is_purged(obj) and (chosen is None or obj in chosen):
            _consider(obj, request, found)


def _consider(obj: Any, request: Request, found: Survey) -> None:
    """Put one candidate among the planned or the skipped, or leave it out as not asked for."""
    if is_a(obj, torch.Tensor):
        try:
            candidate = _tensor_candidate(obj, request)
        except Exception as error:  # noqa: BLE001 - a subclass or layout that cannot say what it is
            found.skipped.append(_unreadable(obj, error))
            return
    else:
        candidate = _module_candidate(obj, request)
    if candidate is not None:
        found.planned.append(candidate)


def _tensor_candidate(tensor: torch.Tensor, request: Request) -> Candidate | None:
    facts = facts_of(tensor)
    if not request.covers(facts.device) or facts.nbytes < request.min_bytes:
        return None
    item = Item("tensor", facts.type_name, facts.shape, facts.dtype, str(facts.device), facts.nbytes)
    return Candidate(tensor, item, facts.extent)


def _module_candidate(module: torch.nn.Module, request: Request) -> Candidate | None:
    """A module is asked for if all its tensors are, and they are large enough together."""
    candidate = Candidate(module, Item("module", type_name(module)))
    if request.devices is None and not request.min_bytes:
        return candidate
    sizes: dict[Extent | int, int] = {}
    for tensor in tensors_within(module):
        try:
            facts = facts_of(tensor)
        except Exception:  # noqa: BLE001 - cannot say where it is: not known to be asked for
            return None
        if not request.covers(facts.device):
            return None
        sizes[facts.extent or id(tensor)] = facts.nbytes
    return candidate if sizes and sum(sizes.values()) >= request.min_bytes else None


def _unreadable(tensor: torch.Tensor, error: Exception) -> Item:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return Item("tensor", type_name(tensor), reason=reason)


def _spare_aliases(request: Request, kept: list[object], found: Survey) -> None:
    if Guard.ALIAS not in request.guards:
        return
    memory = MemoryMap(keep.extents(kept))
    aliases = [one for one in found.planned if one.extent and memory.overlaps(one.extent)]
    if aliases:
        _drop(aliases, found)
        sizes = {one.extent: one.item.nbytes for one in aliases}
        found.spared["alias"] = sum(sizes.values())


def _spare_lent(found: Survey) -> None:
    """Skip tensors that a NumPy array stands on: released, they would pull its memory away.

    `Tensor.numpy` makes a tensor the base of the array and the storage unresizable, and nothing else
    ties the two together (torch/csrc/utils/tensor_numpy.cpp). The array is invisible to the collector,
    so such a tensor is known by a reference that no visible object accounts for.

    A local variable of a running function is such a reference too: neither this function nor one that
    calls it may hold a suspect in one.
    """
    suspects = [one for one in found.planned if one.extent and _may_be_lent(one.obj)]
    if not suspects:
        return
    objects = [one.obj for one in suspects]
    lent = [one for one, is_lent in zip(suspects, _core.untraced(objects), strict=True) if is_lent]
    _drop(lent, found)
    reason = "held from outside the garbage collector's sight (by a NumPy array, or by C++)"
    found.skipped += [replace(one.item, reason=reason) for one in lent]


def _may_be_lent(tensor: torch.Tensor) -> bool:
    storage = storage_of(tensor)
    return storage is not None and storage.device.type == "cpu" and not storage.resizable()


def _drop(candidates: list[Candidate], found: Survey) -> None:
    dropped = _core.IdSet(candidates)
    found.planned = [one for one in found.planned if one not in dropped]


def _count_storages_once(found: Survey) -> None:
    seen: set[Extent] = set()
    for one in found.planned:
        if one.extent in seen:
            one.item = replace(one.item, nbytes=0)
        elif one.extent is not None:
            seen.add(one.extent)
