"""Values that the standard library will call back with survive a sweep."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import multiprocessing.util
import sqlite3
import sys
import unittest
import warnings
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from typing import Any
from unittest import mock

import pytest
import torch

from tests.unit.engine.values_in_use import four, reads, sweep, through, total


def adds_to(totals: list[float]) -> Callable[..., None]:
    """A callback that alone refers to its tensor."""
    value = four()
    return lambda *_, **__: totals.append(total(value))


class TestCallbacks:
    def test_functions_of_a_database_keep_their_values(self) -> None:
        connection = sqlite3.connect(":memory:")
        totals: list[float] = []

        def register() -> None:
            collate, make_row = reads(four()), reads(four())
            connection.create_function("read", 0, reads(four()))
            connection.create_collation("order", lambda a, b: int(collate() / 4) * ((a > b) - (a < b)))
            connection.set_trace_callback(adds_to(totals))
            connection.row_factory = lambda _, row: (row[0], make_row())

        register()
        sweep()
        assert connection.execute("select read()").fetchone() == (4, 4)
        rows = connection.execute("select column1 from (values (2), (1)) order by column1 collate 'order'")
        assert rows.fetchall() == [(1, 4), (2, 4)]
        assert totals == [4] * 2

    def test_parts_of_a_class_keep_their_values(self) -> None:
        class Made:
            method = functools.partialmethod(lambda _, value: total(value), four())
            prop = property(reads(four()))

            @functools.singledispatchmethod
            def dispatched(self, _: object) -> None: ...

        vars(Made)["dispatched"].register(int)(reads(four()))

        def dispatching() -> Any:
            function: Any = functools.singledispatch(lambda _: None)
            function.register(int)(reads(four()))
            return function

        function = dispatching()
        one: Any = Made()
        sweep()
        assert (one.method(), one.prop, one.dispatched(1), function(1)) == (4, 4, 4, 4)

    def test_mocks_keep_the_values_that_they_return(self) -> None:
        plain = mock.Mock(side_effect=[four(), four()], attribute=four())
        magic = mock.MagicMock()
        magic.attribute.return_value = four()
        specified = mock.create_autospec(lambda _: 1, side_effect=reads(four()))
        sweep()
        values = plain(), plain(), plain.attribute, magic.attribute()
        assert [*map(total, values), specified(1)] == [4] * 5

    def test_cleanups_of_test_cases_keep_their_values(self) -> None:
        totals: list[float] = []

        class Case(unittest.TestCase):
            @classmethod
            def setUpClass(cls) -> None:
                cls.addClassCleanup(lambda value: totals.append(total(value)), four())

            def test(self) -> None:
                self.addCleanup(lambda value: totals.append(total(value)), four())
                sweep()

        unittest.TestSuite([Case("test")]).run(unittest.TestResult())
        unittest.addModuleCleanup(lambda value: totals.append(total(value)), four())
        sweep()
        unittest.doModuleCleanups()
        assert totals == [4] * 3

    def test_a_filter_of_a_logger_keeps_its_value(self) -> None:
        totals: list[float] = []
        logger = logging.getLogger("asyncio")
        logger.addFilter(adds_to(totals))  # type: ignore[arg-type]
        try:
            sweep()
            logger.error("text")
        finally:
            logger.filters.clear()
        assert totals == [4]

    def test_a_finalizer_of_multiprocessing_keeps_its_values(self) -> None:
        class Resource: ...

        totals: list[float] = []
        resource = Resource()
        multiprocessing.util.Finalize(resource, adds_to(totals), args=(four(),))
        sweep()
        del resource
        assert totals == [4]

    def test_a_recorded_warning_keeps_its_arguments(self) -> None:
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            warnings.warn(UserWarning(four()), stacklevel=1)
            sweep()
        message: Any = recorded[0].message
        assert total(message.args[0]) == 4

    def test_a_function_that_profiles_keeps_its_value(self) -> None:
        totals: list[float] = []

        def tick() -> None: ...

        def profiling(record: Callable[[], None]) -> Any:
            return lambda frame, event, _: record() if frame.f_code is tick.__code__ else None

        before = sys.getprofile()
        sys.setprofile(profiling(adds_to(totals)))
        try:
            sweep()
            tick()
        finally:
            sys.setprofile(before)
        assert totals == [4, 4]  # the call and the return

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12")
    def test_a_function_that_monitors_keeps_its_value(self) -> None:
        totals: list[float] = []
        monitoring: Any = vars(sys)["monitoring"]

        def tick() -> None: ...

        monitoring.use_tool_id(4, "test")
        try:
            monitoring.register_callback(4, monitoring.events.PY_START, adds_to(totals))
            sweep()
            monitoring.set_local_events(4, tick.__code__, monitoring.events.PY_START)
            tick()
        finally:
            monitoring.set_local_events(4, tick.__code__, 0)
            monitoring.register_callback(4, monitoring.events.PY_START, None)
            monitoring.free_tool_id(4)
        assert totals == [4]


class TestPools:
    def test_the_initializer_of_a_pool_that_nothing_was_submitted_to_keeps_its_values(self) -> None:
        totals: list[float] = []

        def made_pool() -> Any:
            return concurrent.futures.ThreadPoolExecutor(
                1, initializer=lambda value: totals.append(total(value)), initargs=(four(),)
            )

        with made_pool() as pool:
            sweep()
            pool.submit(len, ()).result()
        assert totals == [4]

    def test_futures_taken_as_they_complete_keep_their_results(self, program: Any) -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            program.futures = [pool.submit(four) for _ in range(3)]
            completed = concurrent.futures.as_completed(program.futures)
            program.futures = next(completed)
            sweep()
            assert [total(one.result()) for one in completed] == [4, 4]

    def test_callbacks_and_results_of_a_thread_pool_keep_their_values(self, program: Any) -> None:
        totals: list[float] = []

        def adding(value: torch.Tensor) -> Any:
            return lambda result: totals.append(total(value + result))

        with ThreadPool(1) as pool:
            program.mapped = pool.imap_unordered(lambda one: one, [four(), four(), four()])
            program.results = pool.map_async(lambda one: one, [four()])
            pool.apply_async(lambda value: through(value), (four(),), callback=adding(four()))
            pool.close()
            pool.join()
            sweep()
            assert [total(one) for one in (*program.mapped, *program.results.get())] == [4] * 4
        assert totals == [8]
