"""What the tests of the zoo share."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that stands for somebody's program: its globals are where things are forgotten."""
    module: Any = types.ModuleType("forgetful_program")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    vars(module).clear()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models lose more by waiting for threads than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
