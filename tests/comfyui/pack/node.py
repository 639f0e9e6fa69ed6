"""The base class of the nodes, and how often each has run."""

from __future__ import annotations

from typing import Any

RUNS: dict[str, int] = {}


def count_run(node: Any) -> None:
    name = type(node).__name__
    RUNS[name] = RUNS.get(name, 0) + 1


class Node:
    CATEGORY = "fastpurge tests"
    FUNCTION = "run"
    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    REQUIRED: dict[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": cls.REQUIRED}
