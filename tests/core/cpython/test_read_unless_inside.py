"""`read_unless_inside` calls C functions only while no other thread runs a given code object."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastpurge._core import read_unless_inside

double = operator.methodcaller("__mul__", 2)


def inside(then: Callable[[], object]) -> object:
    return then()


def deeper(then: Callable[[], object]) -> object:
    return inside(lambda: [then() for _ in range(1)])


@contextmanager
def thread_inside() -> Iterator[None]:
    arrived, leave = threading.Event(), threading.Event()

    def stay() -> None:
        arrived.set()
        leave.wait()

    thread = threading.Thread(target=deeper, args=(stay,))
    thread.start()
    arrived.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


def read(reads: list[tuple[Callable[[Any], Any], Any]], **more: Any) -> list[Any] | None:
    return read_unless_inside(reads, unless_inside=inside.__code__, **more)


def test_each_function_is_called_with_its_object() -> None:
    assert read([(double, 2), (operator.neg, 3)]) == [4, -3]


def test_lists_and_tuples_are_replaced_by_their_items_and_none_is_left_out() -> None:
    reads: list[Any] = [(list, "ab"), (tuple, "cd"), (double, "e"), (list, ""), ({}.get, 1)]
    assert read(reads) == ["a", "b", "c", "d", "ee"]


def test_the_functions_in_then_are_called_with_each_item() -> None:
    assert read([(list, (1, 2)), (double, 2)], then=[operator.neg, abs]) == [-1, 1, -2, 2, -4, 4]
    assert read([(list, (1, 2))], then=[]) == []


def test_calls_that_raise_a_runtime_error_are_left_out_and_other_errors_are_raised() -> None:
    def refuse(error: Exception) -> None:
        raise error

    assert read([(refuse, RuntimeError()), (double, 1)]) == [2]
    assert read([(double, 1)], then=[lambda _: refuse(RuntimeError()), double]) == [4]
    with pytest.raises(ValueError, match="told"):
        read([(refuse, ValueError("told"))])


def test_nothing_is_called_while_another_thread_is_inside() -> None:
    called: list[int] = []
    with thread_inside():
        assert read([(called.append, 1)]) is None
    assert called == []
    assert read([(called.append, 1)]) == []
    assert called == [1]


def test_this_thread_may_be_inside_itself() -> None:
    assert inside(lambda: read([(double, 2)])) == [4]


def test_without_unless_inside_everything_is_read() -> None:
    assert read_unless_inside([(len, "abc"), (str.upper, "x")]) == [3, "X"]
