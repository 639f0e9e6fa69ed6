"""The argument ``keep``: which objects it names, and which values are refused."""

import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from types import EllipsisType, NoneType, NotImplementedType
from typing import Any, cast

import torch

from fastpurge.python_facts.imported_modules import types_in
from fastpurge.python_facts.object_types import is_a, is_exactly, type_name


def named(keep: object) -> tuple[object, ...]:
    """The named objects: ``keep`` itself and, if it is a plain container, each element.

    The closure enters named objects of any type, so ``keep=[my_module]`` keeps a module's globals although
    modules are a boundary.
    """
    # By exact type: to iterate over a subclass may run code of its own.
    if is_exactly(keep, _MAPPINGS):
        return (keep, *cast(dict[object, object], keep).values())
    if is_exactly(keep, (*_COLLECTIONS, *_VIEWS)):
        return (keep, *cast(Iterable[object], keep))
    return (keep,)


_MAPPINGS = (dict, OrderedDict, defaultdict)
_COLLECTIONS = (list, tuple, set, frozenset, deque)
_EMPTY: tuple[dict[Any, Any], ...] = ({}, OrderedDict())
_VIEWS = tuple(type(view) for one in _EMPTY for view in (one.keys(), one.values()))


def check_keep(keep: object) -> None:
    """Refuse values that protect nothing, and are probably mistakes.

    A list may contain ``None`` or strings besides other objects. A list of nothing but strings is refused:
    these are probably names of variables.

    Raises:
        TypeError: the message says what to write instead.

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
    if _is_iterator_type(type(keep)):
        raise TypeError(
            f"keep must be what to protect, not {type_name(keep)}, which can be iterated only once: "
            "write keep=list(...), or keep=[it] to protect the iterator itself"
        )
    if is_exactly(keep, _COLLECTIONS):
        _check_elements([*cast(Iterable[object], keep)])


def _check_elements(elements: list[object]) -> None:
    if all(is_a(one, *_NAMES, NoneType) for one in elements) and any(is_a(one, *_NAMES) for one in elements):
        raise TypeError(
            "keep must contain the objects themselves, but contains only names or weak references: "
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
    # Records are allowed: they may have objects in their fields.
    return types_in({"numpy": ("number", "character", "bool_", "datetime64")})


def _is_iterator_type(of: type) -> bool:
    """Whether a type is an iterator or generator of Python itself. Iterators of other modules are allowed."""
    module = _module_of(of)
    if type(module) is not str or module not in ("builtins", "itertools"):
        return False
    return any("__next__" in vars(base) or "__anext__" in vars(base) for base in type.mro(of))
