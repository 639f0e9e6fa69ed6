"""Really installed packages are libraries; an editable install belongs to the program."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from importlib.util import find_spec
from pathlib import Path

import fastpurge
import pytest
import torch

from tests.unit.installed_packages import NUMBERS, SOURCE, package

CODE = "import {0}, fastpurge; fastpurge.sweep(keep=()); print(fastpurge.is_purged({0}.TABLE))"


def run(
    name: str,
    *arguments: str,
    python: str = sys.executable,
    path: Path | None = None,
    cwd: Path | None = None,
) -> bool:
    """Whether a sweep spares the globals of a module, in a new process."""
    paths = [str(path or ""), os.environ.get("PYTHONPATH", "")]
    code = [*arguments] or ["-c", CODE.format(name)]
    done = subprocess.run(
        [python, *code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        cwd=cwd,
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "False"


def wheel(folder: Path) -> tuple[Path, str]:
    """An installable wheel, and the name of its package."""
    name = f"somelib{next(NUMBERS)}"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": SOURCE,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {one: hashlib.sha256(text.encode()).digest() for one, text in files.items()}
    lines = [
        f"{one},sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},{len(files[one])}\n"
        for one, digest in hashes.items()
    ]
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for one, text in files.items():
            file.writestr(one, text)
    return path, name


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        pytest.skip("needs uv")
    return found


def pip(*arguments: str, python: str = sys.executable) -> list[str]:
    pytest.importorskip("pip")
    return [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_package_installed_with_target_is_a_library(installer: str, tmp_path: Path) -> None:
    path, name = wheel(tmp_path)
    target = tmp_path / "target"
    options = ["install", "--no-deps", "--no-index", "--target", str(target), str(path)]
    subprocess.run(pip(*options) if installer == "pip" else [uv(), "pip", *options, "--offline"], check=True)
    assert run(name, path=target)
    assert run(name, cwd=target)  # '' is on its path
    script = target / "handler.py"
    (target / "own.py").write_text(SOURCE)
    lines = [
        f"import {name}, own, fastpurge; fastpurge.sweep(keep=())",
        "assert fastpurge.is_purged(own.TABLE)",
        f"print(fastpurge.is_purged({name}.TABLE))",
    ]
    script.write_text("\n".join(lines))
    assert run(name, str(script))


def test_a_wheel_on_the_path_is_a_library(tmp_path: Path) -> None:
    path, name = wheel(tmp_path)
    assert run(name, path=path)


def test_a_folder_that_a_pth_file_names_is_a_library(tmp_path: Path) -> None:
    name = package(tmp_path / "libs")
    sites = tmp_path / "sites"
    sites.mkdir()
    (sites / "libs.pth").write_text(f"{tmp_path / 'libs'}\n")
    code = f"import site; site.addsitedir({str(sites)!r}); {CODE.format(name)}"
    assert run(name, "-c", code)


BACKEND = """
import zipfile
from pathlib import Path

def build_editable(folder, config_settings=None, metadata_directory=None):
    info = "{name}-1.0.dist-info"
    path = Path(folder) / "{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("_{name}.pth", str(Path("src").resolve()) + "\\n")
        file.writestr(f"{{info}}/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        file.writestr(f"{{info}}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        paths = ["_{name}.pth", *(f"{{info}}/{{one}}" for one in ("METADATA", "WHEEL", "RECORD"))]
        file.writestr(f"{{info}}/RECORD", "".join(f"{{one}},,\\n" for one in paths))
    return path.name

def build_wheel(*_):
    raise NotImplementedError
"""


@pytest.fixture
def environment(tmp_path: Path) -> tuple[Path, str]:
    """A virtual environment in which torch and this package can be imported, and its Python."""
    folder = tmp_path / "env"
    subprocess.run(
        [uv(), "venv", "--quiet", "--offline", "--python", sys.executable, str(folder)], check=True
    )
    python = str(folder / "bin" / "python")
    (sites,) = folder.glob("lib/*/site-packages")
    shared = {str(Path(one.__file__ or "").parents[1]) for one in (torch, fastpurge)}
    (sites / "shared.pth").write_text("".join(f"{one}\n" for one in shared))
    return sites, python


@pytest.mark.skipif(os.name == "nt", reason="the folders of an environment are named otherwise")
@pytest.mark.parametrize("where", ["beside", "in a library's folder"])
def test_an_editable_install_of_the_program_is_the_program(
    where: str, tmp_path: Path, environment: tuple[Path, str]
) -> None:
    sites, python = environment
    project = tmp_path / "project"
    name = package(project / "src", metadata=None)
    (project / "backend.py").write_text(BACKEND.format(name=name))
    (project / "pyproject.toml").write_text(
        textwrap.dedent(f"""
            [build-system]
            requires = []
            build-backend = "backend"
            backend-path = ["."]
            [project]
            name = "{name}"
            version = "1.0"
        """)
    )
    install = ["pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation"]
    subprocess.run([uv(), *install, "--python", python, "-e", str(project)], check=True)
    assert (sites / f"{name}-1.0.dist-info" / "direct_url.json").exists()
    if where == "in a library's folder":
        package(project / "src")  # metadata of another package is there
    assert not run(name, python=python)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_an_editable_install_by_links_is_the_program(tmp_path: Path, environment: tuple[Path, str]) -> None:
    # As `flit install --symlink`.
    sites, python = environment
    name = package(tmp_path / "project", metadata=None)
    (sites / name).symlink_to(tmp_path / "project" / name)
    (sites / f"{name}-1.0.dist-info").mkdir()
    (sites / f"{name}-1.0.dist-info" / "direct_url.json").write_text(
        f'{{"url": "{(tmp_path / "project").as_uri()}", "dir_info": {{"editable": true}}}}'
    )
    assert not run(name, python=python)


def test_a_project_that_setuptools_develops_is_the_program(tmp_path: Path) -> None:
    if find_spec("setuptools") is None:
        pytest.skip("needs setuptools")
    name = package(tmp_path / "src", metadata=None)
    (tmp_path / "setup.py").write_text(
        "from setuptools import setup\n"
        f"setup(name={name!r}, version='1.0', package_dir={{'': 'src'}}, packages=[{name!r}])"
    )
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info"], cwd=tmp_path, check=True)
    assert (tmp_path / "src" / f"{name}.egg-info").exists()
    assert not run(name, path=tmp_path / "src")
