"""After a fault in the middle of a sweep, kept objects are unchanged and the next sweep works.

``FASTPURGE_FAULTS=all`` injects a fault at every place instead of a sample.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("inject_faults.py")
EVERYWHERE = os.environ.get("FASTPURGE_FAULTS") == "all"


def _run(fault: str, *where: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", FAULTS, fault, *map(str, where)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, int] = json.loads(done.stdout)
    assert fault == "interrupt" or sum(outcomes.values()) == len(where)
    return outcomes


def test_an_interrupt_at_any_line_leaves_nothing_half_done() -> None:
    outcomes = _run("interrupt", 1 if EVERYWHERE else 97)
    assert outcomes["KeyboardInterrupt"] > 10
    assert outcomes["done"] == 1  # after the last line


@pytest.mark.skipif(sys.platform == "win32", reason="needs timers that send signals")
def test_a_signal_at_any_moment_leaves_nothing_half_done() -> None:
    outcomes = _run("alarm", *range(100, 60_000, 211 if EVERYWHERE else 5011))
    assert outcomes["KeyboardInterrupt"] > 0
    assert set(outcomes) <= {"KeyboardInterrupt", "done"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space that holds")
def test_an_address_space_that_is_full_is_a_memory_error_and_no_abort() -> None:
    limits = [1 << shift for shift in range(2, 17, 1 if EVERYWHERE else 3)]
    outcomes = _run("memory", 0, *limits)
    assert outcomes["MemoryError"] > 0
    assert set(outcomes) <= {"MemoryError", "done"}


@pytest.mark.skipif(not importlib.util.find_spec("_testcapi"), reason="needs the tests of the interpreter")
@pytest.mark.skipif(not EVERYWHERE, reason="CPython crashes: docs/endurance.md")
def test_an_allocation_that_fails_is_a_memory_error_and_no_abort() -> None:
    outcomes = _run("allocation", *range(0, 1500, 1 if EVERYWHERE else 61))
    assert outcomes["MemoryError"] > 0
    assert set(outcomes) <= {"MemoryError", "done"}
