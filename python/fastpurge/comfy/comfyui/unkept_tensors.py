"""Tensors and modules that neither the prompt nor custom nodes reach, found in snapshots of the heap."""

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch

from fastpurge import _core
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts import hidden_references
from fastpurge.torch_facts.tensors import TensorFacts, facts_of, tensors_within

_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)


@dataclass(frozen=True, slots=True)
class Unkept:
    """A tensor outside the closure, whose memory is not shared with a tensor inside it."""

    tensor: torch.Tensor
    facts: TensorFacts


@dataclass(frozen=True, slots=True)
class HeapSnapshot:
    """One snapshot of the heap.

    Attributes:
        unkept: tensors on the requested devices that neither the prompt nor custom nodes reach.
        modules: modules that neither reaches.
        kept: tensors on those devices that only custom nodes reach.
        hidden: objects that both reach only through weak references and NumPy arrays.

    """

    unkept: list[Unkept]
    modules: list[torch.nn.Module]
    kept: list[Unkept]
    hidden: list[Any]

    def large(self, min_bytes: int) -> list[weakref.ref[Any]]:
        """Weak references to the unkept tensors and modules of at least ``min_bytes``."""
        unkept = _core.IdSet(one.tensor for one in self.unkept)
        found: list[Any] = [one.tensor for one in self.unkept if one.facts.nbytes >= min_bytes]
        for module in self.modules:
            inside = (Unkept(*of) for of in with_facts(tensors_within(module)) if of[0] in unkept)
            if nbytes_of(inside) >= min_bytes:
                found.append(module)
        return [weakref.ref(one) for one in found]


def take_snapshot(
    needed: tuple[object, ...],
    kept: list[Any],
    *,
    boundary: list[Any],
    device_type: str | None,
    min_bytes: int,
) -> HeapSnapshot:
    """Find the tensors and modules that neither ``needed`` nor ``kept`` (roots of custom nodes) reaches.

    Objects that the closure cannot reach count as reached too if they are elements of a NumPy array, or the
    referents of a weak reference: a node may look up in a weak dictionary what only ComfyUI's cache keeps
    alive. Finding those costs another snapshot, which is taken only if ``min_bytes`` could be freed.

    Args:
        needed: what the prompt needs.
        kept: what custom nodes keep.
        boundary: objects that the closure does not enter.
        device_type: such as ``"cpu"``; None for every device.
        min_bytes: below this total, hidden references are not followed.

    """
    hidden: list[Any] = []
    expanded: list[Any] = []
    while True:
        snapshot = _core.snapshot(
            needed,
            [],
            guarded=[*kept, *hidden],
            boundary=boundary,
            scan_for=(torch.Tensor, torch.nn.Module),
            report=(*hidden_references.reported_types(), weakref.ref, *_PROXIES),
            libraries=libraries(),
        )
        kept_ranges = {facts.memory_range for _, facts in with_facts(snapshot.kept)}
        unkept = [*_on_device(device_type, snapshot.candidates, kept_ranges)]
        more = _newly_hidden(snapshot, expanded) if nbytes_of(unkept) >= min_bytes else []
        if not more:
            modules = [one for one in snapshot.candidates if is_a(one, torch.nn.Module)]
            return HeapSnapshot(unkept, modules, [*_on_device(device_type, snapshot.spared, set())], hidden)
        hidden += more


def _newly_hidden(snapshot: _core.Snapshot, expanded: list[Any]) -> list[Any]:
    """Hidden referents that are not in the closure yet, of objects not expanded before."""
    before = _core.IdSet(expanded)
    fresh = [one for one in snapshot.kept if one not in before]
    expanded += fresh
    found = (*_weak_referents(fresh), *hidden_references.contents(fresh))
    return [one for one in found if one not in snapshot.closure]


def _on_device(device_type: str | None, objects: list[Any], kept_ranges: set[Any]) -> Iterator[Unkept]:
    """The tensors on devices of a type, without those that share memory with kept tensors."""
    for tensor, facts in with_facts(objects):
        if device_type in (None, facts.device.type) and (
            facts.memory_range is None or facts.memory_range not in kept_ranges
        ):
            yield Unkept(tensor, facts)


def _weak_referents(objects: list[Any]) -> Iterator[Any]:
    """The live referents of the weak references and proxies among some objects."""
    referents = (weakref.ref.__call__(one) for one in objects if is_a(one, weakref.ref))
    yield from (one for one in referents if one is not None)
    # A proxy forwards every operation but `repr`, whose text ends in the address of the referent
    # (`proxy_repr` in Objects/weakrefobject.c).
    texts = [cast(Any, of).__repr__(one) for one in objects for of in _PROXIES if type(one) is of]
    addresses = {int(text.rpartition(" ")[2].rstrip(">"), 16) for text in texts}
    if addresses:
        objects = gc.get_objects()
        yield from (one for at, one in zip(map(id, objects), objects, strict=True) if at in addresses)


def nbytes_of(tensors: Iterable[Unkept]) -> int:
    """Their total size in bytes; shared memory counts once."""
    return sum({one.facts.memory_range or id(one.tensor): one.facts.nbytes for one in tensors}.values())


def with_facts(objects: Iterable[Any]) -> Iterator[tuple[torch.Tensor, TensorFacts]]:
    """The tensors among some objects with their facts, without those whose facts cannot be read."""
    for one in objects:
        if is_a(one, torch.Tensor):
            with suppress(Exception):
                yield one, facts_of(one)
