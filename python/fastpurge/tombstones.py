"""Tombstones: what released objects become. Every use of a tombstone raises `PurgedError`.

Inspecting one is no use: `repr` and the docstring say that it was purged, and `dir` lists names. An inspector
(IPython, a debugger, `help`) reads attributes like ``__call__`` and ``__wrapped__``, and expects a method or
an AttributeError. It gets that; such a method raises when it is called.

The tombstone of a tensor has the `Python` dispatch key, so that C++ code that gets one calls
`__torch_dispatch__` here, which raises, instead of computing with an empty tensor.
"""

from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch


class PurgedError(RuntimeError):
    """A tensor or module was used after a sweep released it.

    The message says what it was, which sweep released it, and how to keep it next time.
    """


class PurgedAttributeError(PurgedError, AttributeError):
    """An attribute like ``__wrapped__`` that a tombstone does not have, so that `hasattr` returns False."""


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """What the object of a tombstone was, and the label of the sweep that released it."""

    description: str
    label: str

    def error(self, of: type[PurgedError] = PurgedError) -> PurgedError:
        """The exception that any use of the tombstone raises."""
        return of(f"this {self.description} was released by fastpurge ({self.label}). {_HOW_TO_KEEP}")

    def docstring(self) -> str:
        """The docstring of the tombstone."""
        return f"purged by fastpurge ({self.label}): it was a {self.description}.\n\n{_HOW_TO_KEEP}"


_HOW_TO_KEEP = "To keep it next time, name it, or an object that references it, in keep=[...] of that sweep."
# Read by `isinstance(x, torch.nn.Parameter)` and `Buffer`, and by `inspect` and `asyncio` for signatures.
_PROBED_NAMES = frozenset("_is_param _is_buffer _partialmethod _is_coroutine _is_coroutine_marker".split())
_KEY = "_fastpurge_release_record"
_basic_size = cast(Any, type.__dict__["__basicsize__"]).__get__
_UNKNOWN = ReleaseRecord("object", "unknown sweep")


def set_release_record(tombstone: object, record: ReleaseRecord) -> None:
    """Store the record in a new tombstone."""
    # `pydoc` and others read the docstring without `__getattribute__`.
    _attributes(tombstone).update({_KEY: record, "__doc__": record.docstring()})


def release_record_of(tombstone: object) -> ReleaseRecord:
    """The record of a tombstone."""
    record: ReleaseRecord = _attributes(tombstone).get(_KEY, _UNKNOWN)
    return record


def is_purged(obj: object) -> bool:
    """Whether a sweep has released this tensor or module. Never raises.

    Examples:
        >>> is_purged("anything")
        False

    """
    # `is`: `==` would call `__eq__` of a metaclass.
    return type(obj) is PurgedTensor or type(obj) is PurgedModule


def has_room_for_tombstone(obj: object) -> bool:
    """Whether the class has the instance layout of a tombstone, so that `__class__` can be assigned."""
    of = type(obj)
    tombstone = PurgedTensor if issubclass(of, torch.Tensor) else PurgedModule
    return bool(_basic_size(of) == _basic_size(tombstone))


def _attributes(tombstone: object) -> dict[str, Any]:
    attributes: dict[str, Any] = object.__getattribute__(tombstone, "__dict__")
    return attributes


def _refuse(self: object, *_: object, **__: object) -> NoReturn:
    """Raise `PurgedError`: this was purged by fastpurge."""
    raise release_record_of(self).error()


def _getattribute(self: object, name: str) -> Any:
    if name in _PROBED_NAMES or (name.startswith("__") and name.endswith("__")):
        return object.__getattribute__(self, name)
    raise release_record_of(self).error()


def _getattr(self: object, _: str) -> NoReturn:
    raise release_record_of(self).error(PurgedAttributeError)


def _dir(_: object) -> list[str]:
    return dir(object)


def _repr(self: object) -> str:
    record = release_record_of(self)
    return f"<purged {record.description}, released by {record.label}>"


def _format(self: object, spec: str) -> str:
    if spec:  # a format for numbers: this is a use
        raise release_record_of(self).error()
    return _repr(self)


class PurgedTensor(torch.Tensor):
    """A tensor that was released."""

    _is_param = _is_buffer = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise _first_purged(args, kwargs).error()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        raise _first_purged(args, kwargs).error()


class PurgedModule(torch.nn.Module):
    """A module that was released."""


def _first_purged(*arguments: Any) -> ReleaseRecord:
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if type(argument) is PurgedTensor:
            return release_record_of(argument)
        if isinstance(argument, list | tuple):
            pending[:0] = argument
        elif isinstance(argument, dict):
            pending[:0] = argument.values()
    return _UNKNOWN


# Python looks special methods up on the type, without `__getattribute__`. Most of a tensor's call
# `__torch_function__`, which raises already. A module's have to be replaced.
_REFUSED_BY_TENSORS = """
    __init__ __setattr__ __delattr__ __copy__ __deepcopy__ __reduce__ __reduce_ex__ __getstate__
    __setstate__ __array__ __bool__ __dlpack__
""".split()
_REFUSED_BY_MODULES = """
    __init__ __setattr__ __delattr__ __copy__ __deepcopy__ __reduce__ __reduce_ex__
    __getstate__ __setstate__ __call__ __iter__ __next__ __reversed__ __len__ __contains__
    __getitem__ __setitem__ __delitem__ __enter__ __exit__ __bool__ __int__ __float__ __complex__
    __index__ __bytes__ __await__ __aiter__ __add__ __sub__ __mul__ __matmul__ __truediv__
    __floordiv__ __mod__ __divmod__ __pow__ __lshift__ __rshift__ __and__ __xor__ __or__ __radd__
    __rsub__ __rmul__ __rmatmul__ __rtruediv__ __rfloordiv__ __rmod__ __rdivmod__ __rpow__
    __rlshift__ __rrshift__ __rand__ __rxor__ __ror__ __iadd__ __isub__ __imul__ __imatmul__
    __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ixor__ __ior__ __neg__ __pos__ __abs__
    __invert__ __round__ __trunc__ __floor__ __ceil__ __lt__ __le__ __gt__ __ge__
""".split()


def _install_refusals(cls: type, refused: list[str]) -> None:
    # Set here and not inherited from a common base: a second base would change the layout, and `__class__`
    # could not be assigned.
    for name in dir(cls):
        if not name.startswith("__") and name not in _PROBED_NAMES:
            # A completer (Lib/rlcompleter.py) reads every class attribute except properties.
            setattr(cls, name, property(_refuse))
    for name in refused:
        setattr(cls, name, _refuse)
    for name, method in {
        "__getattribute__": _getattribute,
        "__getattr__": _getattr,
        "__dir__": _dir,
        "__repr__": _repr,
        "__str__": _repr,
        "__format__": _format,
    }.items():
        setattr(cls, name, method)


_install_refusals(PurgedTensor, _REFUSED_BY_TENSORS)
_install_refusals(PurgedModule, _REFUSED_BY_MODULES)
