"""Fixtures of the tests of `let_go`."""

from __future__ import annotations

import pytest

from tests.unit.exceptions.failing_functions import created


@pytest.fixture(autouse=True)
def _forget_created_tensors() -> None:
    created.clear()
