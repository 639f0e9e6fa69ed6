"""What the tests of the package share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastpurge import safe_point, safe_points


@pytest.fixture
def main_thread_takes_part() -> Iterator[None]:
    """Nothing is swept but where a test waits at a safe point, and no test keeps the next one from it."""
    with safe_point():
        pass
    yield
    vars(safe_points._here).clear()
    assert not safe_points._everyone.due
