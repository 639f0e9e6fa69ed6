"""What is done between prompts when things go wrong: a small model of ComfyUI's queue and of its thread.

It is beside the tests on a real server in test_routes.py, not instead of them.
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
        """As the thread that runs prompts does, which waits for long and not for nothing."""
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


def test_it_is_done_by_the_thread_that_runs_prompts(queue: Queue, worker: threading.Thread) -> None:
    assert [between_prompts.run(threading.current_thread) for _ in range(3)] == [worker] * 3
    assert queue.get_flags() == {}
    assert queue.rounds > 3
    get_flags = queue.get_flags
    between_prompts.run(lambda: None)
    assert queue.get_flags is get_flags  # one wrapper, however often


def test_an_error_comes_out_where_it_was_asked_for_and_prompts_go_on(
    queue: Queue, worker: threading.Thread
) -> None:
    for error in (TimeoutError, KeyboardInterrupt):

        def fail(error: type[BaseException] = error) -> None:
            raise error("meant to fail")

        with pytest.raises(error, match="meant to fail"):
            between_prompts.run(fail)
    assert between_prompts.run(lambda: 5) == 5


def test_while_a_prompt_runs_nothing_is_done_and_what_was_refused_is_not_done_later(
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


def test_a_thread_that_does_not_come_round_is_not_waited_for_for_ever(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(between_prompts, "_WAKE_TIMEOUT", 0.05)
    with pytest.raises(between_prompts.Busy, match="does not respond"):
        between_prompts.run(lambda: None)
    queue.get_flags()  # it comes at last, and finds nothing to do


def test_what_has_begun_is_waited_for_however_long_it_takes(
    queue: Queue, worker: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(between_prompts, "_WAKE_TIMEOUT", 0.5)
    assert between_prompts.run(lambda: threading.Event().wait(1)) is False


def test_a_request_that_fails_is_answered_with_the_reason_and_logged(
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


def test_a_queue_that_is_made_otherwise_is_left_alone(queue: Queue) -> None:
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
def test_arguments_are_checked_before_anything_is_touched(
    queue: Queue, arguments: dict[str, Any], error: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        between_prompts.purge(**arguments)
    assert "get_flags" not in vars(queue)
