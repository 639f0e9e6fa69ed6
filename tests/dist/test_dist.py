"""The published files contain what they should, and nothing else. `make dist` builds them."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib", reason="the standard library has it from Python 3.11")

REPOSITORY = Path(__file__).parents[2]
DIST = REPOSITORY / "dist"
MEGABYTE = 1_000_000
# Files that a build reads, files that the tests read, and files for people.
SOURCE = """
    Cargo.* LICENSE PKG-INFO README.md pyproject.toml src/*.rs benches/core.rs python/fastpurge/*
    tests/* benches/*.py examples/*.py examples/comfyui/*.json noxfile.py mkdocs.yml Makefile __init__.py requirements.txt node_list.json
    docs/* CHANGELOG.md CONTRIBUTING.md SECURITY.md deny.toml
""".split()
JUNK = "*.so *.pyd *.pyc *.whl *.zip *.log .* */.*".split()


@pytest.fixture(scope="module")
def wheel() -> Path:
    return _only("*.whl")


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return message_from_string(_read(wheel, "METADATA"))


@pytest.fixture(scope="module")
def source() -> set[str]:
    with tarfile.open(_only("*.tar.gz")) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    written: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return written


def test_the_wheel_is_under_a_megabyte(wheel: Path) -> None:
    assert wheel.stat().st_size < MEGABYTE


def test_one_wheel_serves_every_python_from_3_10(wheel: Path) -> None:
    assert "-cp310-abi3-" in wheel.name


def test_a_wheel_for_linux_runs_on_what_has_been_installed_for_ten_years(wheel: Path) -> None:
    platform = wheel.stem.rpartition("-")[2]
    if "linux" not in platform:
        pytest.skip(f"{platform} is not Linux")
    assert platform.startswith(("manylinux_2_17", "manylinux2014", "musllinux_1_2"))


def test_the_wheel_holds_the_package_and_nothing_else(names: set[str]) -> None:
    package = REPOSITORY / "python"
    files = {file.relative_to(package).as_posix() for file in package.rglob("*") if file.is_file()}
    expected = {file for file in files if not fnmatch(file, "*/__pycache__/*") and "_core.abi3" not in file}
    installed = {name for name in names if ".dist-info/" not in name}
    core = {name for name in installed if name.startswith("fastpurge/_core.") and not name.endswith(".pyi")}
    assert len(core) == 1
    assert installed - core == expected


def test_the_wheel_says_what_it_was_built_from(wheel: Path, names: set[str]) -> None:
    bill = json.loads(_read(wheel, "sboms/fastpurge.cyclonedx.json"))
    built_from = {(one["name"], one["version"]) for one in bill["components"]}
    lock = tomllib.loads((REPOSITORY / "Cargo.lock").read_text())
    locked = {(one["name"], one["version"]) for one in lock["package"]}
    assert {"pyo3", "libloading", "rustc-hash"} <= {name for name, _ in built_from}
    assert built_from <= locked
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_version_is_the_same_wherever_it_is_written(metadata: Message, project: dict[str, Any]) -> None:
    crate = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())
    versions = {metadata["Version"], project["project"]["version"], crate["package"]["version"]}
    assert len(versions) == 1


def test_pypi_knows_every_classifier(project: dict[str, Any]) -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(project["project"]["classifiers"]) <= known


def test_an_installation_leaves_torch_alone(metadata: Message) -> None:
    always = [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert {one.split(">")[0] for one in always} == {"psutil", "rich"}


def test_the_source_holds_no_junk(source: set[str]) -> None:
    assert {name for name in source if any(fnmatch(name, pattern) for pattern in JUNK)} == set()
    assert {name for name in source if not any(fnmatch(name, pattern) for pattern in SOURCE)} == set()


def test_the_source_holds_its_tests(source: set[str]) -> None:
    tests = (file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "tests").rglob("*.py"))
    assert {test for test in tests if "/." not in test} <= source


def test_from_the_source_comes_the_same_wheel(names: set[str]) -> None:
    with zipfile.ZipFile(_only("rebuilt/*.whl")) as archive:
        assert set(archive.namelist()) == names


def test_the_wheel_from_the_source_runs(metadata: Message) -> None:
    _only("rebuilt/*.whl")
    program = "import fastpurge._core, fastpurge.frontends.cli; fastpurge.frontends.cli.main(['--version'])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"fastpurge {metadata['Version']}\n"


def _only(pattern: str) -> Path:
    found = list(DIST.glob(pattern))
    if not found:
        pytest.skip(f"there is no dist/{pattern}: make dist")
    [one] = found
    return one


def _read(wheel: Path, name: str) -> str:
    """A file of the wheel's dist-info."""
    with zipfile.ZipFile(wheel) as archive:
        [found] = [one for one in archive.namelist() if one.endswith(f".dist-info/{name}")]
        return archive.read(found).decode()
