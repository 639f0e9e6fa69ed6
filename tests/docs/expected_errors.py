"""Functions that the script of a page calls. They refer to no object of it, or sweeps would spare that."""

from __future__ import annotations

import sys
from types import TracebackType


class raises:  # noqa: N801 - reads as in pytest
    """Expect an error by the name of its class, without an import."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if kind is None:
            raise AssertionError(f"no {self._name} was raised")
        return kind.__name__ == self._name


def end() -> None:
    """Mark the end of a block in the output."""
    sys.stdout.write("\x1e")
