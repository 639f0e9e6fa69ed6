"""Fixtures of the tests of `why`, `census` and their roots."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def collector_off() -> Iterator[None]:
    """The garbage collector does not run, so that reference cycles stay."""
    gc.disable()
    yield
    gc.enable()
