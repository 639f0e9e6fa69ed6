"""`let_go` releases the arguments and attributes of an exception, and its text stays the same."""

from __future__ import annotations

from traceback import format_exception
from typing import Any

import fastpurge
import pytest
import torch

from tests.unit.exceptions.failing_functions import MiB, alive, big, caught, failed


def test_values_of_an_exception_are_released_and_its_text_stays() -> None:
    class BadBatchError(Exception):
        pass

    def fail() -> None:
        error = BadBatchError("bad batch", {"images": big()}, 3)
        error.batch = big()  # type: ignore[attr-defined]
        error.path = "images/"  # type: ignore[attr-defined]
        raise error

    error = caught(fail)
    before = format_exception(error)
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert format_exception(error) == before
    assert error.args[0] == "bad batch"
    assert error.args[2] == 3
    assert error.path == "images/"
    (held,) = gone.held
    assert "BadBatchError, the exception itself" in held.holder
    assert gone.nbytes == 2 * MiB


@pytest.mark.parametrize("kind", [ValueError, KeyError])
def test_the_only_value_of_an_exception_is_released_and_its_text_stays(kind: type[Exception]) -> None:
    error = kind(big())
    before = format_exception(error)
    assert "tensor([[1., 1., 1.," in "".join(before)
    assert fastpurge.let_go(error).nbytes == MiB
    assert format_exception(error) == before


def test_values_that_are_kept_stay_in_the_exception() -> None:
    tensor = big()
    error = ValueError("wrong", tensor)
    assert fastpurge.let_go(error, keep=[tensor]).held == ()
    assert error.args[1] is tensor
    assert fastpurge.let_go(error, keep={"deep": [[tensor]]}).held == ()
    assert error.args[1] is tensor
    stop = StopIteration(tensor)
    assert fastpurge.let_go(stop, keep=tensor).held == ()
    assert stop.value is tensor


def test_an_exception_whose_text_would_change_is_unchanged() -> None:
    class ShapeError(Exception):
        def __str__(self) -> str:
            return f"unexpected shape {tuple(self.args[0].shape)}"

    error = ShapeError(big())
    gone = fastpurge.let_go(error)
    assert str(error) == "unexpected shape (1, 262144)"
    assert gone.held == ()
    assert "ShapeError: its text would change" in gone.remains[0]

    class Mute(torch.Tensor):
        def __repr__(self) -> str:  # type: ignore[override]
            raise RuntimeError("no memory to say it")

    mute = torch.ones(3).as_subclass(Mute)
    error = ShapeError(mute)
    assert "ShapeError: some of its values cannot be printed" in fastpurge.let_go(error).remains[0]
    assert error.args[0] is mute


HELD = {
    "list": lambda: [failed(), failed()],
    "dict of tuples": lambda: {0: (failed(), "text")},
    "exc_info": lambda: _exc_info(failed()),
    "traceback": lambda: failed().__traceback__,
}


def _exc_info(error: BaseException) -> Any:
    return type(error), error, error.__traceback__


@pytest.mark.parametrize("name", HELD)
def test_exceptions_in_containers_are_released_and_the_containers_stay(name: str) -> None:
    error = failed()
    error.held = held = HELD[name]()
    before = format_exception(error)
    fastpurge.let_go(error)
    assert alive() == 0
    assert error.held is held
    assert format_exception(error) == before


class Secret:
    """An object whose `repr` fails the test."""

    def __init__(self) -> None:
        self.tensor = big()

    def __repr__(self) -> str:
        raise AssertionError("asked")


def test_values_that_are_not_printed_run_no_code() -> None:
    error = failed()
    error.secret, error.batch = Secret(), {"x": big()}
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert gone.remains == ()
    assert str(error.secret) == "<Secret, let go>"


def test_a_value_that_cannot_be_described_does_not_keep_others() -> None:
    error: Any = ValueError("no", Secret())
    error.batch = big(2)
    before = format_exception(error)
    gone = fastpurge.let_go(error)
    assert format_exception(error) == before
    assert gone.nbytes == 2 * MiB
    assert alive() == 1
    assert gone.remains == ("ValueError: some of its values cannot be printed, and stay",)


KEPT = {
    "view": lambda x: x[:1],
    "array": lambda x: x.numpy(),
    "owner of a gradient": lambda x: _with_gradient(x),
}


def _with_gradient(gradient: torch.Tensor) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("name", KEPT)
def test_values_kept_through_an_alias_or_a_gradient_stay(name: str) -> None:
    tensor = big()
    error = ValueError("no", tensor)
    fastpurge.let_go(error, keep=[KEPT[name](tensor)])
    assert error.args[1] is tensor
