"""Work that is scheduled, and results that were not fetched yet."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.pool
import queue
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from .owner import FORKS, Body, OwnerTable, ProgramObject, Take, copy_of, in_another_thread, values_of

OWNERS = OwnerTable()


@OWNERS("the rest in another thread")
def the_rest_in_another_thread(take: Take, body: Body) -> list[Any]:
    local = take()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(body).result()
    return local


@OWNERS("local of another thread")
def local_of_another_thread(take: Take, body: Body) -> list[Any]:
    results: list[Any] = []

    def work(ready: threading.Event, may_go_on: threading.Event) -> None:
        local = take()
        ready.set()
        may_go_on.wait(60)
        results.extend(local)

    with in_another_thread(work):
        body()
    return results


@OWNERS("item of a pool of threads")
def item_of_a_pool_of_threads(take: Take, body: Body) -> list[Any]:
    may_go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(may_go_on.wait, 60)
            waiting = pool.submit(list, take())
            body()
        finally:
            may_go_on.set()
        return waiting.result()


@OWNERS("results of a map over a pool of threads")
def results_of_a_map_over_a_pool_of_threads(take: Take, body: Body) -> list[Any]:
    may_go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(may_go_on.wait, 60)
            results = pool.map(lambda one: one, take())
            body()
        finally:
            may_go_on.set()
        return [*results]


if FORKS:

    @contextlib.contextmanager
    def _busy_pool() -> Iterator[ProcessPoolExecutor]:
        """A pool of one process that is busy until the with-block ends, with a full queue of calls."""
        context = multiprocessing.get_context("fork")
        may_go_on = context.Event()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
            with ProcessPoolExecutor(1, mp_context=context, initializer=_wait, initargs=(may_go_on,)) as pool:
                for _ in range(3):
                    pool.submit(len, ())
                try:
                    yield pool
                finally:
                    may_go_on.set()

    def _wait(event: Any) -> None:
        event.wait(60)

    @OWNERS("item of a pool of processes", accepts="tensors", owns="copies")
    def item_of_a_pool_of_processes(take: Take, body: Body) -> list[Any]:
        with _busy_pool() as pool:
            waiting = [pool.submit(values_of, one) for one in copy_of(take())]
            body()
        return [one.result() for one in waiting]


@OWNERS("result of a pool that is not fetched")
def result_of_a_pool_that_is_not_fetched(take: Take, body: Body) -> list[Any]:
    with multiprocessing.pool.ThreadPool(1) as pool:
        result = pool.apply_async(take)
        result.wait(60)
        body()
        return result.get()


def _same(owned: list[Any]) -> list[Any]:
    return owned


@OWNERS("task of a pool that waits")
def task_of_a_pool_that_waits(take: Take, body: Body) -> list[Any]:
    may_go_on = threading.Event()
    with multiprocessing.pool.ThreadPool(1) as pool:
        pool.apply_async(may_go_on.wait, (60,))
        result = pool.apply_async(_same, (take(),))
        try:
            body()
        finally:
            may_go_on.set()
        return result.get(60)


def _add_queue(name: str, make: Any) -> None:
    @OWNERS(name)
    def run(take: Take, body: Body) -> list[Any]:
        waiting = make()
        waiting.put((0, take()))
        body()
        owned: list[Any] = waiting.get(timeout=60)[1]
        return owned


_add_queue("queue", queue.Queue)
_add_queue("queue in C", queue.SimpleQueue)
_add_queue("queue by priority", queue.PriorityQueue)


@OWNERS("timer")
def timer(take: Take, body: Body) -> list[Any]:
    waiting: Any = threading.Timer(3600, list, (take(),))
    waiting.start()
    try:
        body()
    finally:
        waiting.cancel()
    return [*waiting.args[0]]


@OWNERS("timer that nobody has")
def timer_that_nobody_has(take: Take, body: Body) -> list[Any]:
    own = ProgramObject([])
    threading.Timer(3600, setattr, (own, "owned", take())).start()
    try:
        body()
    finally:
        timers: Any = (one for one in threading.enumerate() if isinstance(one, threading.Timer))
        for thread in timers:
            if thread.args[:1] == (own,):
                thread.function(*thread.args)
                thread.cancel()
    return own.owned


@OWNERS("arguments of a finalizer")
def arguments_of_a_finalizer(take: Take, body: Body) -> list[Any]:
    own, other = ProgramObject([]), ProgramObject([])
    weakref.finalize(other, setattr, own, "owned", take())
    body()
    del other
    return own.owned


@contextlib.contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that the owner runs explicitly. Loops may be nested."""
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()
        asyncio._set_running_loop(outer)


@OWNERS("task that waits")
def task_that_waits(take: Take, body: Body) -> list[Any]:
    async def work(event: asyncio.Event) -> list[Any]:
        local = take()
        await event.wait()
        return local

    with event_loop() as loop:
        event = asyncio.Event()
        task = loop.create_task(work(event))
        loop.run_until_complete(asyncio.sleep(0))
        body()
        event.set()
        return loop.run_until_complete(task)


@OWNERS("task that waits in a running loop")
def task_that_waits_in_a_running_loop(take: Take, body: Body) -> list[Any]:
    async def work(event: asyncio.Event) -> list[Any]:
        own = ProgramObject(take())
        local, own.owned = own.owned, []
        await event.wait()
        return local

    async def main() -> list[Any]:
        event = asyncio.Event()
        task = asyncio.create_task(work(event))
        await asyncio.sleep(0)
        body()
        event.set()
        return await task

    with event_loop() as loop:
        return loop.run_until_complete(main())


@OWNERS("result of a task")
def result_of_a_task(take: Take, body: Body) -> list[Any]:
    async def work() -> list[Any]:
        return take()

    with event_loop() as loop:
        task = loop.create_task(work())
        loop.run_until_complete(asyncio.wait([task]))
        body()
        return task.result()


@OWNERS("result of a future of a loop")
def result_of_a_future_of_a_loop(take: Take, body: Body) -> list[Any]:
    with event_loop() as loop:
        future = loop.create_future()
        future.set_result(take())
        body()
        result: list[Any] = future.result()
        return result


@OWNERS("queue of a loop")
def queue_of_a_loop(take: Take, body: Body) -> list[Any]:
    waiting: asyncio.Queue[list[Any]] = asyncio.Queue()
    waiting.put_nowait(take())
    body()
    return waiting.get_nowait()


@OWNERS("callback that is soon called")
def callback_that_is_soon_called(take: Take, body: Body) -> list[Any]:
    own = ProgramObject([])
    with event_loop() as loop:
        loop.call_soon(setattr, own, "owned", take())
        body()
        loop.run_until_complete(asyncio.sleep(0))
    return own.owned


@OWNERS("callback that is called later")
def callback_that_is_called_later(take: Take, body: Body) -> list[Any]:
    own = ProgramObject([])
    with event_loop() as loop:
        loop.call_later(0, setattr, own, "owned", take())
        body()
        loop.run_until_complete(asyncio.sleep(0.001))
    return own.owned


@OWNERS("callback of a future")
def callback_of_a_future(take: Take, body: Body) -> list[Any]:
    own = ProgramObject([])

    def put(owned: list[Any]) -> Any:
        return lambda _: setattr(own, "owned", owned)

    with event_loop() as loop:
        future = loop.create_future()
        future.add_done_callback(put(take()))
        body()
        future.set_result(None)
        loop.run_until_complete(asyncio.sleep(0))
    return own.owned
