"""The README does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs_as_written(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "(50000000,)" in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"PurgedError: this float32 Tensor of shape \(50000000,\) on cpu", last)
    assert "script.py:9" in last


def test_both_commands_are_named() -> None:
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text
