"""What the tests of the package share."""

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
    """Release what test modules have as arguments of tests: the first sweep would count it with its own."""
    fastpurge.sweep(keep=())


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """What was there before is out of the collector's sight: a sweep takes a fraction of the time.

    What that holds counts as held by C code, so this is for tests of what comes after a sweep.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def main_thread_takes_part() -> Iterator[None]:
    """Nothing is swept but where a test waits at a safe point, and no test keeps the next one from it."""
    with safe_point():
        pass
    yield
    vars(safe_points._here).clear()
    assert not safe_points._shared.due
