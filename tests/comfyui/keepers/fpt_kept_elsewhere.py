"""A module that the pack imports through `sys.path`, not as its own submodule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_kept: dict[str, Any] = {}


def get(name: str, load: Callable[[str], Any]) -> Any:
    if name not in _kept:
        _kept[name] = load(name)
    return _kept[name]
