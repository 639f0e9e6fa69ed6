"""Taking memory away: release, tombstones, wipe. All or nothing per object.

A tensor is released by swapping its `TensorImpl` with that of a tombstone (`torch.utils.swap_tensors`
is built on the same call). What C++ still holds of it, in an autograd graph say, stays intact and
lives as long as C++ needs it: a sweep cannot corrupt what it cannot see.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch._C import DisableTorchFunctionSubclass, TensorBase

from fastpurge.report import Item
from fastpurge.tensors import attributes_of, storage_of
from fastpurge.tombstones import Epitaph, PurgedModule, PurgedTensor, bury

_class = cast(Any, object.__dict__["__class__"])
_tensor_dict = cast(Any, torch.Tensor.__dict__["__dict__"])
_hook_fields = [
    cast(Any, TensorBase._backward_hooks),
    cast(Any, TensorBase)._post_accumulate_grad_hooks,
]


def release_tensor(tensor: torch.Tensor, item: Item, label: str) -> None:
    """Make a tombstone of a tensor and drop what it held.

    Raises whatever torch or CPython raises where that cannot be done; the tensor is then as before.
    """
    epitaph = Epitaph(item.describe(), label)
    with DisableTorchFunctionSubclass():
        remains = _blank(item)
        _swap(tensor, remains)
        # These stay with the Python object; the implementation has references of its own.
        for hooks in _hook_fields:
            hooks.__set__(tensor, None)
        bury(tensor, epitaph)


def release_module(module: torch.nn.Module, item: Item, label: str) -> None:
    """Make a tombstone of a module and let go of what it held.

    Raises `TypeError` where the class has a layout of its own; the module is then as before.
    """
    attributes = attributes_of(module)
    # First the class, which can be refused; nothing after it can.
    _class.__set__(module, PurgedModule)
    # Whoever holds the module's own dict still holds its parameters; let them go as well.
    for name in ("_parameters", "_buffers", "_modules"):
        if isinstance(held := attributes.get(name), dict):
            dict.clear(held)
    bury(module, Epitaph(item.describe(), label))


def storages_to_wipe(tensors: Iterable[torch.Tensor]) -> list[torch.UntypedStorage]:
    """The storages of tensors about to be released that may be written to once nobody holds them.

    Takes tensors that stand on memory of their own (that have an extent).

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


def wipe(storages: list[torch.UntypedStorage]) -> None:
    """Overwrite with zeros each storage that nothing but this list holds."""
    for storage in storages:
        if torch._C._storage_Use_Count(storage._cdata) == 1:
            cast(Any, storage).fill_(0)


def _is_shared(storage: torch.UntypedStorage) -> bool:
    return storage.device.type == "cpu" and storage.is_shared()


def _blank(item: Item) -> torch.Tensor:
    """A tombstone without memory: the released tensor's shape, type and device, and no storage."""
    shape = item.shape if item.shape is not None else (0,)
    try:
        return _wrapper(shape, dtype=getattr(torch, item.dtype or "uint8"), device=item.device)
    except (RuntimeError, TypeError):  # a quantized dtype, a device without a wrapper
        return _wrapper((0,), dtype=torch.uint8, device="cpu")


def _wrapper(shape: tuple[int, ...], **options: Any) -> torch.Tensor:
    make = torch.Tensor._make_wrapper_subclass
    tensor: torch.Tensor = make(PurgedTensor, shape, **options)
    return tensor


def _swap(tensor: torch.Tensor, blank: torch.Tensor) -> None:
    """Exchange class, attributes and implementation: ``blank`` becomes what ``tensor`` was."""
    was = type(tensor)
    _class.__set__(tensor, PurgedTensor)
    try:
        torch._C._swap_tensor_impl(tensor, blank)
    except BaseException:
        _class.__set__(tensor, was)
        raise
    # C++ may hand the old implementation back to Python some day, and finds it in `blank`.
    _class.__set__(blank, was)
    attributes = _tensor_dict.__get__(tensor)
    _tensor_dict.__get__(blank).update(attributes)
    attributes.clear()
