"""`callbacks` finds what C code is to call, and tells it from what is only being called."""

from __future__ import annotations

import signal
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastpurge import _core

EXECUTING = ((types.GeneratorType, "gi_running"),)


def callbacks() -> list[Any]:
    return _core.callbacks(
        function=types.FunctionType, method=types.MethodType, others=(), executing=EXECUTING
    )


@pytest.fixture
def hand_over() -> Iterator[Callable[[Any], Any]]:
    """Makes a function a handler of signals: C code holds it, and no object that could be asked."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_handler_is_found_while_a_generator_calls_it(hand_over: Callable[[Any], Any]) -> None:
    # From CPython 3.14 on such a call borrows the function from the local of the generator.
    found: list[Any] = []

    def make(value: object) -> Any:
        def handler(*_: object) -> object:
            found.extend(callbacks())
            return value

        return handler

    def call(handler: Any) -> Iterator[object]:
        yield handler()

    def prepare() -> Iterator[object]:
        handler = make("held")
        hand_over(handler)
        return call(handler)

    assert next(prepare()) == "held"
    assert signal.getsignal(signal.SIGINT) in found


def test_a_function_that_only_a_list_holds_is_not_found() -> None:
    def make(value: object) -> Callable[[], object]:
        return lambda: value

    held = [make("held")]
    found = callbacks()
    assert held[0] not in found
