"""The heap as a purge finds it: what is needed, and the tensors and modules that are not."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from fastpurge import _core
from fastpurge.library_folders import libraries
from fastpurge.tensors import TensorFacts, facts_of, is_a, tensors_within


@dataclass(frozen=True, slots=True)
class Unkept:
    """A tensor that nothing needed leads to, on memory that no needed tensor stands on."""

    tensor: torch.Tensor
    facts: TensorFacts


@dataclass(frozen=True, slots=True)
class Look:
    """One snapshot of the heap.

    Attributes:
        needed: what is needed, with everything that it reaches.
        unkept: tensors that are not, on the devices that were asked about.
        modules: modules that are not.

    """

    needed: _core.IdSet
    unkept: list[Unkept]
    modules: list[torch.nn.Module]

    def large(self, min_bytes: int) -> list[weakref.ref[Any]]:
        """Those tensors and modules that are as large as this, without keeping them alive."""
        asked = _core.IdSet(one.tensor for one in self.unkept)
        found: list[Any] = [one.tensor for one in self.unkept if one.facts.nbytes >= min_bytes]
        for module in self.modules:
            of = (
                Unkept(tensor, facts) for tensor, facts in _known(tensors_within(module)) if tensor in asked
            )
            if nbytes_of(of) >= min_bytes:
                found.append(module)
        return [weakref.ref(one) for one in found]


def look(needed: tuple[object, ...], *, device_type: str | None) -> Look:
    """Tell what is needed from what is not, on devices of a type or on all."""
    snapshot = _core.snapshot(
        needed,
        [],
        scan_for=(torch.Tensor, torch.nn.Module),
        report=(torch.Tensor,),
        libraries=libraries(),
    )
    spoken_for = {facts.extent for _, facts in _known(snapshot.kept)}
    return Look(
        needed=snapshot.closure,
        unkept=[
            Unkept(tensor, facts)
            for tensor, facts in _known(snapshot.candidates)
            if device_type in (None, facts.device.type)
            and (facts.extent is None or facts.extent not in spoken_for)
        ],
        modules=[one for one in snapshot.candidates if is_a(one, torch.nn.Module)],
    )


def nbytes_of(tensors: Iterable[Unkept]) -> int:
    """Their size together, with each piece of memory counted once."""
    return sum({one.facts.extent or id(one.tensor): one.facts.nbytes for one in tensors}.values())


def _known(objects: Iterable[Any]) -> Iterator[tuple[torch.Tensor, TensorFacts]]:
    """Those that are tensors which can say what they are."""
    for one in objects:
        if is_a(one, torch.Tensor):
            with suppress(Exception):
                yield one, facts_of(one)
