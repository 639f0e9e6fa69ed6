"""Leaked objects: references from an object of ComfyUI, which no root of a custom node pack reaches."""

from __future__ import annotations

from typing import Any


class LeakedObjects:
    def __init__(self) -> None:
        self.all: list[Any] = []


def leak(one: Any) -> None:
    """Keep an object alive through an attribute of ComfyUI's server."""
    leaked().append(one)


def leaked() -> list[Any]:
    from server import PromptServer

    objects: LeakedObjects = vars(PromptServer.instance).setdefault("leaked", LeakedObjects())
    return objects.all
