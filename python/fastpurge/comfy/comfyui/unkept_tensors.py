"""The heap as a purge finds it: what is needed, what custom nodes keep, and what neither leads to."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from fastpurge import _core
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts import hidden_references
from fastpurge.torch_facts.tensors import TensorFacts, facts_of, tensors_within

_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
_text_of: dict[type, Callable[[Any], str]] = {of: of.__repr__ for of in _PROXIES}


@dataclass(frozen=True, slots=True)
class Unkept:
    """A tensor that nothing needed leads to, on memory that no needed tensor stands on."""

    tensor: torch.Tensor
    facts: TensorFacts


@dataclass(frozen=True, slots=True)
class Look:
    """One snapshot of the heap.

    Attributes:
        unkept: tensors that nothing leads to, on the devices that were asked about.
        modules: modules that nothing leads to.
        kept: tensors that only custom nodes keep, on those devices.
        hidden: what they lead to all the same, by weak references and arrays.

    """

    unkept: list[Unkept]
    modules: list[torch.nn.Module]
    kept: list[Unkept]
    hidden: list[Any]

    def large(self, min_bytes: int) -> list[weakref.ref[Any]]:
        """What nothing leads to and is as large as this, without keeping it alive."""
        asked = _core.IdSet(one.tensor for one in self.unkept)
        found: list[Any] = [one.tensor for one in self.unkept if one.facts.nbytes >= min_bytes]
        for module in self.modules:
            of = (Unkept(tensor, facts) for tensor, facts in known(tensors_within(module)) if tensor in asked)
            if nbytes_of(of) >= min_bytes:
                found.append(module)
        return [weakref.ref(one) for one in found]


def look(
    needed: tuple[object, ...],
    kept: list[Any],
    *,
    boundary: list[Any],
    device_type: str | None,
    min_bytes: int,
) -> Look:
    """Tell what is needed, and what custom nodes keep, from what is neither, on devices of a type or on all.

    What is hidden from the closure belongs to them as well: NumPy arrays hold objects, and a node looks up in
    a weak dictionary what is alive only because ComfyUI has it in its cache. That is looked for only if there
    are so many bytes to take. ``boundary`` is not entered.
    """
    hidden: list[Any] = []
    looked_behind: list[Any] = []
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
        spoken_for = {facts.memory_range for _, facts in known(snapshot.kept)}
        unkept = [*_on(device_type, snapshot.candidates, spoken_for)]
        more = _hidden_by(snapshot, looked_behind) if nbytes_of(unkept) >= min_bytes else []
        if not more:
            modules = [one for one in snapshot.candidates if is_a(one, torch.nn.Module)]
            return Look(unkept, modules, [*_on(device_type, snapshot.spared, set())], hidden)
        hidden += more


def _hidden_by(snapshot: _core.Snapshot, looked_behind: list[Any]) -> list[Any]:
    """What is not in a closure, and hidden by something in it that was not looked behind before."""
    before = _core.IdSet(looked_behind)
    fresh = [one for one in snapshot.kept if one not in before]
    looked_behind += fresh
    found = (*_behind(fresh), *hidden_references.contents(fresh))
    return [one for one in found if one not in snapshot.closure]


def _on(device_type: str | None, objects: list[Any], spoken_for: set[Any]) -> Iterator[Unkept]:
    """The tensors on devices of a type, but for those on memory that is spoken for."""
    for tensor, facts in known(objects):
        if device_type in (None, facts.device.type) and (
            facts.memory_range is None or facts.memory_range not in spoken_for
        ):
            yield Unkept(tensor, facts)


def _behind(objects: list[Any]) -> Iterator[Any]:
    """What the weak references among some objects refer to."""
    behind = (weakref.ref.__call__(one) for one in objects if is_a(one, weakref.ref))
    yield from (one for one in behind if one is not None)
    # A proxy hands on whatever it is asked, but for its text, which is made in C and ends in an address
    # (`proxy_repr` in Objects/weakrefobject.c).
    texts = [_text_of[type(one)](one) for one in objects if type(one) in _text_of]
    addresses = {int(text.rpartition(" ")[2].rstrip(">"), 16) for text in texts}
    if addresses:
        objects = gc.get_objects()
        yield from (one for at, one in zip(map(id, objects), objects, strict=True) if at in addresses)


def nbytes_of(tensors: Iterable[Unkept]) -> int:
    """Their size together, with each piece of memory counted once."""
    return sum({one.facts.memory_range or id(one.tensor): one.facts.nbytes for one in tensors}.values())


def known(objects: Iterable[Any]) -> Iterator[tuple[torch.Tensor, TensorFacts]]:
    """Those that are tensors which can say what they are."""
    for one in objects:
        if is_a(one, torch.Tensor):
            with suppress(Exception):
                yield one, facts_of(one)
