"""What the tests of values in use share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastpurge
import torch


def four() -> torch.Tensor:
    return torch.ones(4)


def total(of: Any) -> float:
    """The sum of a tensor, an array or another object that has one."""
    return float((of.detach() if isinstance(of, torch.Tensor) else of).sum())


def sweep(*_: object) -> None:
    fastpurge.sweep(keep=())


def through(value: Any) -> Any:
    """Sweep, with the value in no other place than this call."""
    sweep()
    return value


def reads(value: torch.Tensor) -> Callable[..., float]:
    """Make a function that has a tensor in its closure."""
    return lambda *_, **__: total(value)
