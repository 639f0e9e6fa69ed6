"""Test suites that no one here wrote, beside sweeps and plans: see `purging.py`. Run by `make suites`.

python -m tests.suites.run FOLDER          # all of them, and their table in docs/endurance.md
python -m tests.suites.run FOLDER few      # the choice for continuous integration
python -m tests.suites.run FOLDER NAME...  # these projects

Every project of `projects.py` is run without a purge and in each mode. A test that passes without and not
with is printed, and makes the exit status 1. So does one in which the process ends or hangs: its worker is
replaced, and the others go on. FOLDER keeps the sources and the results; the results without a purge are
not made again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tests.suites.projects import PROJECTS, Project

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "endurance.md"
BEGIN, END = "<!-- written by tests/suites/run.py -->\n", "<!-- to here -->\n"
MODES = ("sweep", "plan", "thread")
COLUMNS = ("project", "version", "tests", "passed without", *MODES, "minutes")
PYTEST = (
    *("-m", "pytest", "--quiet", "-p", "purging", "-p", "no:cacheprovider", "-c", "pytest.ini"),
    *("-n1", "--max-worker-restart=10000", "--timeout=300", "--timeout-method=thread"),
)
ENVIRONMENT = {
    "PYTHONPATH": str(HERE),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "EINOPS_TEST_BACKENDS": "numpy,torch",
}


@dataclass(frozen=True)
class Results:
    """How many tests of a project pass without a purge, and which of these do not with, by mode."""

    project: Project
    tests: int
    passed: int
    failed: dict[str, list[str]]
    seconds: float

    def row(self) -> tuple[object, ...]:
        failed = (len(self.failed[mode]) for mode in MODES)
        name = self.project.name
        return (name, version(name), self.tests, self.passed, *failed, f"{self.seconds / 60:.1f}")


def unpacked(project: Project, folder: Path) -> Path:
    """The tests of a project, and not the source beside them: what they test is installed."""
    release = f"{project.name}=={version(project.name)}"
    target = folder / release
    if not target.exists():
        archives = folder / "archives" / release
        pip = ("-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", project.name, release)
        subprocess.run([sys.executable, *pip, "--dest", archives], check=True)
        [archive] = archives.iterdir()
        with tarfile.open(archive) as source:
            source.extractall(target, members=_tests(source, project), filter="data")
        (target / "pytest.ini").write_text("[pytest]\n")
    return target


def _tests(source: tarfile.TarFile, project: Project) -> Iterator[tarfile.TarInfo]:
    for member in source:
        member.path = member.path.partition("/")[2]
        if member.path.startswith(("conftest.py", *project.folders)):
            yield member


def outcomes(results: Path) -> dict[str, bool]:
    """Whether each test passed, its teardown as well; not those that were skipped."""
    found: dict[str, bool] = {}
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("skipped") is None:
            bad = case.find("failure") is not None or case.find("error") is not None
            found[name] = found.get(name, True) and not bad
    return found


def seconds(results: Path) -> float:
    return sum(float(suite.get("time", 0)) for suite in ElementTree.parse(results).iter("testsuite"))


def run(project: Project, folder: Path, *, few: bool) -> Results:
    """A project without a purge, unless that was done before, and in each mode."""
    tests = unpacked(project, folder)
    results = {
        mode: tests.with_name(f"{tests.name}{'-few' * few}-{mode}.xml").absolute()
        for mode in ("none", *MODES)
    }
    for mode, file in results.items():
        if mode == "none" and file.exists():
            continue
        options = (f"--purging={mode}", f"--junitxml={file}", *project.options)
        command = [sys.executable, *PYTEST, *options, *(project.few if few else project.tests)]
        with file.with_suffix(".log").open("w") as log:
            env = os.environ | ENVIRONMENT
            subprocess.run(command, cwd=tests, env=env, stdout=log, stderr=log, check=False)
    found = {mode: outcomes(file) for mode, file in results.items()}
    passed = {name for name, passes in found["none"].items() if passes}
    failed = {mode: sorted(name for name in passed if not found[mode].get(name)) for mode in MODES}
    return Results(project, len(found["none"]), len(passed), failed, sum(map(seconds, results.values())))


def table(results: list[Results]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(each.row() for each in results)]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def main(folder: str, *chosen: str) -> int:
    few = chosen == ("few",)
    projects = [one for one in PROJECTS if (one.few if few else not chosen or one.name in chosen)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(partial(run, folder=Path(folder), few=few), projects))
    print(table(results))  # noqa: T201
    failures = [
        f"{each.project.name}, {mode}: {name}"
        for each in results
        for mode in MODES
        for name in each.failed[mode]
    ]
    print("\n".join(failures))  # noqa: T201
    if not chosen:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
