"""Fixtures of the tests of the routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comfyui.comfyui_process import Server, comfyui


@pytest.fixture(scope="module")
def other(home: Path) -> Iterator[Server]:
    """A server that allows one other origin, and has no cache."""
    with comfyui(home, "--enable-cors-header", "https://page.test", "--cache-none") as running:
        yield running


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """The file that a prompt waits for; it is created at the end of every test."""
    yield tmp_path / "go"
    (tmp_path / "go").touch()
