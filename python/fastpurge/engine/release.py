"""Release: tensors and modules become tombstones, and their memory is freed. All or nothing per object.

The object swaps its contents with a new tombstone: the class, the attributes and, for a tensor, the
`TensorImpl` (`torch.utils.swap_tensors` uses the same call). A `TensorImpl` that C++ still references, for
example in an autograd graph, stays intact and lives as long as C++ needs it: a sweep cannot corrupt what it
cannot see. The old contents live in the new object until all swaps are done. Then they are deallocated as
usual, with their finalizers.
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
_IN_USE = "came into use during the sweep, or something that cannot be released references it"


def release(found: Survey, label: str, *, wipe: bool) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Replace the planned objects by tombstones and free their memory. Returns the released and the skipped.

    An object that cannot be swapped, or has come into use since the survey, stays unchanged, and so does
    everything reachable from it.
    """
    storages = storages_to_wipe(found.tensors_with_memory()) if wipe else []
    refused: list[Item] = []
    while found.planned:
        blanks = [_blank(one.item, label) for one in found.planned]
        refusals = dict(found.exchange(blanks))
        if not refusals:
            _drop_hooks(found.planned)
            address_readers.wait_for(one.item.device for one in found.planned if one.item.device)
            del blanks  # this deallocates the old contents
            break
        refused += [
            _with_reason(one.item, refusals[index]) for index, one in _still_there(found.planned, refusals)
        ]
        found.keep(found.planned[index].obj for index in refusals)
        found.planned = [one for index, one in enumerate(found.planned) if index not in refusals]
    unwiped = _wipe(storages)
    released = (_with_wipe_failure(one, unwiped) for one in found.planned)
    return tuple(released), tuple(refused)


def _still_there(planned: list[Candidate], indices: Iterable[int]) -> list[tuple[int, Candidate]]:
    """The candidates at these indices, without those that another thread has dropped since."""
    return [(index, planned[index]) for index in indices if not is_undefined(planned[index].obj)]


def _with_reason(item: Item, error: BaseException | None) -> Item:
    return replace(item, reason=_IN_USE if error is None else reason_of(error))


def _drop_hooks(released: Iterable[Candidate]) -> None:
    """Drop the hooks that stay with the Python object. The `TensorImpl` has its own references to them."""
    with DisableTorchFunction():
        for one in released:
            if one.item.kind == "tensor":
                for hooks in _hook_fields:
                    hooks.__set__(one.obj, None)


# The references to an object in a list: of the list, the loop variable and the argument of `sys.getrefcount`.
_OF_ONE_IN_A_LIST = 3


def storages_to_wipe(tensors: Iterable[torch.Tensor]) -> list[torch.UntypedStorage]:
    """The storages of these tensors that torch allocated itself: only these may be overwritten.

    Left out are files mapped into memory (a write would copy their pages into memory), memory shared with
    other processes, and memory of NumPy or another library. Such a storage is not resizable. Nor is a storage
    that `Tensor.numpy` has exported.

    Args:
        tensors: tensors with memory of their own (with a memory range).

    """
    unique = {}
    for tensor in tensors:
        storage = storage_of(tensor)
        if storage is not None and storage.resizable() and not _is_shared(storage):
            unique[storage._cdata] = storage
    return list(unique.values())


def _wipe(storages: list[torch.UntypedStorage]) -> dict[MemoryRange | None, str]:
    """Overwrite each storage that only this list owns with zeros. Returns the reasons where that failed."""
    failed: dict[MemoryRange | None, str] = {}
    # Otherwise a dispatch mode of the caller, such as FakeTensorMode, would intercept the write.
    with torch._C._DisableTorchDispatch():
        for storage in storages:
            # Other references to the same Python storage are not in its C++ use count.
            shared = sys.getrefcount(storage) > _OF_ONE_IN_A_LIST
            if torch._C._storage_Use_Count(storage._cdata) == 1 and not shared:
                try:
                    cast(Any, storage).fill_(0)
                except Exception as error:  # noqa: BLE001 - the device is lost; everything is released already
                    failed[range_of_storage(storage, storage.device)] = reason_of(error)
    return failed


def _with_wipe_failure(one: Candidate, unwiped: Mapping[MemoryRange | None, str]) -> Item:
    reason = unwiped.get(one.memory_range) if one.memory_range else None
    return replace(one.item, reason=f"not overwritten: {reason}") if reason else one.item


def _is_shared(storage: torch.UntypedStorage) -> bool:
    return storage.device.type == "cpu" and storage.is_shared()


def _blank(item: Item, label: str) -> object:
    """A new tombstone for an item."""
    blank = _blank_tensor(item) if item.kind == "tensor" else object.__new__(PurgedModule)
    set_release_record(blank, ReleaseRecord(item.describe(), label))
    return blank


def _blank_tensor(item: Item) -> torch.Tensor:
    """A tensor with the shape and dtype of another, and no memory.

    It is on the meta device, because `Tensor.data = tombstone` and DLPack never dispatch, but refuse meta
    tensors.
    """
    try:
        return _wrapper(item.shape or (0,), dtype=getattr(torch, item.dtype or "uint8"))
    except (RuntimeError, TypeError):  # a quantized dtype
        return _wrapper((0,), dtype=torch.uint8)


def _wrapper(shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
    make: Any = torch.Tensor._make_wrapper_subclass
    tensor: torch.Tensor = make(PurgedTensor, shape, dtype=dtype, device="meta")
    return tensor
