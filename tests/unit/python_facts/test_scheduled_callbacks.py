"""Callbacks of event loops, timers, widgets and test runners keep the objects that they refer to."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import is_purged


def recorder(recorded: list[bool]) -> Callable[..., None]:
    """A function that records whether its tensor was released. Nothing else refers to the tensor."""
    needed = torch.ones(4)
    return lambda *_: recorded.append(is_purged(needed))


def sweep(program: Any) -> None:
    """Sweep, and check that a forgotten tensor is released."""
    program.leak = torch.ones(5)
    fastpurge.sweep(keep=())
    assert is_purged(program.leak)


class Repeat(threading.Timer):
    """A thread class as in common programs."""

    def run(self) -> None:
        while not self.finished.wait(self.interval):
            self.function(*self.args, **self.kwargs)


def test_a_timer_class_of_the_program_keeps_its_arguments(program: Any) -> None:
    recorded: list[bool] = []
    called = threading.Event()

    def call(needed: torch.Tensor) -> None:
        recorded.append(is_purged(needed))
        called.set()

    def start() -> Repeat:
        timer = Repeat(0.02, call, (torch.ones(4),))
        timer.start()
        return timer

    timer = start()
    sweep(program)
    called.clear()
    called.wait(60)
    timer.cancel()
    timer.join()
    assert set(recorded) == {False}


def test_a_thread_keeps_its_arguments_before_it_starts(program: Any) -> None:
    class Worker(threading.Thread):
        pass

    recorded: list[bool] = []
    worker = Worker(target=recorder(recorded))
    sweep(program)
    worker.start()
    worker.join()
    assert recorded == [False]


def test_periodic_callbacks_of_tornado_keep_their_values(program: Any) -> None:
    ioloop = pytest.importorskip("tornado.ioloop")
    recorded: list[bool] = []

    async def main() -> None:
        ioloop.PeriodicCallback(recorder(recorded), 20).start()
        await asyncio.sleep(0.01)
        sweep(program)
        recorded.clear()
        while not recorded:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert set(recorded) == {False}


def test_request_handlers_of_tornado_keep_their_values(program: Any) -> None:
    web, testing = pytest.importorskip("tornado.web"), pytest.importorskip("tornado.testing")
    recorded: list[bool] = []

    class Handler(web.RequestHandler):  # type: ignore[misc, name-defined]
        def initialize(self, needed: torch.Tensor) -> None:
            self.needed = needed

        async def get(self) -> None:
            needed, local = self.needed, torch.ones(6)
            await asyncio.sleep(0.05)
            recorded.append(is_purged(needed) or is_purged(local))

    def serve() -> int:
        socket, port = testing.bind_unused_port()
        application = web.Application([("/", Handler, {"needed": torch.ones(4)})])
        pytest.importorskip("tornado.httpserver").HTTPServer(application).add_sockets([socket])
        return int(port)

    async def main() -> None:
        client = pytest.importorskip("tornado.httpclient").AsyncHTTPClient()
        port = serve()
        sweep(program)
        request = asyncio.ensure_future(client.fetch(f"http://127.0.0.1:{port}/"))
        await asyncio.sleep(0.02)
        sweep(program)
        await request

    asyncio.run(main())
    assert recorded == [False]


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not for Windows")
def test_scheduled_callbacks_of_uvloop_keep_their_values(program: Any) -> None:
    uvloop = pytest.importorskip("uvloop")
    recorded: list[bool] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(recorder(recorded))
        loop.call_later(0.1, recorder(recorded))
        loop.call_at(loop.time() + 0.1, recorder(recorded))
        loop.call_later(0.1, lambda needed: recorded.append(is_purged(needed)), torch.ones(7))
        sweep(program)
        await asyncio.sleep(0.2)

    uvloop.run(main())
    assert recorded == [False] * 4


def test_callbacks_of_a_widget_keep_their_values(program: Any) -> None:
    ipywidgets = pytest.importorskip("ipywidgets")
    recorded: list[bool] = []

    def make() -> tuple[Any, Any]:
        button, slider = ipywidgets.Button(), ipywidgets.IntSlider()
        button.on_click(recorder(recorded))
        slider.observe(recorder(recorded), names="value")
        return button, slider

    button, slider = make()
    program.button, program.slider = make()
    sweep(program)
    for each in (button, program.button):
        each.click()
    for each in (slider, program.slider):
        each.value = 3
    assert recorded == [False] * 4
    for each in (button, slider, program.button, program.slider):
        each.close()  # until then the library refers to it


@contextlib.contextmanager
def _restoring(recorded: list[bool]) -> Iterator[None]:
    restored = torch.ones(8)
    yield
    recorded.append(is_purged(restored))


@pytest.fixture
def suspended(request: pytest.FixtureRequest) -> Iterator[None]:
    recorded: list[bool] = []
    local, needed = torch.ones(4), [torch.ones(9)]
    request.addfinalizer(lambda: torch.add(needed.pop(), 1))  # noqa: PT021 - that is what is tested
    with _restoring(recorded):
        yield
    recorded.append(is_purged(local))
    assert recorded == [False, False]


@pytest.mark.usefixtures("suspended")
def test_a_pytest_fixture_keeps_its_values_until_teardown(program: Any) -> None:
    sweep(program)
