"""Arguments of public functions, checked before anything is touched; an error names the argument."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from fastpurge.python_facts.object_types import is_a, type_name
from fastpurge.torch_facts.recorders import never_compiled

_P = ParamSpec("_P")
_R = TypeVar("_R")


def by_name(instead: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a function that takes no positional arguments say what to write ``instead``.

    It is called as it is from compiled code as well: see `never_compiled`.
    """

    def decorate(call: Callable[_P, _R]) -> Callable[_P, _R]:
        @never_compiled
        @wraps(never_compiled(call))
        def checked(*positional: _P.args, **named: _P.kwargs) -> _R:
            if positional:
                name = call.__name__
                raise TypeError(f"{name}() takes no positional arguments: write {name}({instead})")
            return call(**named)  # type: ignore[call-arg]

        return checked

    return decorate


def check_bool(name: str, value: object) -> None:
    """Refuse what is not True or False. Raises `TypeError`."""
    if not is_a(value, bool):
        raise TypeError(f"{name} must be True or False, not {type_name(value)}")


def parse_count(name: str, value: int, kind: str, meaning: str) -> int:
    """A number that is not negative, as a plain int. Raises `TypeError` and `ValueError` as `parse` does."""
    if is_a(value, bool) or not is_a(value, int):
        raise TypeError(f"{name} must be {kind}, not {type_name(value)}")
    plain = int.__index__(value)
    if plain < 0:
        raise ValueError(f"{name} must be {meaning}, not {show(plain)}")
    return plain


def show(value: object) -> str:
    """A value as an error tells it, if it is one that can; its type otherwise."""
    try:
        return repr(value) if type(value) in (str, int, float, type(None)) else type_name(value)
    except ValueError:  # an int of too many digits (`sys.set_int_max_str_digits`)
        return type_name(value)
