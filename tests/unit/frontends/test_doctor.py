"""`fastpurge doctor` lists dependencies that are installed or missing; run as a subprocess."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import _core
from fastpurge.comfy.install.pack_installer import install
from fastpurge.comfy.install.scan_custom_nodes import KEYS
from fastpurge.frontends import doctor

PACKAGE = Path(fastpurge.__file__).parent


def run(*arguments: str | Path, first_on_path: Path | None = None, cwd: Path | None = None) -> Any:
    env = dict(os.environ)
    if first_on_path is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(first_on_path), env.get("PYTHONPATH", "")])
        if (first_on_path / "fastpurge").exists():  # a copy, whose coverage is not measured
            env.pop("COVERAGE_PROCESS_CONFIG", None)
    command = [sys.executable, "-m", "fastpurge", "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd)


def ask(*arguments: str | Path, first_on_path: Path | None = None, cwd: Path | None = None) -> Any:
    done = run("--json", *arguments, first_on_path=first_on_path, cwd=cwd)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert done.returncode == bool(found["problems"])
    return found


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    (tmp_path / "custom_nodes").mkdir()
    return tmp_path


def test_the_installed_versions_are_listed(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "all is well" in done.stdout
    for known in (platform.python_version(), torch.__version__, np.__version__, fastpurge.__version__):
        assert known in done.stdout
    found = ask(cwd=tmp_path)
    assert found["object_stream"] == _core.object_stream()
    assert found["gil"] is True
    assert found["versions"]["torch"] == torch.__version__
    assert found["optional"]["matplotlib"]
    assert found["comfyui"] is None
    cpu = found["devices"][0]
    assert cpu["name"] == "cpu"
    assert cpu["allocated"] > 50 << 20  # torch is loaded
    assert cpu["free"] > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is what glibc has")
def test_trims_are_tried_and_the_malloc_is_named() -> None:
    found = ask()
    assert "malloc_trim" in found["trims"]
    assert found["malloc"].startswith("glibc ")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the libraries of a process are not listed")
def test_another_malloc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "libjemalloc.so.2"
    shutil.copy(_core.__file__, other)  # any library will do: its name identifies it
    monkeypatch.setenv("LD_PRELOAD", str(other))
    assert ask()["malloc"].startswith("jemalloc, in place of ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
def test_every_device_is_listed_with_its_memory() -> None:
    found = ask()
    names = [device["name"] for device in found["devices"]]
    assert names == ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    assert found["devices"][1]["description"] == torch.cuda.get_device_name(0)
    assert found["devices"][1]["free"] > 0
    assert "cuda cache" in found["trims"]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise ModuleNotFoundError('No module named torch', name='torch')", "PyTorch is not installed: pip"),
        ("raise OSError('libcudart.so: cannot open')", "PyTorch cannot be imported: OSError: libcudart.so"),
        ("", "what is imported as torch is not PyTorch: "),
        ("__version__ = '2.3.1+cu121'", "PyTorch 2.3.1+cu121 is older than 2.4: pip install -U torch"),
    ],
)
def test_without_a_working_torch_the_install_command_is_printed(
    tmp_path: Path, code: str, problem: str
) -> None:
    (tmp_path / "torch.py").write_text(code)
    done = run(first_on_path=tmp_path)
    assert done.returncode == 1
    assert f"problem: {problem}" in done.stdout
    found = ask(first_on_path=tmp_path)
    assert found["object_stream"] == _core.object_stream()
    assert [device["name"] for device in found["devices"]] == ["cpu"]
    assert found["trims"] == [name for name in [_core.trim_heap()] if name]


def test_a_python_without_a_gil_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    found = doctor.examine()
    assert not found.gil
    assert "without its GIL" in str(found)


def test_another_package_named_fastpurge_is_reported(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fastpurge")
    (tmp_path / "fastpurge" / "__init__.py").write_text("class FastPurgeClient: ...\n__all__ = []\n")
    metadata = tmp_path / "fastpurge-1.0.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fastpurge\nVersion: 1.0.5\n")
    done = run(first_on_path=tmp_path)
    assert done.returncode == 1
    assert "the distribution fastpurge 1.0.5 is installed" in done.stdout
    assert "pip uninstall fastpurge" in done.stdout


def look(comfyui: Path | None = None) -> Any:
    """The same in this process, which saves the import of torch."""
    return json.loads(json.dumps(doctor.examine(comfyui).to_dict()))


def test_the_nodes_are_looked_for_in_a_comfyui(comfyui: Path) -> None:
    (problem,) = ask("--comfyui", comfyui)["problems"]
    assert f"fastpurge comfyui install {comfyui}" in problem
    pack = install(comfyui)
    found = look(comfyui)
    assert found["problems"] == []
    assert found["comfyui"] == {"path": str(comfyui), "packs": [str(pack)], "rivals": []}
    assert str(pack) in run(cwd=comfyui).stdout


def test_the_current_directory_is_checked_if_it_is_a_comfyui(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(comfyui)
    found = look()
    assert found["comfyui"]["packs"] == []
    assert found["problems"] == []  # the nodes were not requested


def test_another_pack_with_the_same_nodes_is_reported(comfyui: Path) -> None:
    install(comfyui)
    rival = comfyui / "custom_nodes" / "ComfyUI-CleanMemory"
    rival.mkdir()
    (rival / "nodes.py").write_text(f'NODE_CLASS_MAPPINGS = {{"{KEYS[0]}": object}}\n')
    found = look(comfyui)
    assert found["comfyui"]["rivals"] == [str(rival)]
    assert "ComfyUI-CleanMemory defines the same nodes" in found["problems"][0]
    rival.rename(rival.with_name("ComfyUI-CleanMemory.disabled"))
    assert look(comfyui)["problems"] == []


def test_a_folder_that_is_no_comfyui_is_named(tmp_path: Path) -> None:
    (problem,) = look(tmp_path / "nowhere")["problems"]
    assert problem.startswith(f"{tmp_path / 'nowhere'} is not a ComfyUI")


def test_the_keys_are_those_of_the_nodes() -> None:
    from fastpurge.comfy.nodes.purge_nodes import NODE_CLASS_MAPPINGS

    assert tuple(NODE_CLASS_MAPPINGS) == KEYS


def test_unreadable_files_of_a_pack_are_ignored(comfyui: Path) -> None:
    pack = comfyui / "custom_nodes" / "other"
    pack.mkdir()
    (pack / "gone.py").symlink_to(pack / "gone.py")  # a loop of links
    (pack / "nodes.py").mkdir()
    assert look(comfyui)["comfyui"]["rivals"] == []
