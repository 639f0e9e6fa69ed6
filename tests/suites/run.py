"""Test suites of other projects beside sweeps and plans: see `sweep_plugin.py`. Run by `make suites`.

python -m tests.suites.run FOLDER          # all projects of `projects.py`
python -m tests.suites.run FOLDER NAME...  # these
python -m tests.suites.run FOLDER few      # a choice of their tests, for continuous integration

Each suite runs without a purge and in each mode. A test that fails only beside purges is printed, and makes
the exit status 1; so does a test in which the process ends or hangs: its worker is replaced, and the others
continue. FOLDER keeps the sources and the results: results of whole suites are reused, and docs/endurance.md
has the table of all results.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tests.suites.projects import PROJECTS, Project
from tests.suites.results import MODES, WITHOUT, Results, table, write

PYTEST = (
    *("-m", "pytest", "--quiet", "-p", "sweep_plugin", "-p", "no:cacheprovider", "-c", "pytest.ini"),
    *("-n1", "--max-worker-restart=10000", "--timeout=600", "--timeout-method=thread"),
)
ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parent),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "EINOPS_TEST_BACKENDS": "numpy,torch",
    "TENSORLY_BACKEND": "pytorch",
}


def unpacked(project: Project, folder: Path) -> Path:
    """Unpack the tests of a project without its source: the installed project is tested."""
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
        if member.path.startswith(("conftest.py", project.folder)):
            yield member


def results(project: Project, folder: Path, *, few: bool) -> Results:
    """The junit files of a project by mode."""
    release = version(project.name)
    files = {
        mode: (folder / f"{project.name}=={release}{'-few' * few}-{mode}.xml").absolute()
        for mode in (WITHOUT, *MODES)
    }
    return Results(project.name, release, files)


def run(project: Project, folder: Path, *, few: bool) -> Results:
    tests = unpacked(project, folder)
    made = results(project, folder, few=few)
    for mode, file in made.files.items():
        if few:
            file.unlink(missing_ok=True)
        elif file.exists():
            continue
        options = (f"--purging={mode}", f"--junitxml={file}", *project.options)
        command = [sys.executable, *PYTEST, *options, *project.paths(few=few)]
        with file.with_suffix(".log").open("w") as log:
            env = os.environ | ENVIRONMENT
            subprocess.run(command, cwd=tests, env=env, stdout=log, stderr=log, check=False)
    return made


def main(folder: str, *chosen: str) -> int:
    few = chosen == ("few",)
    projects = [one for one in PROJECTS if (one.few if few else not chosen or one.name in chosen)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(partial(run, folder=Path(folder), few=few), projects))
    print(table(made))  # noqa: T201
    failed = [
        f"{each.project}, {mode}: {name}" for each in made for mode in MODES for name in each.failed(mode)
    ]
    print("\n".join(failed))  # noqa: T201
    if not few:
        known = (results(project, Path(folder), few=few) for project in PROJECTS)
        write(each for each in known if all(file.exists() for file in each.files.values()))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
