"""References that `tp_traverse` does not visit: of tensors, script modules, arrays and records.

C++ owns a tensor's gradient, its base and its autograd graph, and a NumPy array is not tracked by the
garbage collector. What these reference is found here, and becomes a further root of the closure.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from mmap import mmap
from typing import Any, cast

import torch
from torch._C import DisableTorchFunction, StorageBase, TensorBase
from torch.jit._script import RecursiveScriptModule
from torch.nn.parallel import DistributedDataParallel

from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts import script_modules
from fastpurge.torch_facts.autograd import BackwardUnderWayError, gradients_of, graph_of
from fastpurge.torch_facts.memory_ranges import MemoryRange
from fastpurge.torch_facts.numpy_arrays import (
    array_types,
    base_of_array,
    has_objects,
    range_of_array,
    record_types,
    referents_of_array,
    referents_of_record,
)
from fastpurge.torch_facts.tensors import range_of_storage, storage_of, tensors_within

_base_if_defined = cast(Any, TensorBase._base).__get__
_requires_grad = cast(Any, TensorBase.requires_grad).__get__


def reported_types() -> tuple[type, ...]:
    """The types of objects that have references hidden from the closure, or memory that others may share."""
    return torch.Tensor, StorageBase, *script_modules.TYPES, *array_types(), *record_types()


def graphs(kept: Iterable[Any]) -> Iterator[object]:
    """The nodes, leaves and saved objects of the autograd graphs of the tensors among ``kept``.

    Raises:
        BackwardUnderWayError: there are graphs, and another thread is inside a backward.

    """
    with DisableTorchFunction():
        yield from graph_of(obj for obj in kept if is_a(obj, torch.Tensor))


def contents(kept: Iterable[Any]) -> Iterator[object]:
    """What the script modules, arrays and records among ``kept`` reference out of the closure's sight."""
    arrays, records = array_types(), record_types()
    with DisableTorchFunction():
        for obj in kept:
            if is_a(obj, *script_modules.TYPES):
                yield from (tensor for tensor, _ in script_modules.labelled_tensors(obj))
            elif arrays and is_a(obj, *arrays):
                yield from referents_of_array(obj)
            elif records and is_a(obj, *records):
                yield from referents_of_record(obj)


def may_reference_more(content: object) -> bool:
    """Whether a referent of an array, a record or a script may itself have referents."""
    if is_a(content, *array_types()):
        return has_objects(content)
    return not is_a(content, *_WITHOUT_REFERENTS)


_WITHOUT_REFERENTS = (str, bytes, bytearray, memoryview, int, float, complex, mmap, torch.Tensor, type(None))


def gradients(objects: Iterable[Any]) -> list[object] | None:
    """The gradients of the tensors among some objects; ``None`` if another thread is inside a backward."""
    with DisableTorchFunction():
        return gradients_of(obj for obj in objects if is_a(obj, torch.Tensor))


def any_graph(kept: Iterable[Any], running: Iterable[Any]) -> bool:
    """Whether any tensor that is kept, or that running code uses, has an autograd graph.

    Tensors of running code are only asked whether they require a gradient: another thread may be computing
    with them. To read `grad_fn`, torch copies a pointer that the other thread may be writing without the GIL.
    """
    with DisableTorchFunction():
        return any(True for _ in graph_of(obj for obj in kept if is_a(obj, torch.Tensor))) or any(
            _requires_grad(obj) and not is_a(obj, torch.nn.Parameter)
            for obj in running
            if is_a(obj, torch.Tensor)
        )


def owned_in_cpp(owners: list[Any]) -> Iterator[object]:
    """What objects own in C++: bases of views, gradients, contents of graphs, weights of script modules."""
    tensors = [obj for obj in owners if is_a(obj, torch.Tensor)]
    with DisableTorchFunction():
        for obj in owners:
            if is_a(obj, RecursiveScriptModule):
                yield from script_modules.parameters_and_buffers(obj)
            elif is_a(obj, DistributedDataParallel):
                yield from tensors_within(obj)
        with suppress(BackwardUnderWayError):
            yield from graph_of(tensors)
        yield from gradients_of(tensors) or ()
        for tensor in tensors:
            if (base := _base(tensor)) is not None:
                yield base


def _base(tensor: torch.Tensor) -> torch.Tensor | None:
    try:
        base: torch.Tensor | None = _base_if_defined(tensor)
    except RuntimeError:  # before torch 2.10 another thread can drop the C++ tensor of a live Python object
        return None
    return base


def labelled_references(owners: Iterable[Any]) -> Iterator[tuple[object, object, str]]:
    """The C references of views, arrays and script modules: each as owner, referent and path expression."""
    arrays = array_types()
    for obj in owners:
        if is_a(obj, torch.Tensor):
            if (base := _base(obj)) is not None:
                yield obj, base, "._base"
        elif is_a(obj, *script_modules.TYPES):
            for referent, label in script_modules.labelled_tensors(obj):
                yield obj, referent, label
        elif arrays and is_a(obj, *arrays):
            for referent in referents_of_array(obj):
                yield obj, referent, ".base" if referent is base_of_array(obj) else "[...]"


def memory_ranges(kept: Iterable[Any]) -> Iterator[MemoryRange]:
    """The memory of the tensors, storages and NumPy arrays among ``kept``."""
    arrays = array_types()
    for obj in kept:
        if is_a(obj, torch.Tensor):
            storage = storage_of(obj)
        elif is_a(obj, torch.UntypedStorage):
            storage = obj
        elif arrays and is_a(obj, *arrays):
            yield range_of_array(obj)
            continue
        else:
            continue
        if storage is not None and (memory_range := range_of_storage(storage, storage.device)):
            yield memory_range
