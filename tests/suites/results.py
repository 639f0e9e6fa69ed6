"""Results of `run.py`: compares junit files of pytest, and writes the table of docs/endurance.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parents[2] / "docs" / "endurance.md"
BEGIN, END = "<!-- written by tests/suites/run.py -->\n", "<!-- to here -->\n"
WITHOUT, MODES = "none", ("sweep", "plan", "thread")
COLUMNS = ("project", "version", "tests", "passed without", *(f"failed, {mode}" for mode in MODES), "minutes")


@dataclass(frozen=True)
class Results:
    """Results of the tests of one project, without a purge and in each mode."""

    project: str
    version: str
    files: dict[str, Path]

    @cached_property
    def outcomes(self) -> dict[str, dict[str, bool]]:
        return {mode: outcomes(file) for mode, file in self.files.items()}

    @property
    def passed(self) -> set[str]:
        return {name for name, passes in self.outcomes[WITHOUT].items() if passes}

    def failed(self, mode: str) -> list[str]:
        """Tests that pass without a purge and fail in this mode."""
        return sorted(name for name in self.passed if not self.outcomes[mode].get(name))

    def row(self) -> tuple[object, ...]:
        minutes = sum(map(seconds, self.files.values())) / 60
        failed = (len(self.failed(mode)) for mode in MODES)
        total = len(self.outcomes[WITHOUT])
        return (self.project, self.version, total, len(self.passed), *failed, f"{minutes:.1f}")


def outcomes(file: Path) -> dict[str, bool]:
    """Whether each test passed, including its teardown; without skipped tests."""
    found: dict[str, bool] = {}
    for case in ElementTree.parse(file).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("skipped") is None:
            bad = case.find("failure") is not None or case.find("error") is not None
            found[name] = found.get(name, True) and not bad
    return found


def seconds(file: Path) -> float:
    return sum(float(suite.get("time", 0)) for suite in ElementTree.parse(file).iter("testsuite"))


def table(results: Iterable[Results]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(each.row() for each in results)]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def write(results: Iterable[Results]) -> None:
    """Write the table into the page, between the two comments."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}")
