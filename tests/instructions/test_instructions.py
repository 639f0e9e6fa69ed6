"""Scan and closure take no more instructions per object than before: counts, which no busy machine disturbs.

The limits are of CPython 3.12, whose own part (the walk, the traversal) is in them. One that is exceeded for
a good reason is set anew; one that is far from what is counted should be lowered.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .workload import RECORDS

WORKLOAD = Path(__file__).with_name("workload.py")
OBJECTS = 5 * RECORDS
TOLERANCE = 1.1

# Instructions per object, as counted when last they changed.
COUNTED = {"scan": 105.4, "closure": 383.0}

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 12), reason="the limits are those of CPython 3.12"
)


def _instructions(what: str, times: int) -> int:
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    done = subprocess.run(
        [*tool, sys.executable, WORKLOAD, what, str(times)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    (count,) = re.findall(r"Collected : (\d+)", done.stderr)
    return int(count)


@pytest.mark.parametrize("what", COUNTED)
def test_no_more_than_before(what: str) -> None:
    times = 10
    per_object = (_instructions(what, times) - _instructions(what, 0)) / times / OBJECTS
    assert per_object < COUNTED[what] * TOLERANCE, f"{per_object:.1f} instructions per object"
    assert per_object > COUNTED[what] / TOLERANCE, (
        f"{per_object:.1f}: lower the limit, to keep what was gained"
    )
