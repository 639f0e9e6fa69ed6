"""Whose tests `run.py` runs. The versions are those of the group `suites` in pyproject.toml."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Project:
    """A source distribution that carries its tests.

    Attributes:
        name: as PyPI spells it.
        tests: files and folders in it.
        few: a choice of them, for continuous integration.
        options: what pytest is told besides.

    """

    name: str
    tests: tuple[str, ...]
    few: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def folders(self) -> set[str]:
        """What is taken out of the archive."""
        return {test.partition("/")[0] if test.startswith("test") else test for test in self.tests}


PROJECTS = (
    Project("einops", ("einops/tests",), few=("einops/tests",)),
    Project("linear-operator", ("test",)),
    Project("gpytorch", ("test",), options=("--ignore=test/examples",)),
)
