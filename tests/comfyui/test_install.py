"""Ways in: a clone, the command, and without the wheel; beside the pack that this one replaces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .server import REPOSITORY, comfyui

KEY = "CleanMemory_PurgeRAM"
CANVAS = "/extensions/fastpurge/fastpurge.js"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_a_clone_and_the_command_both_give_the_nodes_and_what_they_draw(home: Path) -> None:
    with comfyui(home) as server:
        assert KEY in server.get("/object_info")
        assert CANVAS in server.get("/extensions")
        assert server.serves(CANVAS)
        assert server.serves(CANVAS.replace(".js", ".css"))
        assert "also defines" not in server.log()
    clone = home / "base" / "custom_nodes" / "fastpurge"
    shutil.rmtree(clone)
    for _ in range(2):  # doing it again is no error
        command = [sys.executable, "-m", "fastpurge", "comfyui", "install", home / "base"]
        subprocess.run([*map(str, command)], check=True)
    with comfyui(home) as server:
        assert KEY in server.get("/object_info")
        assert CANVAS in server.get("/extensions")
        assert server.serves(CANVAS)
    shutil.rmtree(clone)
    with comfyui(home) as server:
        assert KEY not in server.get("/object_info")


def test_without_the_wheel_comfyui_starts_and_says_what_to_install(home: Path) -> None:
    # A module that cannot be found, first on the path, is what an environment without the wheel has.
    with comfyui(home, hide="fastpurge") as server:
        assert KEY not in server.get("/object_info")
        log = server.log()
    assert "-m pip install torch-fastpurge" in log
    assert "(IMPORT FAILED)" in log


def test_another_pack_of_these_nodes_is_warned_about(home: Path) -> None:
    rival = home / "ComfyUI-CleanMemory"
    rival.mkdir()
    (rival / "__init__.py").write_text('NODE_CLASS_MAPPINGS = {"CleanMemory_PurgeVRAM": object}\n')
    with comfyui(home, packs=(rival,)) as server:
        log = server.log()
    assert "ComfyUI-CleanMemory also defines the purge nodes" in log
    assert "fastpurge_tests also defines" not in log


def test_a_clone_and_an_installation_load_alike() -> None:
    from fastpurge.comfy.install import PACK

    clone = (REPOSITORY / "__init__.py").read_text()
    loads = PACK[PACK.index("    from fastpurge") :]
    assert [line.strip() for line in loads.splitlines()] == [
        line.strip() for line in clone[clone.index("        from fastpurge") :].splitlines()
    ]
