"""The command line, run as a subprocess."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
from pathlib import Path

import fastpurge
import pytest
from fastpurge.frontends import cli


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        ([], ["fastpurge.sweep(keep=[model, latent])", "$ fastpurge doctor", "$ fastpurge demo"]),
        (["demo"], ["4 GB of memory", "$ fastpurge demo --plot report.svg"]),
        (["doctor"], ["$ fastpurge doctor --comfyui ~/ComfyUI", "exit status is 0 if there is no problem"]),
        (["comfyui", "install"], ["fastpurge comfyui install ~/ComfyUI", "fastpurge comfyui remove"]),
        (["comfyui", "remove"], ["fastpurge comfyui remove ~/ComfyUI", "no clone"]),
    ],
)
def test_help_lists_commands_and_examples(arguments: list[str], taught: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastpurge", *arguments, "--help"], capture_output=True, text=True, check=True
    )
    for text in taught:
        assert text in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fastpurge {fastpurge.__version__}\n"


def test_an_unknown_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["purge-everything"])
    assert "invalid choice" in capsys.readouterr().err


def test_the_demo_frees_memory_and_draws_a_plot(tmp_path: Path) -> None:
    # In a process of its own, as `make demo` runs it: it measures the resident set.
    plot = tmp_path / "report.svg"
    done = subprocess.run(
        [sys.executable, "-m", "fastpurge", "demo", "--plot", plot],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == 4
    assert "FAILED" not in done.stdout
    assert "PurgedError: this float32 Tensor" in done.stdout
    assert "largest released" in plot.read_text()


@pytest.mark.imports_much
def test_an_unusable_plot_file_is_an_error_before_the_demo_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--plot", "report.docx"]) == 1
    shown = capsys.readouterr()
    assert "report.docx: a plot is written as one of" in shown.err
    assert shown.out == ""


def test_a_failed_check_is_printed_and_the_exit_status_is_1() -> None:
    program = """
import sys
from pathlib import Path
from fastpurge.frontends import cli, demo
demo._FORGOTTEN_BYTES = 1 << 20
demo._tombstone_is_loud = lambda *_: False
sys.exit(cli.main(["demo"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAILED a tombstone is loud" in done.stdout


def test_the_pack_is_installed_into_a_comfyui_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["comfyui", "install", str(tmp_path)]) == 1
    assert "is not a ComfyUI" in capsys.readouterr().err
    pack = tmp_path / "custom_nodes" / "fastpurge"
    pack.mkdir(parents=True)
    (pack / "pyproject.toml").touch()
    assert cli.main(["comfyui", "install", str(tmp_path)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert [file.name for file in pack.iterdir()] == ["pyproject.toml"]
    (pack / "pyproject.toml").unlink()
    assert cli.main(["comfyui", "install", str(tmp_path)]) == 0
    assert str(pack) in capsys.readouterr().out
    compile((pack / "__init__.py").read_text(), "pack", "exec")


def test_uninstalling_removes_the_installed_files_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, clone = tmp_path / "custom_nodes" / "fastpurge", tmp_path / "custom_nodes" / "a_clone"
    command = ["comfyui", "remove", str(tmp_path)]
    assert cli.main(command) == 1
    assert "is not a ComfyUI" in capsys.readouterr().err
    clone.mkdir(parents=True)
    (clone / "__init__.py").write_text("from fastpurge.comfy.pack import *")
    assert cli.main(["comfyui", "install", str(tmp_path)]) == 0
    compileall.compile_dir(pack, quiet=1)
    assert cli.main(command) == 0
    assert f"{pack} is gone" in capsys.readouterr().out
    assert [left.name for left in clone.parent.iterdir()] == ["a_clone"]
    assert cli.main(command) == 0  # a second uninstall is no error
    assert f"{clone} has these nodes too" in capsys.readouterr().out


@pytest.mark.parametrize(
    "theirs", ["pyproject.toml", "__pycache__/notes.txt", "notes", "linked", "__init__.py", "folder"]
)
def test_files_of_others_are_neither_removed_nor_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], theirs: str
) -> None:
    assert cli.main(["comfyui", "install", str(_comfyui(tmp_path))]) == 0
    pack = tmp_path / "custom_nodes" / "fastpurge"
    file = pack / theirs
    if theirs == "linked":
        pack.rename(tmp_path / "elsewhere")
        pack.symlink_to(tmp_path / "elsewhere")
    elif theirs == "folder":
        file.mkdir()
    else:
        file.parent.mkdir(exist_ok=True)
        file.write_text("theirs")
    before = sorted((tmp_path / "custom_nodes").rglob("*"))
    for action, said in (
        ("remove", "was not written by this command"),
        ("install", "already exists"),
    ):
        assert cli.main(["comfyui", action, str(tmp_path)]) == 1
        assert said in capsys.readouterr().err
    assert sorted((tmp_path / "custom_nodes").rglob("*")) == before
    if file.is_file():
        assert file.read_text() == "theirs"


def _comfyui(folder: Path) -> Path:
    (folder / "custom_nodes").mkdir()
    return folder


DOCTOR = [sys.executable, "-m", "fastpurge", "doctor"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_is_an_error_without_a_traceback(options: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*DOCTOR, *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "fastpurge: [Errno 28] No space left on device\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes as Unix has them")
def test_a_closed_output_pipe_prints_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(DOCTOR, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
