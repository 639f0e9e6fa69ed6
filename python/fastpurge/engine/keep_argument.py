"""What the caller names in ``keep``, and what names nothing."""

import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from types import EllipsisType, NoneType, NotImplementedType
from typing import Any, cast

import torch

from fastpurge.python_facts.imported_modules import types_in
from fastpurge.python_facts.object_types import is_a, type_name


def named(keep: object) -> tuple[object, ...]:
    """What the caller named: the object itself and, of a plain container, each element.

    Named objects are entered whatever they are, so ``keep=[my_module]`` keeps a module's globals
    although a closure stops at modules.
    """
    # By exact type: a subclass may run code of its own when iterated.
    if is_exactly(keep, _MAPPINGS):
        return (keep, *cast(dict[object, object], keep).values())
    if is_exactly(keep, (*_COLLECTIONS, *_VIEWS)):
        return (keep, *cast(Iterable[object], keep))
    return (keep,)


def is_exactly(obj: object, types: tuple[type, ...]) -> bool:
    """Whether it is an instance of one of the types, and of no subtype."""
    # Not by `in`, which asks a metaclass whether it is equal.
    of = type(obj)
    return any(of is one for one in types)


_MAPPINGS = (dict, OrderedDict, defaultdict)
_COLLECTIONS = (list, tuple, set, frozenset, deque)
_EMPTY: tuple[dict[Any, Any], ...] = ({}, OrderedDict())
_VIEWS = tuple(type(view) for one in _EMPTY for view in (one.keys(), one.values()))


def check_keep(keep: object) -> None:
    """Refuse what would protect nothing, although somebody has meant something by it.

    A list that a program has made may hold ``None`` or a str beside other things; one of strings alone is a
    list of names.

    Raises:
        TypeError: it says what to write instead.

    """
    if is_a(keep, str):
        name = str.__str__(cast(str, keep))
        of = name if name.isidentifier() else "model"
        raise TypeError(f"keep must be the object itself, not a str: write keep=[{of}], without quotes")
    if keep is None:
        raise TypeError("keep must be what to protect, not None: write keep=() to protect nothing")
    if is_a(keep, *_WEAK):
        raise TypeError("keep must be the object itself, not a weak reference, which protects nothing")
    if is_a(keep, *_CONSTANTS, *_numpy_scalars()):
        raise TypeError(
            f"keep must be what to protect, not {type_name(keep)}: "
            "write keep=[model], or keep=() to protect nothing"
        )
    if _gives_once(type(keep)):
        raise TypeError(
            f"keep must be what to protect, not {type_name(keep)}, which gives it once and may have done so: "
            "write keep=list(...) of it, or keep=[it] if it is a thing to protect itself"
        )
    if is_exactly(keep, _COLLECTIONS):
        _check_elements([*cast(Iterable[object], keep)])


def _check_elements(elements: list[object]) -> None:
    if all(is_a(one, *_NAMES, NoneType) for one in elements) and any(is_a(one, *_NAMES) for one in elements):
        raise TypeError(
            "keep must hold the objects themselves, and holds nothing but names or weak references of them: "
            "write keep=[model], without quotes"
        )


_WEAK = (weakref.ref, weakref.ProxyType, weakref.CallableProxyType)
_NAMES = (str, bytes, *_WEAK)
_CONSTANTS = (
    *(bytes, int, float, complex, EllipsisType, NotImplementedType),
    *(torch.device, torch.dtype, torch.layout),
)
_module_of = cast(Any, type.__dict__["__module__"]).__get__


def _numpy_scalars() -> tuple[type, ...]:
    # But for records: these have fields, and may have objects in them.
    return types_in({"numpy": ("number", "character", "bool_", "datetime64")})


def _gives_once(of: type) -> bool:
    """Whether a type is one of Python's own iterators or generators; others are objects like any other."""
    module = _module_of(of)
    if type(module) is not str or module not in ("builtins", "itertools"):
        return False
    return any("__next__" in vars(base) or "__anext__" in vars(base) for base in type.mro(of))
