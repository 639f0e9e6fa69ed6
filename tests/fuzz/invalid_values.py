"""Invalid argument values of many kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import fastpurge
import numpy as np
import torch

from .choices import Choices


class ForeignCodeError(Exception):
    """Raised by the values of this module when their code is run."""


def _refuse(*_: object, **__: object) -> NoReturn:
    raise ForeignCodeError


_ASKED = """
    __bool__ __eq__ __ne__ __lt__ __gt__ __le__ __ge__ __hash__ __len__ __index__ __repr__ __str__ __format__
"""
_REFUSALS: dict[str, Any] = {**dict.fromkeys(_ASKED.split(), _refuse), "__class__": property(_refuse)}


def _refusing(name: str, base: type, *arguments: object) -> Any:
    """An instance of a subclass whose special methods raise."""
    return type(name, (base,), dict(_REFUSALS))(*arguments)


class Liar:
    """An object whose `__class__` is str."""

    __class__ = str  # type: ignore[assignment]


def _broken() -> Iterator[Any]:
    yield "cpu"
    raise ValueError("in the middle")


MAKERS: tuple[Callable[[Choices], Any], ...] = (
    lambda c: None,
    lambda c: c.one_of([True, False]),
    lambda c: c.one_of([0, -1, 1, 2**63, -(2**63) - 1, 10**400, c.number(256)]),
    lambda c: c.one_of([float("nan"), float("inf"), -0.0, 1e308, 1j]),
    lambda c: c.text(),
    lambda c: c.one_of(
        ["cpu", "cuda", "cuda:0", "cuda:-1", "cuda:99999999999999999999", "meta", "xpu:3", "mps", "CPU"]
    ),
    lambda c: c.one_of(["auto", "", "\0", "\ud800", "cpu:0\n", "a" * 5000, "{}", "%s"]),
    lambda c: c.text().encode("utf-8", "replace"),
    lambda c: _refusing("Silent", object),
    lambda c: _refusing("SilentText", str, c.one_of(["auto", "cpu", "label"])),
    lambda c: _refusing("SilentNumber", int, c.number(3)),
    lambda c: _refusing("SilentList", list, ["cpu"]),
    lambda c: Liar(),
    lambda c: _broken(),
    lambda c: np.zeros(c.number(3)),
    lambda c: torch.zeros(c.number(3)),
    lambda c: torch.device(c.one_of(["cpu", "cuda:7", "meta"])),
    lambda c: c.one_of(list(fastpurge.Guard)) | c.one_of(list(fastpurge.Guard)),
    lambda c: c.one_of([object, type, int, fastpurge.Guard, NotImplemented, ..., print, lambda: None]),
    lambda c: tuple(c.several(3, lambda: value(c))),
    lambda c: dict.fromkeys(range(c.number(3)), "cpu"),
    lambda c: c.several(3, lambda: value(c)),
)


def value(choices: Choices) -> Any:
    """A value of any kind."""
    return choices.one_of(MAKERS)(choices)
