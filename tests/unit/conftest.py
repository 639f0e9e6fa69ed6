"""Fixtures of the tests of the package."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import fastpurge
import pytest
from fastpurge import safe_point
from fastpurge.automatic import safe_points


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("imports_much") is not None)


@pytest.fixture(scope="session", autouse=True)
def _nothing_at_module_level() -> None:
    """Release parameters of tests in test modules, which the first sweep would count."""
    fastpurge.sweep(keep=())


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """`gc.freeze` hides existing objects from the collector: a sweep takes a fraction of the time.

    Objects that they refer to have external references then. So this is for tests of the result of a sweep.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def main_thread_takes_part() -> Iterator[None]:
    """The main thread has safe points, so that a watch waits for it; they are cleared after the test."""
    with safe_point():
        pass
    yield
    vars(safe_points._here).clear()
    assert not safe_points._shared.due
