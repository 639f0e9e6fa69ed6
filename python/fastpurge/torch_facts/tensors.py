"""Facts about tensors and modules, read with the accessors of `TensorBase` and `nn.Module` themselves.

No property, `__getattr__` or `__torch_function__` of a subclass runs. A subclass can still intercept some
reads, by `__torch_dispatch__` with a custom size or device policy, and raise; callers expect that.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch._C import DisableTorchFunction, TensorBase

from fastpurge.python_facts.object_types import is_a, type_name
from fastpurge.torch_facts.memory_ranges import MemoryRange
from fastpurge.torch_facts.recorders import Unrecorded

_mro = cast(Any, type.__dict__["__mro__"]).__get__
_class_dict = cast(Any, type.__dict__["__dict__"]).__get__
_get_module_dict = cast(Any, torch.nn.Module.__dict__["__dict__"]).__get__
_shape = cast(Any, TensorBase.shape).__get__
_dtype = cast(Any, TensorBase.dtype).__get__
_device = cast(Any, TensorBase.device).__get__
_layout = cast(Any, TensorBase.layout).__get__
use_count: Any = cast(Any, TensorBase)._use_count
"""The C++ use count of a tensor; its Python object counts 1. Call it with torch functions disabled."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a report says about a tensor. ``memory_range`` is ``None`` if it has no storage of its own."""

    type_name: str
    shape: tuple[int, ...] | None
    dtype: str
    device: torch.device
    memory_range: MemoryRange | None
    nbytes: int


def facts_of(tensor: torch.Tensor) -> TensorFacts:
    """Read a tensor's facts. Raises whatever the accessors of the tensor's layout or subclass raise."""
    with DisableTorchFunction():
        device = _device(tensor)
        storage = storage_of(tensor)
        memory_range = range_of_storage(storage, device) if storage is not None else None
        return TensorFacts(
            type_name=type_name(tensor),
            shape=_shape_of(tensor),
            dtype=str(_dtype(tensor)).removeprefix("torch."),
            device=device,
            memory_range=memory_range,
            nbytes=memory_range.end - memory_range.start if memory_range else _nbytes_without_storage(tensor),
        )


def _shape_of(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The shape; -1 for a ragged or symbolic size, ``None`` where the layout has no single shape."""
    try:
        return tuple(size if type(size) is int else -1 for size in _shape(tensor))
    except RuntimeError:
        return None


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor, or ``None`` where the layout or the subclass has none."""
    try:
        with DisableTorchFunction():
            # Before torch 2.10 C++ takes the storage first, and waits for the GIL to take the rest
            # (`TensorImpl::release_resources`). To read the storage then dereferences a null pointer.
            return TensorBase.untyped_storage(tensor) if use_count(tensor) else None
    except Exception:  # noqa: BLE001 - a layout or a subclass may raise anything
        return None


def has_cpp_owner(obj: object) -> bool:
    """Whether C++ owns a tensor besides its Python object: as a gradient, base of a view, in a graph."""
    with DisableTorchFunction():
        return is_a(obj, torch.Tensor) and bool(use_count(obj) > 1)


def is_undefined(obj: object) -> bool:
    """Whether the Python object has lost its C++ tensor: before torch 2.10, while another thread drops it."""
    with DisableTorchFunction():
        return is_a(obj, torch.Tensor) and bool(use_count(obj) == 0)


def is_wrapper(obj: object) -> bool:
    """Whether an object is of a subclass that wraps other tensors, by the protocol of torch.compile.

    As `is_traceable_wrapper_subclass` in torch/utils/_python_dispatch.py, but without calling the object.
    """
    return is_a(obj, torch.Tensor) and any("__tensor_flatten__" in _class_dict(of) for of in _mro(type(obj)))


def may_have_numpy_array(tensor: torch.Tensor) -> bool:
    """Whether a NumPy array may share a tensor's memory: `Tensor.numpy` makes the storage not resizable."""
    storage = storage_of(tensor)
    return storage is not None and storage.device.type == "cpu" and not storage.resizable()


def retains_grad(tensor: torch.Tensor) -> bool:
    """Whether `retain_grad` was called on a tensor that is no leaf.

    Its hook has a weak reference to the tensor's implementation (`retain_grad` in torch/csrc/autograd/
    variable.cpp), and torch swaps none that has one.
    """
    with DisableTorchFunction():
        return bool(cast(Any, TensorBase).retains_grad.__get__(tensor))


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether a tensor is in pinned host memory. ``True`` if that cannot be read."""
    try:
        with DisableTorchFunction():
            return TensorBase.is_pinned(tensor)
    except Exception:  # noqa: BLE001 - a layout or a subclass without an answer
        return True


def _reference_themselves_if_owned() -> bool:
    with Unrecorded():
        base, other = torch.empty(0, device="cpu"), torch.empty(0, device="cpu")
        view = base.view(0)  # owns its base in C++
        has_reference = sys.getrefcount(base) > sys.getrefcount(other)
        del view
        return has_reference


OWNED_TENSORS_REFERENCE_THEMSELVES = _reference_themselves_if_owned()
"""Whether a tensor with an owner in C++ references its own Python object
(https://github.com/pytorch/pytorch/pull/167564). Before that change, a tensor that only C++ owned was the
owner of its Python object, by a flag that `torch._C._swap_tensor_impl` does not swap: swapping such a tensor
corrupts memory."""


def range_of_storage(storage: torch.UntypedStorage, device: torch.device) -> MemoryRange | None:
    """The memory of a storage; ``None`` if it has none (empty, meta, a wrapper subclass)."""
    if storage.device.type == "meta":  # `data_ptr` of a fake tensor raises, or will
        return None
    try:
        start, nbytes = storage.data_ptr(), storage.nbytes()
    except Exception:  # noqa: BLE001 - other types of storage may raise anything
        return None
    return MemoryRange(str(device), start, start + nbytes) if start and nbytes else None


def _nbytes_without_storage(tensor: torch.Tensor) -> int:
    if _layout(tensor) is torch.sparse_coo:
        parts = [TensorBase._indices(tensor), TensorBase._values(tensor)]
    elif _layout(tensor) in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif _layout(tensor) in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        return 0
    return sum(part.nbytes for part in parts)


def module_dict(module: torch.nn.Module) -> dict[str, Any]:
    """The instance dict of a module."""
    attributes: dict[str, Any] = _get_module_dict(module)
    return attributes


def modules_within(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The module and its sub-modules, each once, read from the instance dicts."""
    seen = {id(module)}
    pending = [module]
    while pending:
        yield (at := pending.pop())
        for child in _values_of(at, "_modules"):
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                pending.append(child)


def tensors_within(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The parameters and buffers of a module and its sub-modules."""
    for at in modules_within(module):
        for tensor in chain(_values_of(at, "_parameters"), _values_of(at, "_buffers")):
            if tensor is not None:
                yield tensor


def _values_of(module: torch.nn.Module, name: str) -> list[Any]:
    # A module whose __init__ has not run has none of these; a subclass may have put anything there.
    values = module_dict(module).get(name)
    return list(dict.values(values)) if isinstance(values, dict) else []
