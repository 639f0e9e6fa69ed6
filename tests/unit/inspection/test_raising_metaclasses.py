"""No function calls `__eq__` or `__hash__` of a metaclass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import is_purged


class Meta(type):
    def __eq__(cls, other: object) -> bool:
        raise AssertionError("__eq__ of a metaclass was called")

    __hash__ = None  # type: ignore[assignment]


class Value(metaclass=Meta):
    tensor: torch.Tensor


def _value() -> Value:
    value = Value()
    value.tensor = torch.ones(3)
    return value


def _array(value: Value) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def _error(value: Value) -> ValueError:
    error = ValueError(value, [value])
    error.values = (value,)  # type: ignore[attr-defined]
    return error


OWNERS: dict[str, Callable[[Value], Any]] = {
    "attribute": lambda value: value,
    "array": _array,
    "key": lambda value: {value: value.tensor},
    "list": lambda value: [value],
    "exception": _error,
}


@pytest.mark.parametrize("name", OWNERS)
def test_an_object_whose_type_cannot_be_compared_is_kept_explained_and_counted(
    name: str, program: Any
) -> None:
    program.owner = OWNERS[name](value := _value())
    program.garbage = torch.ones(4)
    plan = fastpurge.plan(keep=[program.owner])
    assert [item.shape for item in plan.items] == [(4,)]
    assert str(fastpurge.census())
    assert [one.path for one in fastpurge.why(value, value.tensor)]
    assert fastpurge.sweep(keep=[program.owner]).skipped == ()
    assert is_purged(program.garbage)
    assert value.tensor.sum() == 3


def test_an_exception_with_values_whose_type_cannot_be_compared_can_be_let_go() -> None:
    error = _error(_value())
    fastpurge.let_go(error)
    assert fastpurge.plan(keep=()).items == ()
