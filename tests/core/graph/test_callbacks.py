"""`c_callbacks` finds the callbacks that C code references, without functions that are only running."""

from __future__ import annotations

import signal
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastpurge import _core

GENERATOR_TYPES = ((types.GeneratorType, "gi_running"),)


def callbacks() -> list[Any]:
    return _core.c_callbacks(
        function_type=types.FunctionType,
        method_type=types.MethodType,
        other_types=(),
        generator_types=GENERATOR_TYPES,
    )


@pytest.fixture
def set_handler() -> Iterator[Callable[[Any], Any]]:
    """Makes a function a signal handler: C code references it, and no tracked object does."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_handler_is_found_while_a_generator_calls_it(set_handler: Callable[[Any], Any]) -> None:
    # From CPython 3.14 on such a call borrows the function from a local of the generator.
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
        set_handler(handler)
        return call(handler)

    assert next(prepare()) == "held"
    assert signal.getsignal(signal.SIGINT) in found


def test_a_function_that_only_a_list_references_is_not_found() -> None:
    def make(value: object) -> Callable[[], object]:
        return lambda: value

    held = [make("held")]
    found = callbacks()
    assert held[0] not in found
