"""Fixtures of the core tests."""

from __future__ import annotations

import sys
import sysconfig

import pytest
from fastpurge._core import Libraries


@pytest.fixture(scope="session")
def libraries() -> Libraries:
    folders = [(sysconfig.get_path(name), True) for name in ("stdlib", "purelib", "platlib")]
    return Libraries((*folders,), (*sys.stdlib_module_names,))
