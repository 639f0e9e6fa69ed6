"""Checks for the arguments of public functions. Every error message names the argument."""

from collections.abc import Callable
from functools import wraps
from math import inf
from threading import TIMEOUT_MAX
from typing import ParamSpec, TypeVar, cast

import torch

from fastpurge.python_facts.object_types import is_a, safe_repr, type_name
from fastpurge.torch_facts.recorders import Unrecorded, never_compiled

_P = ParamSpec("_P")
_R = TypeVar("_R")


def by_name(instead: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a function with keyword-only arguments: the error for a positional one says what to write.

    Args:
        instead: the arguments to write instead, such as ``"keep=[model]"``.

    `torch.compile` does not compile the decorated function: see `never_compiled`.

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
    """Raise `TypeError` if a value is not True or False."""
    if not is_a(value, bool):
        raise TypeError(f"{name} must be True or False, not {type_name(value)}")


def parse_count(name: str, value: int, kind: str, meaning: str) -> int:
    """A number that is not negative, as a plain int.

    Raises:
        TypeError: the value is no int; the message says that it must be ``kind``.
        ValueError: the value is negative; the message says that it must be ``meaning``.

    """
    if is_a(value, bool) or not is_a(value, int):
        raise TypeError(f"{name} must be {kind}, not {type_name(value)}")
    plain = int.__index__(value)
    if plain < 0:
        raise ValueError(f"{name} must be {meaning}, not {safe_repr(plain)}")
    return plain


def check_seconds(
    name: str, value: object, *, may_be_zero: bool = False, may_be_infinite: bool = False
) -> None:
    """Check a number of seconds: positive, finite, and no longer than a lock can wait.

    Raises:
        TypeError: the value is not an int or a float.
        ValueError: the value is negative, too large or NaN; or 0 or infinite, where that is not allowed.

    """
    if is_a(value, bool) or not is_a(value, int, float):
        raise TypeError(f"{name} must be a number of seconds, not {type_name(value)}")
    seconds = cast(float, value)
    longest = inf if may_be_infinite else TIMEOUT_MAX
    if not (0 < seconds <= longest or (may_be_zero and seconds == 0)):
        least = "0 or more" if may_be_zero else "more than 0"
        raise ValueError(f"{name} must be {least} seconds, not {safe_repr(value)}")


def parse_device(name: str, device: object) -> torch.device:
    """A device given as a str or a `torch.device`. Need not exist on this machine.

    Raises:
        TypeError: the value is neither a str nor a `torch.device`.
        ValueError: torch does not know such a device.

    """
    if is_a(device, torch.device):
        return cast(torch.device, device)
    if not is_a(device, str):
        raise TypeError(f"{name}: a device must be a str or a torch.device, not {type_name(device)}")
    plain = str.__str__(cast(str, device))
    try:
        with Unrecorded():
            return torch.device(plain)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{name}: {plain!r} is not a device ({reason})") from None
