"""A plugin for pytest that sweeps or plans beside tests that know nothing of it. Loaded by `run.py`.

--purging=none    leaves the tests alone, but for the seeds
--purging=sweep   sweeps after each of the three phases of every test: setup, call, teardown
--purging=plan    another thread plans all the while
--purging=thread  another thread sweeps all the while

What is kept is what belongs to the tests: their modules, and pytest's session, which leads to every item
and to the values of its fixtures. Everything else that a test works with has to be spared unnamed. Each
sweep must release a tensor that was forgotten for it, and each plan must list it.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from time import perf_counter, sleep
from types import ModuleType
from typing import Any, cast

import fastpurge
import numpy as np
import pytest
import torch

SHAPE = (2, 3, 5, 7, 11)  # of what is forgotten; nothing else has it
PATIENCE = 60  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--purging", choices=("none", "sweep", "plan", "thread"), default="none")


def kept(session: pytest.Session) -> list[object]:
    """The session, and the modules of the tests: named, a module's globals are kept."""
    tests = str(session.config.rootpath)
    modules = [one for one in sys.modules.copy().values() if type(one) is ModuleType]
    return [session, *(one for one in modules if str(vars(one).get("__file__")).startswith(tests))]


def forget() -> weakref.ref[torch.Tensor]:
    """Leave a tensor that only garbage refers to."""
    tensor = torch.empty(SHAPE, device="cpu", dtype=torch.uint8)
    garbage: list[Any] = [tensor]
    garbage.append(garbage)
    gc.collect(1)  # moves it into the generation that is seldom collected
    return weakref.ref(tensor)


def sweep(session: pytest.Session) -> bool:
    """Whether it has released what was forgotten: while a thread is inside a backward, none does."""
    forgotten = forget()
    fastpurge.sweep(keep=kept(session), collect=False)
    return fastpurge.is_purged(forgotten())


def plan(session: pytest.Session) -> bool:
    """Whether it lists what was forgotten."""
    forget()
    return any(item.shape == SHAPE for item in fastpurge.plan(keep=kept(session), collect=False).items)


def pytest_configure(config: pytest.Config) -> None:
    mode = config.getoption("--purging")
    if mode == "sweep":
        config.pluginmanager.register(AfterEachTest())
    elif mode != "none":
        config.pluginmanager.register(AllTheWhile(plan if mode == "plan" else sweep))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Many tests draw what they compute with, and some draw what they cannot compute with."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class AfterEachTest:
    """Sweeps where the test has just left off, and its fixtures are to be torn down yet."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        yield
        # The collector may be faster, with one.
        assert any(sweep(item.session) for _ in range(3)), "what was forgotten was not released"


class AllTheWhile:
    """Does something over and over in another thread while a test runs, and at least once for each."""

    def __init__(self, act: Callable[[pytest.Session], bool]) -> None:
        self._act = act
        self._done = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._session: pytest.Session | None = None  # while a test runs

    def pytest_collection_finish(self) -> None:
        # What was imported is out of the collector's sight then: a third of the time. Held by it counts as
        # held by C code, which spares more; in the other mode it does not.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(0.0005)  # or a short test is over before the other thread has its turn
        threading.Thread(target=self._run, name="purging", daemon=True).start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with self._changed:
            self._done, self._error, self._session = 0, None, item.session
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                came = self._changed.wait_for(lambda: self._done or self._error, PATIENCE)
                self._session = None
        if self._error is not None:
            raise self._error
        assert came, "what was forgotten was neither released nor planned"

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._session)
                session = cast(pytest.Session, self._session)
            began = perf_counter()
            try:
                done = self._act(session)
            except BaseException as error:
                self._tell(error=error)
            else:
                self._tell(done=done)
            sleep(
                perf_counter() - began
            )  # or every operation that gives the GIL away waits for a whole sweep

    def _tell(self, *, done: bool = False, error: BaseException | None = None) -> None:
        with self._changed:
            self._done += done
            self._error = self._error or error
            self._changed.notify_all()
