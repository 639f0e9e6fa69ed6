"""Fixtures of the tests of the package and of the zoo."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module in the role of a user's program, with forgotten objects in its globals."""
    module: Any = types.ModuleType("forgetful_program")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    vars(module).clear()
