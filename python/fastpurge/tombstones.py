"""What a released object becomes: something that raises `PurgedError` however it is used.

To ask what it is does not use it: its text and its docstring say that it was purged, and `dir` lists names.
An inspector (IPython, a debugger, `help`) asks for names like ``__call__`` and ``__wrapped__``, and expects a
method or an AttributeError. It gets that; such a method raises when it is called.

A tombstone of a tensor has the `Python` dispatch key, so even C++ code that is handed one comes back
to `__torch_dispatch__` here and raises, instead of computing with an empty tensor.
"""

from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch


class PurgedError(RuntimeError):
    """A tensor or module was used after a sweep had released it.

    The message says what it was, which sweep released it, and how to keep it next time.
    """


class PurgedAttributeError(PurgedError, AttributeError):
    """A name like ``__wrapped__`` that a tombstone does not have: the answer to `hasattr` is no."""


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """What a tombstone remembers of the released object."""

    description: str
    label: str

    def error(self, of: type[PurgedError] = PurgedError) -> PurgedError:
        """What any use of the tombstone raises."""
        return of(f"this {self.description} was released by fastpurge ({self.label}). {_HOW_TO_KEEP}")

    def docstring(self) -> str:
        """What the tombstone has for a docstring."""
        return f"purged by fastpurge ({self.label}): it was a {self.description}.\n\n{_HOW_TO_KEEP}"


_HOW_TO_KEEP = "To keep it next time, name it, or something that holds it, in keep=[...] of that sweep."
# By `isinstance(x, torch.nn.Parameter)` and `Buffer`; by `inspect` and `asyncio` for signatures.
_PROBED_NAMES = frozenset("_is_param _is_buffer _partialmethod _is_coroutine _is_coroutine_marker".split())
_KEY = "_fastpurge_release_record"
_basic_size = cast(Any, type.__dict__["__basicsize__"]).__get__
_UNKNOWN = ReleaseRecord("object", "unknown sweep")


def set_release_record(tombstone: object, record: ReleaseRecord) -> None:
    """Give a new tombstone its record."""
    # `pydoc` and others read the docstring past `__getattribute__`.
    _attributes(tombstone).update({_KEY: record, "__doc__": record.docstring()})


def release_record_of(tombstone: object) -> ReleaseRecord:
    """What the tombstone remembers."""
    record: ReleaseRecord = _attributes(tombstone).get(_KEY, _UNKNOWN)
    return record


def is_purged(obj: object) -> bool:
    """Whether a sweep has released this tensor or module. Never raises.

    Examples:
        >>> is_purged("anything")
        False

    """
    # `is`: for `==` a metaclass would be asked.
    return type(obj) is PurgedTensor or type(obj) is PurgedModule


def has_room_for_tombstone(obj: object) -> bool:
    """Whether the class of a tensor or module has the layout of a tombstone, so that one can replace it."""
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
    if spec:  # meant for the number that it was
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


# Python looks special methods up on the type, past `__getattribute__`. Most of a tensor's go through
# `__torch_function__` and so refuse already; a module's must be told to.
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
    # Set here and not inherited from a common base: with a second base the layout would be another
    # one, and `__class__` could not be assigned.
    for name in dir(cls):
        if not name.startswith("__") and name not in _PROBED_NAMES:
            # A completer (Lib/rlcompleter.py) reads whatever its class has, but a property.
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
