"""Taking memory away: release, tombstones, wipe. All or nothing per object.

An object is released by changing places with a blank: class, attributes and, of a tensor, the
`TensorImpl` (`torch.utils.swap_tensors` is built on the same call). What C++ still holds of a tensor, in
an autograd graph say, stays intact and lives as long as C++ needs it: a sweep cannot corrupt what it
cannot see. And what the object was lives on in the blank until all is done, then dies the usual way, with
its finalizer.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch._C import DisableTorchFunction, TensorBase

from fastpurge.engine.candidates import Candidate
from fastpurge.engine.survey import Survey
from fastpurge.python_facts.object_types import reason_of
from fastpurge.reporting.items import Item
from fastpurge.tombstones import PurgedModule, PurgedTensor, ReleaseRecord, set_release_record
from fastpurge.torch_facts import address_readers
from fastpurge.torch_facts.memory_ranges import MemoryRange
from fastpurge.torch_facts.tensors import is_undefined, range_of_storage, storage_of

_hook_fields = [
    cast(Any, TensorBase._backward_hooks),
    cast(Any, TensorBase)._post_accumulate_grad_hooks,
]
_IN_USE = "came into use while the sweep was under way, or is held by something that cannot be released"


def release(found: Survey, label: str, *, wipe: bool) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Make tombstones of what was planned and drop what it held; say what was released, and what not.

    What refuses, or has come into use since the survey, is as before, and so is all that it reaches.
    """
    storages = storages_to_wipe(found.tensors_with_memory()) if wipe else []
    refused: list[Item] = []
    while found.planned:
        blanks = [_blank(one.item, label) for one in found.planned]
        refusals = dict(found.exchange(blanks))
        if not refusals:
            _drop_hooks(found.planned)
            address_readers.wait_for(one.item.device for one in found.planned if one.item.device)
            del blanks  # here the memory is let go
            break
        refused += [_why(one.item, refusals[index]) for index, one in _still_there(found.planned, refusals)]
        found.keep(found.planned[index].obj for index in refusals)
        found.planned = [one for index, one in enumerate(found.planned) if index not in refusals]
    unwiped = _wipe(storages)
    released = (_told_of_wipe(one, unwiped) for one in found.planned)
    return tuple(released), tuple(refused)


def _still_there(planned: list[Candidate], indices: Iterable[int]) -> list[tuple[int, Candidate]]:
    """Of some that were planned, those that no other thread has dropped meanwhile."""
    return [(index, planned[index]) for index in indices if not is_undefined(planned[index].obj)]


def _why(item: Item, error: BaseException | None) -> Item:
    return replace(item, reason=_IN_USE if error is None else reason_of(error))


def _drop_hooks(released: Iterable[Candidate]) -> None:
    """Drop the hooks that stay with the Python object; the implementation has references of its own."""
    with DisableTorchFunction():
        for one in released:
            if one.item.kind == "tensor":
                for hooks in _hook_fields:
                    hooks.__set__(one.obj, None)


# References to what a list has, a loop is at, and `sys.getrefcount` is passed.
_OF_ONE_IN_A_LIST = 3


def storages_to_wipe(tensors: Iterable[torch.Tensor]) -> list[torch.UntypedStorage]:
    """The storages of tensors about to be released that may be written to once nobody holds them.

    Takes tensors that stand on memory of their own (that have an memory_range).

    Memory that torch did not allocate is left out: files mapped into memory (a write would copy the
    pages in), memory shared with other processes, and memory lent by NumPy or another library. Such
    storages cannot be resized, and neither can one that was lent to NumPy.
    """
    unique = {}
    for tensor in tensors:
        storage = storage_of(tensor)
        if storage is not None and storage.resizable() and not _is_shared(storage):
            unique[storage._cdata] = storage
    return list(unique.values())


def _wipe(storages: list[torch.UntypedStorage]) -> dict[MemoryRange | None, str]:
    """Overwrite with zeros each storage that nothing but this list holds; say why not, where that failed."""
    failed: dict[MemoryRange | None, str] = {}
    # A mode of the caller's, such as that of fake tensors, would be asked to write.
    with torch._C._DisableTorchDispatch():
        for storage in storages:
            # Whoever holds the same Python object of the storage is one owner with this list.
            shared = sys.getrefcount(storage) > _OF_ONE_IN_A_LIST
            if torch._C._storage_Use_Count(storage._cdata) == 1 and not shared:
                try:
                    cast(Any, storage).fill_(0)
                except Exception as error:  # noqa: BLE001 - a device that is lost; all is released by now
                    failed[range_of_storage(storage, storage.device)] = reason_of(error)
    return failed


def _told_of_wipe(one: Candidate, unwiped: Mapping[MemoryRange | None, str]) -> Item:
    reason = unwiped.get(one.memory_range) if one.memory_range else None
    return replace(one.item, reason=f"not overwritten: {reason}") if reason else one.item


def _is_shared(storage: torch.UntypedStorage) -> bool:
    return storage.device.type == "cpu" and storage.is_shared()


def _blank(item: Item, label: str) -> object:
    """A new tombstone that remembers an item."""
    blank = _blank_tensor(item) if item.kind == "tensor" else object.__new__(PurgedModule)
    set_release_record(blank, ReleaseRecord(item.describe(), label))
    return blank


def _blank_tensor(item: Item) -> torch.Tensor:
    """A tensor with the shape and type of another, and no memory.

    It is a meta tensor: `Tensor.data = tombstone` and DLPack, which dispatch nothing, refuse those.
    """
    try:
        return _wrapper(item.shape or (0,), dtype=getattr(torch, item.dtype or "uint8"))
    except (RuntimeError, TypeError):  # a quantized dtype
        return _wrapper((0,), dtype=torch.uint8)


def _wrapper(shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
    make: Any = torch.Tensor._make_wrapper_subclass
    tensor: torch.Tensor = make(PurgedTensor, shape, dtype=dtype, device="meta")
    return tensor
