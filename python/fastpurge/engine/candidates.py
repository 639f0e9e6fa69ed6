"""Candidates: the live tensors and modules that the request covers, each with its item in the report."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from fastpurge.engine.request import Request
from fastpurge.python_facts.object_types import is_a, reason_of, type_name
from fastpurge.reporting.items import Item, tensor_item
from fastpurge.tombstones import has_room_for_tombstone, is_purged
from fastpurge.torch_facts.memory_ranges import MemoryRange
from fastpurge.torch_facts.tensors import (
    facts_of,
    is_undefined,
    is_wrapper,
    may_have_numpy_array,
    retains_grad,
    tensors_within,
)


@dataclass(slots=True)
class Candidate:
    """A live tensor or module outside the closure of keep."""

    obj: Any
    item: Item
    memory_range: MemoryRange | None = None


def consider(obj: Any, request: Request) -> Candidate | None:
    """The candidate for a tensor or module, with a reason if it cannot be released.

    ``None`` if the request does not cover it.
    """
    if is_purged(obj):
        return None
    candidate = (_tensor_candidate if is_a(obj, torch.Tensor) else _module_candidate)(obj, request)
    if candidate is not None and candidate.item.reason is None and not has_room_for_tombstone(obj):
        if candidate.memory_range is None and is_wrapper(obj):
            return None  # a DTensor: the tensors that it wraps own the memory, and are released themselves
        reason = f"the class {candidate.item.type_name} has a layout of its own (__slots__)"
        candidate.item = replace(candidate.item, reason=reason)
    return candidate


def _tensor_candidate(tensor: torch.Tensor, request: Request) -> Candidate | None:
    try:
        facts = facts_of(tensor)
    except BaseException as error:  # a subclass or layout whose accessors raise
        if is_a(error, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        if is_undefined(tensor):
            return None
        error.__traceback__ = (
            None  # its frames reference this survey, and the tensor's class may keep the error
        )
        return Candidate(tensor, Item("tensor", type_name(tensor), reason=reason_of(error)))
    if not request.covers(facts.device) or facts.nbytes < request.min_bytes:
        return None
    reason = "torch references it weakly, for its gradient (retain_grad)" if retains_grad(tensor) else None
    return Candidate(tensor, replace(tensor_item(facts), reason=reason), facts.memory_range)


def _module_candidate(module: torch.nn.Module, request: Request) -> Candidate | None:
    """The request covers a module if it covers all of its tensors, and they are large enough together."""
    candidate = Candidate(module, Item("module", type_name(module)))
    if request.devices is None and not request.min_bytes:
        return candidate
    sizes: dict[MemoryRange | int, int] = {}
    for tensor in tensors_within(module):
        try:
            facts = facts_of(tensor)
        except Exception:  # noqa: BLE001 - its device is unknown, so it is not covered
            return None
        if not request.covers(facts.device):
            return None
        sizes[facts.memory_range or id(tensor)] = facts.nbytes
    return candidate if sizes and sum(sizes.values()) >= request.min_bytes else None


def count_storages_once(candidates: list[Candidate]) -> None:
    """Set the size of all candidates on the same memory to 0, except the first."""
    seen: set[MemoryRange] = set()
    for one in candidates:
        if one.memory_range in seen:
            one.item = replace(one.item, nbytes=0)
        elif one.memory_range is not None:
            seen.add(one.memory_range)


def candidate_may_have_numpy_array(candidate: Candidate) -> bool:
    """Whether a NumPy array may share the memory of a candidate."""
    return candidate.memory_range is not None and may_have_numpy_array(candidate.obj)
