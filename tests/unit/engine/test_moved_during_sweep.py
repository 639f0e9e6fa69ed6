"""Objects that another thread moves from one owner to another during a sweep are spared."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge.engine import survey
from fastpurge.python_facts import library_globals
from fastpurge.torch_facts import hidden_references

SIZE = 1000


class Thread:
    """A thread with a value in a local variable only, until an event makes it move the value elsewhere."""

    def __init__(self, put: Callable[[Any, torch.Tensor], None], program: Any) -> None:
        self._put, self._program = put, program
        self._has_value, self._may_move = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        self._has_value.wait()

    def _work(self) -> None:
        value = torch.full((SIZE,), 7.0)
        self.value = weakref.ref(value)
        self._has_value.set()
        self._may_move.wait()
        self._put(self._program, value)

    def move(self) -> None:
        self._may_move.set()
        self._thread.join()


def into_a_library(program: Any, value: torch.Tensor) -> None:
    import torch.utils.hooks as library

    program.monkeypatch.setattr(library, "fastpurge_value", value, raising=False)


def into_a_graph(program: Any, value: torch.Tensor) -> None:
    program.kept["result"] = program.kept["leaf"] * value


def into_a_gradient(program: Any, value: torch.Tensor) -> None:
    program.kept["leaf"].grad = value


def into_a_hook(program: Any, value: torch.Tensor) -> None:
    program.kept["result"] = program.kept["leaf"] * 2
    program.kept["result"].register_hook(lambda gradient: gradient * value)


def into_an_array(program: Any, value: torch.Tensor) -> None:
    program.kept["array"] = value.numpy()


def into_a_script(program: Any, value: torch.Tensor) -> None:
    program.kept["function"] = torch.jit.trace(lambda x: x + value, torch.ones(SIZE))


def test_a_tensor_moved_from_an_owner_to_a_thread_is_spared(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By the time of the exchange, the thread has taken the reference that its owner had.
    program.leaf = torch.ones(SIZE, requires_grad=True)
    owned, (orders, answers) = (
        hidden_references.owned_in_cpp,
        (queue.SimpleQueue[str](), queue.SimpleQueue[float]()),
    )

    def work() -> None:
        value: Any = torch.full((SIZE,), 7.0)
        while (order := orders.get()) != "end":
            if order == "put":
                program.leaf.grad, value = value, None
            else:
                value, program.leaf.grad = program.leaf.grad, None
            answers.put(0 if value is None else value.sum().item())

    def ask(order: str) -> float:
        orders.put(order)
        return answers.get()

    def owned_for_a_moment(owners: list[Any]) -> list[object]:
        ask("put")
        found = [*owned(owners)]
        ask("take")
        return found

    thread = threading.Thread(target=work)
    thread.start()
    try:
        monkeypatch.setattr(hidden_references, "owned_in_cpp", owned_for_a_moment)
        fastpurge.sweep(keep=[program.leaf])
        ask("put")
        assert ask("take") == 7 * SIZE
    finally:
        orders.put("end")
        thread.join()


MOVES = (into_a_library, into_a_graph, into_a_gradient, into_a_hook, into_an_array, into_a_script)


def test_a_tensor_moved_from_a_thread_to_a_library_is_spared(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kept graph with a hook causes one more scan after the last search for library state.
    program.monkeypatch = monkeypatch
    program.kept = torch.ones(SIZE, requires_grad=True) * 2
    scale, program.forgotten = torch.ones(SIZE), torch.ones(SIZE)
    program.kept.register_hook(lambda gradient: gradient * scale)
    thread = Thread(into_a_library, program)
    in_use, read = library_globals.library_state, iter(range(100))
    has_looked = []

    def running_code(**named: Any) -> Any:
        has_looked.append(True)
        return survey_running_code(**named)

    def move_afterwards(*arguments: Any, **named: Any) -> Any:
        found = in_use(*arguments, **named)
        if has_looked and next(read) == 0:
            thread.move()
        return found

    survey_running_code = vars(survey)["running_code"]
    monkeypatch.setattr(survey, "running_code", running_code)
    monkeypatch.setattr(library_globals, "library_state", move_afterwards)
    fastpurge.sweep(keep=[program.kept])
    thread.move()
    value: Any = thread.value()
    assert value.sum() == 7 * SIZE


@pytest.mark.parametrize("put", MOVES)
@pytest.mark.parametrize("looked_at", ["memory_ranges", "running_code"])
def test_a_tensor_moved_during_a_sweep_is_spared(
    put: Callable[[Any, torch.Tensor], None], looked_at: str, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.monkeypatch = monkeypatch
    program.kept = {"leaf": torch.ones(SIZE, requires_grad=True)}
    thread = Thread(put, program)
    place: Any = hidden_references if looked_at == "memory_ranges" else survey
    look = getattr(place, looked_at)

    def move_first(*arguments: Any, **named: Any) -> Any:
        thread.move()
        return look(*arguments, **named)

    monkeypatch.setattr(place, looked_at, move_first)
    fastpurge.sweep(keep=[program.kept])
    thread.move()
    value: Any = program.kept["array"] if put is into_an_array else thread.value()
    assert value.sum() == 7 * SIZE
