"""Functions that raise exceptions whose tracebacks refer to tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

MiB = 2**20


created: list[weakref.ref[torch.Tensor]] = []


def big(mebibytes: int = 1) -> torch.Tensor:
    tensor = torch.ones(mebibytes, MiB // 4)
    created.append(weakref.ref(tensor))
    return tensor


def alive() -> int:
    return sum(one() is not None for one in created)


def caught(function: Callable[[], object]) -> Any:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def run_out_of_memory() -> None:
    def inner(batch: torch.Tensor) -> torch.Tensor:
        activations = big(3)
        return torch.empty(1 << 60) + activations + batch

    def outer() -> None:
        batch = big(2)
        inner(batch)

    outer()


def failed(*values: object) -> Any:
    def fail() -> None:
        local = big()
        raise ValueError(len(local), *values)

    return caught(fail)
