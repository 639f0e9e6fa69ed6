"""What a use is, and what several kinds of them need."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Take = Callable[[], list[Any]]
"""Gives the objects; they are not in the hands of what calls it before."""

Body = Callable[[], None]
Run = Callable[[Take, Body], list[Any]]


@dataclass(frozen=True)
class Use:
    """A way in which running code may hold objects.

    Attributes:
        run: holds what it takes while the body runs, and gives back what it has after that.
        accepts: what it can hold.
        holds: whether it holds what it is given; copies, that are in nothing else; or, although it
            refers to it, nothing: its objects are the program's own.

    """

    run: Run
    accepts: Literal["anything", "tensors", "floats", "leaves"] = "anything"
    holds: Literal["them", "copies", "nothing"] = "them"


@dataclass
class Uses:
    """A collection of uses by name."""

    made: dict[str, Use] = field(default_factory=dict)

    def __call__(self, name: str, **options: Any) -> Callable[[Run], Run]:
        def add(run: Run) -> Run:
            self.made[name] = Use(run, **options)
            return run

        return add

    def local(
        self, name: str, make: Callable[[Any], Any], values: Callable[[Any], Any], **options: Any
    ) -> None:
        """Add one: an object in a local variable, and nothing else."""

        def run(take: Take, body: Body) -> list[Any]:
            local = make(take)
            body()
            return [*values(local)]

        self.made[name] = Use(run, **options)


class Own:
    """An object of a class of the program's own."""

    def __init__(self, held: list[Any]) -> None:
        self.held = held


@contextmanager
def in_another_thread(
    prepare: Callable[[threading.Event, threading.Event], None],
) -> Iterator[threading.Event]:
    """Let something run in another thread: it says that it is ready, and waits until it may go on."""
    ready, may_go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=prepare, args=(ready, may_go_on), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield may_go_on
    finally:
        may_go_on.set()
        thread.join(60)


def complete(coroutine: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """Run a coroutine that waits for nothing, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        results: list[Any] = end.value
        return results
    raise AssertionError("the coroutine waits")


def copy_of(held: list[Any]) -> list[Any]:
    """Tensors with the values of others, on memory of their own."""
    return [one.detach().clone() for one in held]


FORKS = sys.platform == "linux"
"""Whether a process that has computed with torch may fork."""

Values = list[float]


def values_of(obj: Any) -> Values:
    """The values of a tensor or module, which are compared with what they would be without a sweep."""
    told: Values = (obj.weight if type(obj) is torch.nn.Linear else obj).reshape(-1).tolist()
    return told
