"""Context variables of running code, of copied contexts, of waiting tasks and of other threads."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .owner import Body, OwnerTable, ProgramObject, Take, in_another_thread
from .waiting_work import event_loop

OWNERS = OwnerTable()
_variable: contextvars.ContextVar[list[Any]] = contextvars.ContextVar("_variable")


@OWNERS("context variable")
def context_variable(take: Take, body: Body) -> list[Any]:
    token = _variable.set(take())
    body()
    owned = _variable.get()
    _variable.reset(token)
    return owned


@OWNERS("token of a context variable")
def token_of_a_context_variable(take: Take, body: Body) -> list[Any]:
    outer = _variable.set(take())
    token = _variable.set([])
    body()
    _variable.reset(token)
    owned = _variable.get()
    _variable.reset(outer)
    return owned


@OWNERS("copied context")
def copied_context(take: Take, body: Body) -> list[Any]:
    context = contextvars.copy_context()
    context.run(lambda: _variable.set(take()) and None)
    body()
    return context[_variable]


@OWNERS("entered context")
def entered_context(take: Take, body: Body) -> list[Any]:
    def run() -> list[Any]:
        _variable.set(take())
        body()
        return _variable.get()

    return contextvars.copy_context().run(run)


@OWNERS("context around the entered one")
def context_around_the_entered_one(take: Take, body: Body) -> list[Any]:
    def run() -> list[Any]:
        _variable.set(take())
        contextvars.Context().run(body)
        return _variable.get()

    return contextvars.copy_context().run(run)


@OWNERS("context variable of another thread")
def context_variable_of_another_thread(take: Take, body: Body) -> list[Any]:
    own = ProgramObject([])

    def work(ready: threading.Event, may_go_on: threading.Event) -> None:
        _variable.set(take())
        ready.set()
        may_go_on.wait(60)
        own.owned = _variable.get()

    with in_another_thread(work):
        body()
    return own.owned


@OWNERS("context of an item of a pool")
def context_of_an_item_of_a_pool(take: Take, body: Body) -> list[Any]:
    may_go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(may_go_on.wait, 60)
            waiting = pool.submit(_in_a_context(take()).run, _variable.get)
            body()
        finally:
            may_go_on.set()
        return waiting.result()


def _in_a_context(value: list[Any]) -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(_variable.set, value)
    return context


@OWNERS("context variable of a task that waits")
def context_variable_of_a_task_that_waits(take: Take, body: Body) -> list[Any]:
    async def work(event: asyncio.Event) -> list[Any]:
        _variable.set(take())
        await event.wait()
        return _variable.get()

    with event_loop() as loop:
        event = asyncio.Event()
        task = loop.create_task(work(event))
        loop.run_until_complete(asyncio.sleep(0))
        body()
        event.set()
        return loop.run_until_complete(task)


@OWNERS("context of a callback that waits")
def context_of_a_callback_that_waits(take: Take, body: Body) -> list[Any]:
    own = ProgramObject([])
    with event_loop() as loop:
        context = {"context": _in_a_context(take())}
        loop.call_later(0, lambda: setattr(own, "owned", _variable.get()), **context)
        del context
        body()
        loop.run_until_complete(asyncio.sleep(0.001))
    return own.owned


@OWNERS("context variable of a running task")
def context_variable_of_a_running_task(take: Take, body: Body) -> list[Any]:
    async def main() -> list[Any]:
        _variable.set(take())
        body()
        return _variable.get()

    with event_loop() as loop:
        return loop.run_until_complete(main())
