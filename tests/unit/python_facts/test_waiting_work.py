"""Scheduled work and unfetched results count as running code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import queue
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard, is_purged


def test_a_waiting_task_keeps_its_values() -> None:
    async def work(done: asyncio.Event) -> float:
        local, nested = torch.ones(3), {"k": [torch.ones(3)]}
        await done.wait()
        return float((local + nested["k"][0]).sum())

    async def main() -> float:
        done = asyncio.Event()
        task = asyncio.get_running_loop().create_task(work(done))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(lambda x: x + 1, torch.ones(3))
        fastpurge.sweep(keep=())
        done.set()
        return await task

    assert asyncio.run(main()) == 6


def test_a_scheduled_callback_keeps_its_values() -> None:
    async def main() -> list[float]:
        results: list[float] = []
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda x: results.append(float(x.sum())), torch.ones(3))
        loop.call_later(0.01, lambda x: results.append(float(x.sum())), torch.ones(4))
        fastpurge.sweep(keep=())
        await asyncio.sleep(0.1)
        return results

    assert asyncio.run(main()) == [3, 4]


def test_a_task_that_is_done_keeps_nothing(program: Any) -> None:
    async def work() -> torch.Tensor:
        return torch.ones(3)

    async def main() -> bool:
        program.task = asyncio.get_running_loop().create_task(work())
        await program.task
        await asyncio.sleep(0)  # until here the event loop refers to the callback that has resumed this task
        fastpurge.sweep(keep=())
        return is_purged(program.task.result())

    assert asyncio.run(main())


def test_pending_items_of_a_thread_pool_are_kept() -> None:
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait)
        waiting = pool.submit(torch.sum, torch.ones(3))
        fastpurge.sweep(keep=())
        go.set()
        assert waiting.result().item() == 3
        made = pool.submit(torch.ones, 3)
        made.exception()
        fastpurge.sweep(keep=())
        assert made.result().sum() == 3


def test_items_of_a_queue_are_kept() -> None:
    queues: list[Any] = [queue.Queue(), queue.SimpleQueue()]
    for one in queues:
        one.put({"k": torch.ones(3)})
    fastpurge.sweep(keep=())
    assert [one.get()["k"].sum().item() for one in queues] == [3, 3]


def test_a_forgotten_queue_keeps_nothing(program: Any) -> None:
    program.queue = queue.Queue()
    program.queue.put(torch.ones(3))
    fastpurge.sweep(keep=())
    assert is_purged(program.queue.get())


def test_a_context_variable_keeps_its_value() -> None:
    variable: contextvars.ContextVar[torch.Tensor] = contextvars.ContextVar("variable")
    token = variable.set(torch.ones(3))
    fastpurge.sweep(keep=())
    assert variable.get().sum() == 3
    variable.reset(token)


def test_a_waiting_task_keeps_its_context_variables() -> None:
    variable: contextvars.ContextVar[torch.Tensor] = contextvars.ContextVar("variable")

    async def work(done: asyncio.Event) -> float:
        variable.set(torch.ones(4))
        await done.wait()
        return float(variable.get().sum())

    async def main() -> float:
        done = asyncio.Event()
        task = asyncio.create_task(work(done))
        await asyncio.sleep(0)
        fastpurge.sweep(keep=())
        done.set()
        return await task

    assert asyncio.run(main()) == 4


def test_another_thread_keeps_its_context_variables() -> None:
    variable: contextvars.ContextVar[torch.Tensor] = contextvars.ContextVar("variable")
    ready, swept = threading.Event(), threading.Event()
    sums: list[float] = []

    def work() -> None:
        variable.set(torch.ones(4))
        ready.set()
        swept.wait()
        sums.append(float(variable.get().sum()))

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    fastpurge.sweep(keep=())
    swept.set()
    thread.join()
    assert sums == [4]


def test_a_context_for_later_code_keeps_its_values() -> None:
    variable: contextvars.ContextVar[torch.Tensor] = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    context.run(variable.set, torch.ones(4))
    fastpurge.sweep(keep=())
    assert context.run(lambda: variable.get().sum()) == 4


def test_a_context_variable_is_reset_to_what_it_was() -> None:
    variable: contextvars.ContextVar[torch.Tensor] = contextvars.ContextVar("variable")
    outer = variable.set(torch.ones(3))
    inner = variable.set(torch.ones(4))
    fastpurge.sweep(keep=())
    variable.reset(inner)
    assert variable.get().sum() == 3
    variable.reset(outer)


def test_a_queue_of_a_waiting_task_keeps_its_items() -> None:
    async def consume(items: asyncio.Queue[dict[str, torch.Tensor]]) -> float:
        total = 0.0
        while not items.empty():
            total += float((await items.get())["k"].sum())
            await asyncio.sleep(0)
        return total

    async def main() -> float:
        items: asyncio.Queue[dict[str, torch.Tensor]] = asyncio.Queue()
        for size in (1, 2, 3):
            items.put_nowait({"k": torch.ones(size)})
        task = asyncio.create_task(consume(items))
        await asyncio.sleep(0)
        fastpurge.sweep(keep=())
        return await task

    assert asyncio.run(main()) == 6


def test_a_timer_keeps_its_arguments() -> None:
    sums: list[float] = []
    timer = threading.Timer(0.2, lambda x: sums.append(float(x.sum())), (torch.ones(4),))
    timer.start()
    fastpurge.sweep(keep=())
    timer.join()
    assert sums == [4]


PROCESSES = """
import concurrent.futures, multiprocessing, sys, time, torch, fastpurge

FETCHED = []

def nap(x):
    time.sleep(0.05)
    return x.sum().item()

def double(x):
    return x * 2

def main(how):
    context = multiprocessing.get_context("fork")
    if how == "executor":
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            futures = [pool.submit(nap, torch.ones(4)) for _ in range(8)]
            time.sleep(0.1)
            fastpurge.sweep(keep=())
            return [future.result() for future in futures]
    if how == "map":
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            results = pool.map(nap, [torch.ones(4) for _ in range(8)])
            fastpurge.sweep(keep=())
            return [*results]
    with context.Pool(1) as pool:
        if how == "pool":
            results = [pool.apply_async(nap, (torch.ones(4),)) for _ in range(8)]
            fastpurge.sweep(keep=())
            return [result.get() for result in results]
        if how == "results":
            FETCHED.extend(pool.apply_async(double, (torch.ones(2),)) for _ in range(8))
            for result in FETCHED:
                result.wait()
            fastpurge.sweep(keep=())
            return [result.get().sum().item() for result in FETCHED]
        results = pool.imap(double, [torch.ones(2) for _ in range(8)])
        time.sleep(0.3)
        fastpurge.sweep(keep=())
        return [result.sum().item() for result in results]

if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("file_system")
    print(main(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("how", ["executor", "map", "pool", "results", "imap"])
def test_arguments_and_results_of_a_process_pool_are_kept(how: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROCESSES, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == str([4.0] * 8), done.stderr[-2000:]


def test_unfetched_results_of_a_thread_pool_are_kept(program: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        program.future = pool.submit(torch.ones, 3)
    fastpurge.sweep(keep=())
    assert program.future.result().sum() == 3


async def _of_executor() -> Any:
    return asyncio.get_running_loop().run_in_executor(None, torch.ones, 3)


async def _wrapped() -> Any:
    return asyncio.wrap_future(concurrent.futures.ThreadPoolExecutor(1).submit(torch.ones, 3))


@pytest.mark.parametrize("submit", [_of_executor, _wrapped])
def test_unfetched_results_in_futures_of_asyncio_are_kept(submit: Any, program: Any) -> None:
    async def main() -> float:
        program.future = await submit()
        while not program.future.done():
            await asyncio.sleep(0.01)
        fastpurge.sweep(keep=())
        return float((await program.future).sum())

    assert asyncio.run(main()) == 3


@pytest.mark.parametrize("replace", ["before", "after"])
def test_a_waiting_task_of_another_class_keeps_its_values(
    replace: str, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with nest_asyncio, which replaces `asyncio.Task` by the implementation in Python."""
    python_task: Any = asyncio.tasks._PyTask  # type: ignore[attr-defined]

    async def work() -> float:
        value = torch.ones(3)
        await program.event.wait()
        return float(value.sum())

    async def main() -> float:
        program.event = asyncio.Event()
        loop = asyncio.get_running_loop()
        if replace == "before":
            loop.set_task_factory(lambda loop, coro, **options: python_task(coro, loop=loop, **options))
        program.task = loop.create_task(work())
        await asyncio.sleep(0)
        if replace == "after":
            monkeypatch.setattr(asyncio, "Task", python_task)
        fastpurge.sweep(keep=())
        program.event.set()
        result: float = await program.task
        return result

    assert asyncio.run(main()) == 3


# Guard.LIBRARY spares them too: the registry of finalizers is a global of a library.
@pytest.mark.parametrize("guards", [Guard.ALL, Guard.RUNNING])
def test_a_finalizer_keeps_its_arguments(guards: Guard) -> None:
    class Resource:
        pass

    sums: list[float] = []
    resource = Resource()
    weakref.finalize(resource, lambda x: sums.append(float(x.sum())), torch.ones(4))
    fastpurge.sweep(keep=(), guards=guards)
    del resource
    gc.collect()
    assert sums == [4]


def test_a_background_task_of_a_response_runs() -> None:
    responses = pytest.importorskip("starlette.responses")
    background = pytest.importorskip("starlette.background")
    sums: list[float] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(0.05)

    async def main() -> None:
        task = background.BackgroundTask(lambda x: sums.append(float(x.sum())), torch.ones(4))
        response = responses.PlainTextResponse("text", background=task)
        del task
        serving = asyncio.create_task(response({"type": "http"}, None, send))
        del response
        await asyncio.sleep(0)
        fastpurge.sweep(keep=())
        await serving

    asyncio.run(main())
    assert sums == [4]


class Job:
    """A class of the program."""

    def __init__(self) -> None:
        self.batch = torch.ones(3)


def test_items_of_a_queue_are_kept_with_their_contents() -> None:
    waiting: queue.Queue[Job] = queue.Queue()
    waiting.put(Job())
    fastpurge.sweep(keep=())
    assert waiting.get().batch.sum() == 3


def test_a_scheduled_call_spares_no_more_than_a_running_one(program: Any) -> None:
    program.job = Job()
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait)
        pool.submit(functools.partial(getattr, program.job, "batch"))
        fastpurge.sweep(keep=())
        go.set()
    assert is_purged(program.job.batch)


def test_finished_executors_keep_nothing(program: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(program.__setattr__, "value", torch.ones(3)).result()
        deadline = time.monotonic() + 10
        while not hasattr(program, "value") and time.monotonic() < deadline:
            time.sleep(0.01)
        fastpurge.sweep(keep=())
    assert is_purged(program.value)
