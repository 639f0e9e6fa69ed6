"""The Ray example works, on a Ray cluster of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastpurge
import pytest
import torch

EXAMPLE = Path(__file__).parents[3] / "examples" / "ray_pool.py"
NO_RAY = "ray is not installed: there may be no wheel for this Python yet"


def test_one_call_sweeps_all_workers_and_a_dead_one_is_named() -> None:
    pytest.importorskip("ray", reason=NO_RAY)
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
    assert re.search(r"freed (2\d\d|1[89]\d)\.\d MiB", done.stdout)
    assert "1 ranks have swept (.reports)\nrank 1: ActorDiedError" in done.stdout


def test_a_remote_function_in_a_local_variable_keeps_its_closure() -> None:
    ray: Any = pytest.importorskip("ray", reason=NO_RAY)

    def make(value: torch.Tensor) -> Any:
        return ray.remote(lambda: float(value.sum()))

    function = make(torch.ones(3))
    fastpurge.sweep(keep=())
    assert function._function() == 3
