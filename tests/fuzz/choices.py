"""Choices from bytes: a fuzzer that changes one byte changes one choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Choices:
    """One byte for each choice; zeros after the last byte."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def number(self, limit: int) -> int:
        """A number below a limit."""
        return next(self._data, 0) % limit

    def one_of(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.number(len(options))]

    def several(self, limit: int, make: Callable[[], Any]) -> list[Any]:
        """A list of up to ``limit`` values, made one by one."""
        return [make() for _ in range(self.number(limit + 1))]

    def text(self) -> str:
        """A text of any characters, including surrogates."""
        return "".join(self.several(12, lambda: chr(self.number(256) << self.number(9) & 0xFFFF)))
