"""NumPy arrays and records: what they reference, and the memory that they read.

An array is not tracked by the garbage collector, and has no `tp_traverse`. Where this file imports NumPy
there is an array, so NumPy is imported already.
"""

from collections.abc import Iterator
from typing import Any, cast

from fastpurge import _core
from fastpurge.python_facts.imported_modules import types_in
from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts.memory_ranges import MemoryRange

# By identity: `in` of a set would call `__hash__` and `__eq__` of a metaclass.
_WITHOUT_REFERENTS = _core.IdSet([str, bytes, int, float, complex, bool, type(None)])


def array_types() -> tuple[type, ...]:
    """The type of NumPy's arrays; empty if NumPy is not imported, as there are no arrays then."""
    return types_in({"numpy": ("ndarray",)})


def record_types() -> tuple[type, ...]:
    """The type of one element of a structured array, which may have objects in its fields."""
    return types_in({"numpy": ("void",)})


def referents_of_record(record: Any) -> Iterator[object]:
    """The array that a record is an element of, or the objects in the fields of a record without one."""
    import numpy as np

    if (base := cast(Any, np.void.base).__get__(record)) is not None:
        yield base
    else:
        yield from _objects_in(np.generic.__array__(record))


def referents_of_array(array: Any) -> Iterator[object]:
    """The base and the elements of an array, and of the arrays among its elements."""
    seen = {id(array): array}
    pending = [array]
    while pending:
        if (base := base_of_array(at := pending.pop())) is not None:
            yield base
        for element in _objects_in(_plain(at)):
            yield element
            if is_a(element, *array_types()) and id(element) not in seen:
                seen[id(element)] = element
                pending.append(element)


def _objects_in(array: Any) -> Iterator[object]:
    """The objects in an array; of records the objects in their fields, not the tuples NumPy makes of them."""
    dtype = array.dtype
    if not dtype.hasobject:
        return
    if dtype.names is None:
        # By exact type: a million strings would be a million roots.
        yield from (one for one in array.ravel().tolist() if type(one) not in _WITHOUT_REFERENTS)
    for name in dtype.names or ():
        yield from _objects_in(array[name])


def has_objects(array: Any) -> bool:
    """Whether the dtype of an array has object fields."""
    return bool(_plain(array).dtype.hasobject)


def base_of_array(array: Any) -> Any:
    """The owner of the memory that an array reads; ``None`` if that is the array itself."""
    import numpy as np

    return np.ndarray.base.__get__(array)


def range_of_array(array: Any) -> MemoryRange:
    """The memory that an array reads."""
    import numpy as np

    lib = getattr(np.lib, "array_utils", np)  # NumPy 1 has byte_bounds at the top
    return MemoryRange("cpu", *lib.byte_bounds(_plain(array)))


def _plain(array: Any) -> Any:
    """The array as an exact `ndarray`, so that no method of a subclass runs."""
    import numpy as np

    return np.ndarray.view(array, np.ndarray)
