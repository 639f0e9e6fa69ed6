"""Errors of work between prompts, on small models of ComfyUI's prompt queue and worker.

The tests on a real server are in test_routes.py.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fastpurge.comfy.server import between_prompts, routes


class Queue:
    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.not_empty = threading.Condition(self.mutex)
        self.currently_running: dict[int, Any] = {}
        self.rounds = 0

    def get_flags(self, reset: bool = True) -> dict[str, Any]:
        self.rounds += reset
        return {}

    def work(self, stop: threading.Event) -> None:
        """Like `prompt_worker` in main.py: wait for a long time, then call `get_flags`."""
        while not stop.is_set():
            with self.not_empty:
                self.not_empty.wait(timeout=60)
            self.get_flags()


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    server = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=None))
    server.PromptServer.instance = types.SimpleNamespace(prompt_queue=queue)
    monkeypatch.setitem(sys.modules, "server", server)
    return queue


@pytest.fixture
def worker(queue: Queue) -> Iterator[threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=queue.work, args=(stop,))
    thread.start()
    yield thread
    stop.set()
    while thread.is_alive():
        with queue.not_empty:
            queue.not_empty.notify_all()
        thread.join(0.01)


def test_work_runs_in_the_prompt_worker(queue: Queue, worker: threading.Thread) -> None:
    assert [between_prompts.run(threading.current_thread) for _ in range(3)] == [worker] * 3
    assert queue.get_flags() == {}
    assert queue.rounds > 3
    get_flags = queue.get_flags
    between_prompts.run(lambda: None)
    assert queue.get_flags is get_flags  # wrapped only once


def test_an_error_is_raised_in_the_caller_and_the_worker_goes_on(
    queue: Queue, worker: threading.Thread
) -> None:
    for error in (TimeoutError, KeyboardInterrupt):

        def fail(error: type[BaseException] = error) -> None:
            raise error("meant to fail")

        with pytest.raises(error, match="meant to fail"):
            between_prompts.run(fail)
    assert between_prompts.run(lambda: 5) == 5


def test_work_is_refused_while_a_prompt_runs_and_never_run_later(
    queue: Queue, worker: threading.Thread
) -> None:
    done: list[int] = []
    queue.currently_running[0] = "a prompt"
    with pytest.raises(between_prompts.Busy, match="a prompt is running"):
        between_prompts.run(lambda: done.append(1))
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(between_prompts.run, lambda: done.append(2), wait=math.inf)
        while not _is_taken():
            pass
        queue.currently_running.clear()
        patient.result(60)
    assert done == [2]


def _is_taken() -> bool:
    try:
        between_prompts.run(lambda: None)
    except between_prompts.Busy as busy:
        return str(busy) == "another purge is under way"
    return False


def test_waiting_for_a_worker_that_does_not_respond_times_out(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(between_prompts, "_WAKE_TIMEOUT", 0.05)
    with pytest.raises(between_prompts.Busy, match="does not respond"):
        between_prompts.run(lambda: None)
    queue.get_flags()  # a late call finds no work


def test_running_work_is_never_abandoned(
    queue: Queue, worker: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(between_prompts, "_WAKE_TIMEOUT", 0.5)
    assert between_prompts.run(lambda: threading.Event().wait(1)) is False


def test_a_failed_request_is_answered_with_the_reason_and_logged(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    del queue.not_empty

    async def ask() -> tuple[int, dict[str, str]]:
        table = web.RouteTableDef()
        routes.add_routes(table)
        app = web.Application()
        app.add_routes(table)
        async with TestClient(TestServer(app)) as client:
            answer = await client.post(routes.SWEEP, json={})
            return answer.status, await answer.json()

    # In a thread: where tests of the browser have run, this one has an event loop that runs.
    with ThreadPoolExecutor(1) as thread:
        status, body = thread.submit(asyncio.run, ask()).result()
    assert status == 500
    assert "the prompt queue lacks an attribute in this version of ComfyUI" in body["error"]
    assert "POST /fastpurge/sweep failed" in caplog.text


def test_an_unsupported_queue_is_not_changed(queue: Queue) -> None:
    del queue.not_empty
    with pytest.raises(RuntimeError, match="the prompt queue lacks an attribute in this version of ComfyUI"):
        between_prompts.run(lambda: None)
    assert "get_flags" not in vars(queue)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"kind": "everything", "label": "me"}, "kind: one of 'vram', 'ram', 'all'"),
        ({"kind": "ram", "label": ""}, "label: a string"),
        ({"kind": "ram", "label": None}, "label: a string"),
        ({"kind": "ram", "label": "me", "min_bytes": 5}, "min_bytes: 1,048,576 or more"),
        ({"kind": "ram", "label": "me", "min_bytes": 2e9}, "min_bytes: a number of bytes"),
        ({"kind": "vram", "label": "me", "min_bytes": 2 << 20}, "min_bytes: not for 'vram'"),
        ({"kind": "ram", "label": "me", "wait": -1}, "wait: seconds, 0 or more"),
        ({"kind": "ram", "label": "me", "wait": math.nan}, "wait: seconds, 0 or more"),
        ({"kind": "ram", "label": "me", "wait": "5"}, "wait: seconds, 0 or more"),
    ],
)
def test_arguments_are_checked_first(queue: Queue, arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        between_prompts.purge(**arguments)
    assert "get_flags" not in vars(queue)
