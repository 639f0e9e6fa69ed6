"""Types and texts of objects, without running code of the objects or their classes."""

from typing import Any, cast

_LONGEST_REPR = 40
_PLAIN = (str, int, float, bool, bytes, type(None))
_type_name = cast(Any, type.__dict__["__qualname__"]).__get__


def is_a(obj: object, *types: type) -> bool:
    """`isinstance` by the C type alone, without reading the object's ``__class__``."""
    return issubclass(type(obj), types)


def is_exactly(obj: object, types: tuple[type, ...]) -> bool:
    """Whether an object is an instance of one of the types, and not of a subtype."""
    # Not by `in`, which would call `__eq__` or `__hash__` of a metaclass.
    of = type(obj)
    return any(of is one for one in types)


def type_name(obj: object) -> str:
    """The name of an object's class, as the class statement gave it."""
    # `__qualname__` may be an instance of a subclass of str, which would format itself.
    return str.__str__(_type_name(type(obj)))


def safe_repr(value: object) -> str:
    """The `repr` of a value, at most about 40 characters long, without running code of the value's class.

    Strings, numbers, bytes, ``None`` and tuples give their `repr`, a class gives its name, and any other
    object gives the name of its class in angle brackets.

    Examples:
        >>> safe_repr(("sdxl", 1)), safe_repr(int), safe_repr([])
        ("('sdxl', 1)", 'int', '<list>')

    """
    if type(value) is tuple:
        inner = ", ".join(safe_repr(one) for one in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if is_a(value, type):
        return str.__str__(_type_name(value))
    text = _repr_of_plain(value) if is_exactly(value, _PLAIN) else f"<{type_name(value)}>"
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}..."


def _repr_of_plain(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an int with more digits than `sys.set_int_max_str_digits` allows
        return f"<int of {value.bit_length()} bits>"


def reason_of(error: BaseException) -> str:
    """An exception in one line: its type and, if that can be read, its message."""
    name = type_name(error)
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - `__str__` may raise anything
        return name
    return f"{name}: {text}".splitlines()[0]
