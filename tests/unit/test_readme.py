"""The examples of the README run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_runs_as_written(tmp_path: Path) -> None:
    example, *_ = blocks()
    script = tmp_path / "script.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "(50000000,)" in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"PurgedError: this float32 Tensor of shape \(50000000,\) on cpu", last)
    assert "script.py:9" in last


def test_the_notebook_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    _, magics = blocks()
    shared = "import torch\nmodel, x, cache = torch.nn.Linear(5, 1), torch.ones(1, 5), {'old': torch.ones(7)}"
    fails = "def fail():\n    activations = torch.ones(9, 1 << 18)\n    torch.empty(1 << 60)\n\nfail()"
    cells = [
        shared,
        "torch.ones(8)",
        fails,
        *magics.split("\n\n"),
        "model(x).shape",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(made, kernel_name="python3", allow_errors=True, timeout=120).execute(cwd=str(tmp_path))
    *_, plan, why, swept, alive = (str(cell.outputs) for cell in made.cells)
    assert "fastpurge would release" in plan
    assert "held by __main__.cache[" in why
    assert "(7,)" in swept
    assert "<svg" in swept
    assert "fastpurge let go of 9.0 MiB" in swept
    assert "Out[2]" in swept
    assert "fastpurge freed" in swept
    assert "torch.Size([1, 1])" in alive


def test_both_commands_are_named() -> None:
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text
