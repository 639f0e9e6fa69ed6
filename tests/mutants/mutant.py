"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """The package with one piece of text replaced.

    Attributes:
        name: what the mutant does wrong.
        file: the file of the package, relative to `python/fastpurge`.
        old: the text to replace; it occurs once in the file.
        new: the text in its place.
        tests: the test files of which one must fail, separated by spaces.

    """

    name: str
    file: str
    old: str
    new: str
    tests: str


def skipped_stage(function: str, tests: str) -> Mutant:
    """A mutant in which one stage of the survey spares nothing."""
    return Mutant(
        f"{function} off",
        "engine/survey.py",
        f"def {function}(search: Search, ",
        f"def {function}(*_: Any) -> bool:\n    return False\n\n\ndef _unused{function}(search: Search, ",
        tests,
    )
