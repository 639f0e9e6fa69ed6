"""An owner of objects in running code, and helpers for several kinds of owners."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Take = Callable[[], list[Any]]
"""Returns the objects. Before the call, the owner has no reference to them."""

Body = Callable[[], None]
Run = Callable[[Take, Body], list[Any]]


@dataclass(frozen=True)
class Owner:
    """One way in which running code refers to objects.

    Attributes:
        run: takes the objects, refers to them while it runs the body, and returns them afterwards.
        accepts: which objects it can refer to.
        owns: `them`, the objects that it was given; `copies` of them, that nothing else refers to; or
            `nothing`, because its reference is in an object of the program, which no guard follows.

    """

    run: Run
    accepts: Literal["anything", "tensors", "floats", "leaves"] = "anything"
    owns: Literal["them", "copies", "nothing"] = "them"


@dataclass
class OwnerTable:
    """Owners by name. A call of the table decorates the `run` function of a new owner."""

    by_name: dict[str, Owner] = field(default_factory=dict)

    def __call__(self, name: str, **options: Any) -> Callable[[Run], Run]:
        def add(run: Run) -> Run:
            self.by_name[name] = Owner(run, **options)
            return run

        return add

    def local_variable(
        self, name: str, make: Callable[[Any], Any], values: Callable[[Any], Any], **options: Any
    ) -> None:
        """Add an owner that is an object in a local variable.

        ``make`` gets `take` and returns the object; ``values`` returns the objects that it contains.
        """

        def run(take: Take, body: Body) -> list[Any]:
            local = make(take)
            body()
            return [*values(local)]

        self.by_name[name] = Owner(run, **options)


class ProgramObject:
    """An instance of a class of the program."""

    def __init__(self, owned: list[Any]) -> None:
        self.owned = owned


@contextmanager
def in_another_thread(
    prepare: Callable[[threading.Event, threading.Event], None],
) -> Iterator[threading.Event]:
    """Run a function in another thread: it sets the first event when ready and waits for the second."""
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
    """Run a coroutine that never suspends, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        results: list[Any] = end.value
        return results
    raise AssertionError("the coroutine waits")


def copy_of(owned: list[Any]) -> list[Any]:
    """Copies of tensors, on their own memory."""
    return [one.detach().clone() for one in owned]


FORKS = sys.platform == "linux"
"""Whether a process may fork after it has computed with torch."""

Values = list[float]


def values_of(obj: Any) -> Values:
    """The values of a tensor or of the weight of a module, to compare with those without a sweep."""
    values: Values = (obj.weight if type(obj) is torch.nn.Linear else obj).reshape(-1).tolist()
    return values
