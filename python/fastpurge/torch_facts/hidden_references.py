"""What the caller keeps: where the closure starts, and what torch and NumPy hide from it.

The interpreter's `tp_traverse` sees Python references only. A tensor's gradient is held by C++, and
a NumPy array is not a garbage-collected object at all, so what these hold is named here and becomes
a further root.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from mmap import mmap
from typing import Any, cast

import torch
from torch._C import DisableTorchFunction, StorageBase, TensorBase
from torch.jit._script import RecursiveScriptModule
from torch.nn.parallel import DistributedDataParallel

from fastpurge.python_facts.imported_modules import types_in
from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts import script_modules
from fastpurge.torch_facts.autograd import BackwardUnderWayError, gradients_of, graph_of
from fastpurge.torch_facts.memory_ranges import MemoryRange
from fastpurge.torch_facts.tensors import range_of_storage, storage_of, tensors_within

_base_if_defined = cast(Any, TensorBase._base).__get__
_requires_grad = cast(Any, TensorBase.requires_grad).__get__


def reported_types() -> tuple[type, ...]:
    """The types whose instances, once kept, protect more than the closure can see."""
    return torch.Tensor, StorageBase, *script_modules.TYPES, *array_types(), *_record_types()


def graphs(kept: Iterable[Any]) -> Iterator[object]:
    """What the autograd graphs of kept tensors hold.

    Raises `BackwardUnderWayError` if there are graphs, and another thread is inside a backward.
    """
    with DisableTorchFunction():
        yield from graph_of(obj for obj in kept if is_a(obj, torch.Tensor))


def contents(kept: Iterable[Any]) -> Iterator[object]:
    """What kept scripts, arrays and records hold that the closure cannot see."""
    arrays, records = array_types(), _record_types()
    with DisableTorchFunction():
        for obj in kept:
            if is_a(obj, *script_modules.TYPES):
                yield from (tensor for tensor, _ in script_modules.labelled_tensors(obj))
            elif arrays and is_a(obj, *arrays):
                yield from _held_by_array(obj)
            elif records and is_a(obj, *records):
                yield from _held_by_record(obj)


def may_reference_more(content: object) -> bool:
    """Whether something that an array, a record or a script holds may lead to more."""
    if is_a(content, *array_types()):
        return bool(_plain(content).dtype.hasobject)
    return not is_a(content, *_WITHOUT_REFERENTS)


_ATOMS = {str, bytes, int, float, complex, bool, type(None)}
_WITHOUT_REFERENTS = (str, bytes, bytearray, memoryview, int, float, complex, mmap, torch.Tensor, type(None))


def gradients(objects: Iterable[Any]) -> list[object] | None:
    """The gradients of the tensors among some objects; ``None`` while another thread is inside a backward."""
    with DisableTorchFunction():
        return gradients_of(obj for obj in objects if is_a(obj, torch.Tensor))


def any_graph(kept: Iterable[Any], running: Iterable[Any]) -> bool:
    """Whether there is an autograd graph among what is kept or in the hands of running code.

    A tensor that another thread computes on is only asked whether it requires a gradient: for its graph
    torch would copy a pointer that the other thread may be writing, without the GIL.
    """
    with DisableTorchFunction():
        return any(True for _ in graph_of(obj for obj in kept if is_a(obj, torch.Tensor))) or any(
            _requires_grad(obj) and not is_a(obj, torch.nn.Parameter)
            for obj in running
            if is_a(obj, torch.Tensor)
        )


def owned_in_cpp(owners: list[Any]) -> Iterator[object]:
    """What objects own in C++: the base of a view, a gradient, what a graph holds; parameters of modules."""
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
    except RuntimeError:  # before torch 2.10 another thread can drop the tensor of an object in our hands
        return None
    return base


def labelled_references(owners: Iterable[Any]) -> Iterator[tuple[object, object, str]]:
    """What views, arrays and script modules hold in C: with its holder, and with what code calls it there."""
    arrays = array_types()
    for obj in owners:
        if is_a(obj, torch.Tensor):
            if (base := _base(obj)) is not None:
                yield obj, base, "._base"
        elif is_a(obj, *script_modules.TYPES):
            for held, label in script_modules.labelled_tensors(obj):
                yield obj, held, label
        elif arrays and is_a(obj, *arrays):
            for held in _held_by_array(obj):
                yield obj, held, ".base" if held is base_of_array(obj) else "[...]"


def memory_ranges(kept: Iterable[Any]) -> Iterator[MemoryRange]:
    """The memory that kept tensors, storages and NumPy arrays stand on."""
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


def array_types() -> tuple[type, ...]:
    """The type of NumPy's arrays, if it is imported: otherwise there are none."""
    return types_in({"numpy": ("ndarray",)})


def _record_types() -> tuple[type, ...]:
    """The type of one element of a structured array, which may have objects in its fields."""
    return types_in({"numpy": ("void",)})


def _held_by_record(record: Any) -> Iterator[object]:
    """The array that a record is an element of, or the objects in the fields of one of its own."""
    import numpy as np

    if (base := cast(Any, np.void.base).__get__(record)) is not None:
        yield base
    else:
        yield from _objects_in(np.generic.__array__(record))


def _objects_in(array: Any) -> Iterator[object]:
    """The objects in a plain array: those themselves, and not the tuples that NumPy makes of records."""
    dtype = array.dtype
    if not dtype.hasobject:
        return
    if dtype.names is None:
        # By exact type: a million strings would be a million roots.
        yield from (one for one in array.ravel().tolist() if type(one) not in _ATOMS)
    for name in dtype.names or ():
        yield from _objects_in(array[name])


def _held_by_array(array: Any) -> Iterator[object]:
    """The base and the elements of an array, and of the arrays in it."""
    met = {id(array): array}
    pending = [array]
    while pending:
        if (base := base_of_array(at := pending.pop())) is not None:
            yield base
        for element in _objects_in(_plain(at)):
            yield element
            if is_a(element, *array_types()) and id(element) not in met:
                met[id(element)] = element
                pending.append(element)


def base_of_array(array: Any) -> Any:
    """What owns the memory that an array stands on, if it is not the array itself."""
    import numpy as np

    return np.ndarray.base.__get__(array)


def range_of_array(array: Any) -> MemoryRange:
    """The memory that an array reads."""
    import numpy as np

    lib = getattr(np.lib, "array_utils", np)  # NumPy 1 has byte_bounds at the top
    return MemoryRange("cpu", *lib.byte_bounds(_plain(array)))


def _plain(array: Any) -> Any:
    """The array as an `ndarray` proper, so that no method of a subclass is run."""
    import numpy as np

    return np.ndarray.view(array, np.ndarray)
