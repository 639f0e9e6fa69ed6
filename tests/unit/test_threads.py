"""Sweeping while other threads compute is safe: no wrong number, no crash, a flat resident set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STRESS = Path(__file__).with_name("stress.py")
SWEEPS = int(os.environ.get("FASTPURGE_STRESS_SWEEPS", "250"))


def _run(sweeps: int, *options: str, **env: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *options, STRESS, f"--sweeps={sweeps}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_threads_compute_the_same_while_another_sweeps() -> None:
    result = _run(SWEEPS)
    assert result["errors"] == []
    assert result["sweeps"] == SWEEPS
    assert min(result["checked"]) > 0
    early, late = result["resident"]
    assert late < early * 1.05 + (20 << 20)


@pytest.mark.filterwarnings("ignore")
def test_threads_under_the_debug_allocator_and_dev_mode() -> None:
    # Freed memory is overwritten and bounds are checked: a use after free does not go unseen.
    result = _run(20, "-X", "dev", "-W", "ignore", PYTHONMALLOC="debug", MALLOC_PERTURB_="165")
    assert result["errors"] == []
    assert result["sweeps"] == 20
