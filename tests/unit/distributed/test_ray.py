"""The Ray example works, on a Ray cluster of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "ray_pool.py"


def test_one_call_sweeps_all_workers_and_a_dead_one_is_named() -> None:
    pytest.importorskip("ray", reason="ray is not installed: there may be no wheel for this Python yet")
    done = subprocess.run(
        [sys.executable, EXAMPLE],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 ranks" in done.stdout
    assert "same as before: True" in done.stdout
    assert re.search(r"freed (2\d\d|1[89]\d)\.\dM", done.stdout)
    assert "1 ranks have swept (.reports)\nrank 1: ActorDiedError" in done.stdout
