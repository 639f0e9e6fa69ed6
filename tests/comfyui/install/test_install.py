"""Installation by a clone, the command and the registry, without the wheel, and besides the older pack."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.comfyui.comfyui_process import REPOSITORY, comfyui, prepare
from tests.comfyui.graphs import PURGES, chain

KEY = "CleanMemory_PurgeRAM"
CANVAS = "/extensions/fastpurge/fastpurge.js"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_a_clone_and_the_command_both_install_the_nodes_and_the_web_files(home: Path) -> None:
    with comfyui(home) as server:
        assert KEY in server.get("/object_info")
        assert CANVAS in server.get("/extensions")
        assert server.serves(CANVAS)
        assert server.serves(CANVAS.replace(".js", ".css"))
        assert "also defines" not in server.log()
    shutil.rmtree(home / "base" / "custom_nodes" / "fastpurge")
    for _ in range(2):  # a second call is no error
        _fastpurge("comfyui", "install", str(home / "base"))
    with comfyui(home) as server:
        assert KEY in server.get("/object_info")
        assert CANVAS in server.get("/extensions")
        assert server.serves(CANVAS)
    _fastpurge("comfyui", "remove", str(home / "base"))
    with comfyui(home) as server:
        assert KEY not in server.get("/object_info")
        answer = server.post("/prompt", {"prompt": chain(PURGES["RAM"])})
        assert answer.status_code == 400
        assert f"{KEY} does not exist" in answer.text
        log = server.log()
    assert "IMPORT FAILED" not in log
    assert "fastpurge comfyui" not in log


def test_the_package_of_the_registry_works_under_any_folder_name(home: Path) -> None:
    pack = prepare(home) / "torch-fastpurge"  # the folder name that ComfyUI's manager uses
    shutil.rmtree(pack.with_name("fastpurge"))
    with ZipFile(_packed(home)) as archive:
        assert {Path(name).suffix for name in archive.namelist()} <= {
            ".py",
            ".toml",
            ".txt",
            ".json",
            ".md",
            "",
        }
        archive.extractall(pack)
    assert (pack / "requirements.txt").read_text().split() == ["torch-fastpurge"]
    canvas = CANVAS.replace("/fastpurge/", f"/{pack.name}/")
    with comfyui(home) as server:
        nodes = server.get("/object_info")
        mine = {key for key, of in nodes.items() if of["python_module"] == f"custom_nodes.{pack.name}"}
        assert mine == set(json.loads((pack / "node_list.json").read_text()))
        assert canvas in server.get("/extensions")
        assert server.serves(canvas)
        result = server.run(chain(PURGES["RAM"]))
        assert result.status == "success", result.error


def test_without_the_wheel_comfyui_starts_and_logs_what_to_install(home: Path) -> None:
    # The interpreter cannot find the module, as in an environment without the wheel.
    with comfyui(home, hide="fastpurge") as server:
        assert KEY not in server.get("/object_info")
        log = server.log()
    assert "-m pip install torch-fastpurge" in log
    assert "(IMPORT FAILED)" in log


def test_a_pack_with_the_same_nodes_causes_a_warning(home: Path) -> None:
    rival = home / "ComfyUI-CleanMemory"
    rival.mkdir()
    (rival / "__init__.py").write_text('NODE_CLASS_MAPPINGS = {"CleanMemory_PurgeVRAM": object}\n')
    with comfyui(home, packs=(rival,)) as server:
        log = server.log()
    assert "ComfyUI-CleanMemory also defines the purge nodes" in log
    assert "fastpurge_tests also defines" not in log


def _fastpurge(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "fastpurge", *arguments], check=True)


def _packed(folder: Path) -> Path:
    """The archive that the registry's own tool creates from this repository."""
    tool = Path(sys.executable).with_name("comfy")
    if not tool.exists():
        pytest.skip("comfy-cli is not installed: make test-comfyui")
    comfy = [str(tool), "--skip-prompt", "--no-enable-telemetry", "node"]
    checked = subprocess.run([*comfy, "validate"], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "Warning" not in checked.stdout + checked.stderr
    subprocess.run([*comfy, "pack"], capture_output=True, check=True, cwd=REPOSITORY)
    return Path(shutil.move(REPOSITORY / "node.zip", folder))


def test_a_clone_and_an_installation_have_the_same_import_code() -> None:
    from fastpurge.comfy.install.pack_installer import PACK

    clone = (REPOSITORY / "__init__.py").read_text()
    loads = PACK[PACK.index("    from fastpurge") :]
    assert [line.strip() for line in loads.splitlines()] == [
        line.strip() for line in clone[clone.index("        from fastpurge") :].splitlines()
    ]
