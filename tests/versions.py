"""Test results by version: `docs/versions.json`, and the table of `docs/versions.md` made from it.

python tests/versions.py record RESULTS.xml   # of pytest --junitxml, by the interpreter that ran the tests
python tests/versions.py check                # fails if the page is out of date; run by `make lint`
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "versions.json", DOCS / "versions.md"
COLUMNS = (
    "python",
    "torch",
    "numpy",
    "platform",
    "tests",
    "passed",
    "failed",
    "skipped",
    "fastpurge",
    "date",
)
HEAD = """# Versions

What the tests of the core (`tests/core`) and of the package (`tests/unit`) gave, each in an environment
of its own. `make versions` runs them and writes this page from their results (`docs/versions.json`), and
`make lint` sees that the two agree. Nothing here is filled in by hand. What is not in the table was not
run to its end.
"""


def summaries(results: Path) -> list[dict[str, Any]]:
    """The results of each folder of tests, from a junit file of pytest that this interpreter wrote."""
    cases: dict[str, list[ElementTree.Element]] = {}
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        cases.setdefault(str(case.get("classname")).split(".")[1], []).append(case)
    if not cases:
        raise ValueError(f"{results}: no test was run")
    return [_summary(folder, of_folder) for folder, of_folder in cases.items()]


def _summary(folder: str, cases: list[ElementTree.Element]) -> dict[str, Any]:
    bad = sorted(
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    )
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "tests": folder,
        "passed": len(cases) - len(bad) - skipped,
        "failed": len(bad),
        "skipped": skipped,
        "fastpurge": version("torch-fastpurge"),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "failures": bad,
    }


def with_run(runs: list[dict[str, Any]], run: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs and a new one, which replaces that of the same versions; the newest versions first."""
    others = [other for other in runs if _versions(other) != _versions(run)]
    return sorted([*others, run], key=_versions, reverse=True)


def _versions(run: dict[str, Any]) -> tuple[Any, ...]:
    numbers = (run[of].split("+")[0].split(".") for of in ("python", "torch", "numpy"))
    return (*(tuple(int(part) for part in number) for number in numbers), run["platform"], run["tests"])


def render(runs: list[dict[str, Any]]) -> str:
    """The text of the page."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *([run[of] for of in COLUMNS] for run in runs)]
    table = "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
    failed = [
        f"- Python {run['python']}, torch {run['torch']}: `{name}`\n"
        for run in runs
        for name in run["failures"]
    ]
    return f"{HEAD}\n{table}" + (f"\n## What failed\n\n{''.join(failed)}" if failed else "")


def main(command: str, *files: str) -> int:
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if command == "check":
        if PAGE.read_text() == render(runs):
            return 0
        print("docs/versions.md is not what docs/versions.json gives: run `make versions`", file=sys.stderr)  # noqa: T201
        return 1
    for file in files:
        for run in summaries(Path(file)):
            runs = with_run(runs, run)
    RESULTS.write_text(json.dumps(runs, indent=2) + "\n")
    PAGE.write_text(render(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
