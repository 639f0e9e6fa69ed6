"""A pytest plugin that sweeps or plans beside the tests of other projects. Loaded by `run.py`.

--purging=none    only sets the random seeds
--purging=sweep   sweeps after each of the three phases of every test: setup, call, teardown
--purging=plan    another thread plans continuously
--purging=thread  another thread sweeps continuously

Kept are the modules of the tests, and the pytest session, from which every item
and the values of its fixtures are reachable. The guards must spare everything else that a test uses. Each
sweep must release a tensor that the plugin forgot before it, and each plan must list it.
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

SHAPE = (2, 3, 5, 7, 11)  # of the forgotten tensor, and of no other
TIMEOUT = 60  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--purging", choices=("none", "sweep", "plan", "thread"), default="none")


def kept(session: pytest.Session) -> list[object]:
    """The session, and the modules of the tests, whose globals are kept with them."""
    tests = str(session.config.rootpath)
    modules = [one for one in sys.modules.copy().values() if type(one) is ModuleType]
    return [session, *(one for one in modules if str(vars(one).get("__file__")).startswith(tests))]


def forget() -> weakref.ref[torch.Tensor]:
    """Create a tensor that only garbage refers to."""
    tensor = torch.empty(SHAPE, device="cpu", dtype=torch.uint8)
    garbage: list[Any] = [tensor]
    garbage.append(garbage)
    gc.collect(1)  # moves it into the generation that is collected last
    return weakref.ref(tensor)


def sweep(session: pytest.Session) -> bool:
    """Whether a sweep releases the forgotten tensor: while a thread is inside a backward, none does."""
    forgotten = forget()
    fastpurge.sweep(keep=kept(session), collect=False)
    return fastpurge.is_purged(forgotten())


def plan(session: pytest.Session) -> bool:
    """Whether a plan lists the forgotten tensor."""
    forget()
    return any(item.shape == SHAPE for item in fastpurge.plan(keep=kept(session), collect=False).items)


def pytest_configure(config: pytest.Config) -> None:
    mode = config.getoption("--purging")
    if mode == "sweep":
        config.pluginmanager.register(AfterEachTest())
    elif mode != "none":
        config.pluginmanager.register(InAnotherThread(plan if mode == "plan" else sweep))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the generators: many tests use random values, and some values make them fail."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class AfterEachTest:
    """Sweeps after the call of a test, before the teardown of its fixtures."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        yield
        # The collector may be faster than one of the sweeps.
        assert any(sweep(item.session) for _ in range(3)), "what was forgotten was not released"


class InAnotherThread:
    """Repeats an action in another thread while a test runs, at least once for each test."""

    def __init__(self, act: Callable[[pytest.Session], bool]) -> None:
        self._act = act
        self._done = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._session: pytest.Session | None = None  # while a test runs

    def pytest_collection_finish(self) -> None:
        # `gc.freeze` hides imported objects from the collector: a third of the time. Their references are
        # external, so that more is spared; the mode `sweep` has no such limit.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(0.0005)  # or a short test ends before the other thread runs
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
                came = self._changed.wait_for(lambda: self._done or self._error, TIMEOUT)
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
                self._record(error=error)
            else:
                self._record(done=done)
            sleep(perf_counter() - began)  # or every operation that releases the GIL waits for a whole sweep

    def _record(self, *, done: bool = False, error: BaseException | None = None) -> None:
        with self._changed:
            self._done += done
            self._error = self._error or error
            self._changed.notify_all()
