"""Public calls with invalid values succeed, or raise an error that names the argument.

`check` takes the bytes of one input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import fastpurge

from .choices import Choices
from .invalid_values import ForeignCodeError, value

OPTIONS = ("devices", "models", "wipe", "min_bytes", "guards", "collect", "label")
GOOD: dict[str, Any] = {"collect": False, "guards": fastpurge.Guard.ALL}


def _plan(choices: Choices) -> tuple[Callable[[], Any], tuple[str, ...]]:
    # One or two at a time: the error names only the first wrong one.
    asked = {choices.one_of(OPTIONS): value(choices) for _ in range(1 + choices.number(2))}
    kept = value(choices)
    # Without guards a sweep would release the state of torch itself.
    call: Any = fastpurge.plan if "guards" in asked else choices.one_of([fastpurge.plan, fastpurge.sweep])
    return lambda: str(call(keep=kept, **{**GOOD, **asked})), ("keep", *asked)


def _census(choices: Choices) -> tuple[Callable[[], Any], tuple[str, ...]]:
    top = value(choices)
    return lambda: fastpurge.census(top).to_dict(), ("top",)


def _why(choices: Choices) -> tuple[Callable[[], Any], tuple[str, ...]]:
    objects = choices.several(2, lambda: value(choices))
    return lambda: [str(fastpurge.why(*objects))], ("object",)


def _let_go(choices: Choices) -> tuple[Callable[[], Any], tuple[str, ...]]:
    error = value(choices)
    return lambda: str(fastpurge.let_go(error)), ("error",)


def _is_purged(choices: Choices) -> tuple[Callable[[], Any], tuple[str, ...]]:
    obj = value(choices)
    return lambda: fastpurge.is_purged(obj), ()


# Calls that walk the heap are less frequent.
CALLS = (_plan, _plan, _plan, _plan, _census, _why, _let_go, _is_purged)


def check(data: bytes) -> None:
    """Call, and check that an error is a TypeError or ValueError that names an argument."""
    choices = Choices(data)
    call, names = choices.one_of(CALLS)(choices)
    try:
        said = call()
    except (TypeError, ValueError) as error:
        # An iterable of devices may raise any error.
        if str(error) != "in the middle" and not any(name in str(error) for name in names):
            raise AssertionError(f"an error that names none of {names}: {error!r}") from error
    except ForeignCodeError as error:
        raise AssertionError("code of a value was run") from error
    else:
        json.dumps(said)
