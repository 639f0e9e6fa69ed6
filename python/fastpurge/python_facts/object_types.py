"""What class an object is of, without asking the object or its class."""

from typing import Any, cast

_type_name = cast(Any, type.__dict__["__qualname__"]).__get__


def is_a(obj: object, *types: type) -> bool:
    """`isinstance` by the C type alone: an object's ``__class__`` is not asked."""
    return issubclass(type(obj), types)


def type_name(obj: object) -> str:
    """The name of an object's class, as the class statement gave it."""
    # `__qualname__` may be an instance of a subclass of str, which would format itself.
    return str.__str__(_type_name(type(obj)))


def reason_of(error: BaseException) -> str:
    """An exception in one line. An exception of somebody's own class may not be able to say what it is."""
    name = type_name(error)
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - whatever it raises is its own affair
        return name
    return f"{name}: {text}".splitlines()[0]
