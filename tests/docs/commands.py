"""Commands in `bash` blocks: cheap ones are run, for the others the test checks that they exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

from fastpurge.frontends import cli
from packaging.requirements import Requirement

from tests.docs.blocks import ROOT, Block

_PACKAGE = metadata("torch-fastpurge")
_SETTING = re.compile(r"([A-Z_]+)=\S*")


def check(block: Block, folder: Path) -> str:
    """Run or check each command of the block; return the output. A missing or failing one is an error."""
    said = ""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and (setting := _SETTING.fullmatch(words[0])):
            _check_setting(setting[1])
            del words[0]
        if words:
            said += _check_command(words, folder)
    return said


def _check_command(words: list[str], folder: Path) -> str:
    program, *arguments = words
    match Path(program).name, arguments:
        case "make", [target, *settings]:
            makefile = (ROOT / "Makefile").read_text()
            assert all(f"$({one.split('=')[0]})" in makefile for one in settings), settings
            subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)
        case ("pip", ["install", *wanted]) | ("python", ["-m", "pip", "install", *wanted]):
            for one in wanted:
                _check_requirement(one)
        case ("fastpurge", options) | ("python", ["-m", "fastpurge", *options]):
            return _fastpurge(options, folder)
        case "python", ["-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        case ("python", [script, *_]) | ("pytest", [script, *_]):
            assert (ROOT / script).exists(), script
        case _:
            raise AssertionError(f"no rule for {shlex.join(words)}; see tests/docs/commands.py")
    return ""


def _check_setting(name: str) -> None:
    files = (path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "docs")
    assert any(f'"{name}"' in path.read_text() for path in files), f"nothing reads {name}"


def _check_requirement(wanted: str) -> None:
    if wanted == "dist/*.whl":  # built by `make wheel`
        return
    requirement = Requirement(wanted)
    if requirement.name == _PACKAGE["Name"]:
        assert requirement.extras <= {*_PACKAGE.get_all("Provides-Extra", ())}, wanted
    else:
        assert requirement.name == "torch", f"no rule for {wanted}; see tests/docs/commands.py"


def _fastpurge(options: list[str], folder: Path) -> str:
    """Run commands that only read. The others have their own tests: here they must only exist."""
    if "--help" in options or (options[:1] == ["doctor"] and "--comfyui" not in options):
        command = [sys.executable, "-m", "fastpurge", *options]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    cli.main.__globals__["_parser"]().parse_args(options)
    return ""
