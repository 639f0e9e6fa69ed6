"""Which folders are libraries, however they were installed, and which belong to the program."""

from __future__ import annotations

import importlib
import os
import py_compile
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import is_purged
from fastpurge.python_facts import library_folders
from fastpurge.python_facts.library_folders import judge_folder, libraries

from tests.unit.installed_packages import SOURCE, package


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module from a folder that is put on the path in the given spelling."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: list[str] = []

    def load(name: str, entry: str | None) -> Any:
        if entry is not None:
            sys.path.insert(0, entry)
        importlib.invalidate_caches()
        names.append(name)
        return importlib.import_module(name)

    yield load
    for name in names:
        for one in [one for one in sys.modules if one.partition(".")[0] == name.partition(".")[0]]:
            del sys.modules[one]


def record(folder: Path, name: str, *paths: str) -> None:
    lines = [f"{path},,\n" for path in (*paths, f"{name}-1.0.dist-info/RECORD")]
    (folder / f"{name}-1.0.dist-info" / "RECORD").write_text("".join(lines))


def is_spared(module: Any) -> bool:
    fastpurge.sweep(keep=())
    return not is_purged(module.TABLE)


def test_a_folder_with_metadata_is_a_library_as_soon_as_it_is_on_the_path(
    tmp_path: Path, imported: Any
) -> None:
    fastpurge.sweep(keep=())
    module = imported(package(tmp_path), str(tmp_path))
    assert is_spared(module)
    sys.path.remove(str(tmp_path))
    assert is_spared(module)


def test_a_folder_without_metadata_belongs_to_the_program(tmp_path: Path, imported: Any) -> None:
    assert not is_spared(imported(package(tmp_path, metadata=None), str(tmp_path)))


@pytest.mark.parametrize("metadata", ["{}-1.0.egg-info", "{}-1.0-py3.11.egg-info", "{}.egg-info", "EGG-INFO"])
def test_egg_info_metadata_is_recognised(metadata: str, tmp_path: Path, imported: Any) -> None:
    assert is_spared(imported(package(tmp_path, metadata=metadata), str(tmp_path)))


@pytest.mark.parametrize("name", ["site-packages", "dist-packages"])
def test_a_site_packages_name_is_enough(name: str, tmp_path: Path, imported: Any) -> None:
    folder = tmp_path / "elsewhere" / name
    assert is_spared(imported(package(folder, metadata=None), str(folder)))


def test_a_folder_is_recognised_by_a_link_and_by_its_target(tmp_path: Path, imported: Any) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    names = [package(tmp_path / "real") for _ in range(2)]
    assert is_spared(imported(names[0], str(tmp_path / "link")))
    sys.path.remove(str(tmp_path / "link"))
    assert is_spared(imported(names[1], str(tmp_path / "real")))


SPELLINGS = ["libs", "./libs", "libs/", "app/../libs", "."]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_folder_is_recognised_in_every_spelling(
    spelling: str, tmp_path: Path, imported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    name = package(tmp_path / "libs")
    monkeypatch.chdir(tmp_path / "libs" if spelling == "." else tmp_path)
    assert is_spared(imported(name, spelling))


def test_the_working_directory_counts_where_it_is_on_the_path(
    tmp_path: Path, imported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sys.path.insert(0, "")
    fastpurge.sweep(keep=())
    (tmp_path / "libs").mkdir()
    monkeypatch.chdir(tmp_path / "libs")
    assert is_spared(imported(package(tmp_path / "libs"), None))


def _archive(folder: Path, *, inner: str = "", compiled: bool = False) -> tuple[Path, str]:
    name = package(folder / "contents")
    archive = folder / f"{name}.zip"
    source = folder / "contents" / name / "__init__.py"
    if compiled:
        py_compile.compile(str(source), str(source.with_suffix(".pyc")))
        source.unlink()
    with zipfile.ZipFile(archive, "w") as file:
        for one in (folder / "contents").rglob("*"):
            file.write(one, f"{inner}{one.relative_to(folder / 'contents')}")
    return archive, name


@pytest.mark.parametrize("compiled", [False, True], ids=["source", "compiled"])
def test_an_archive_is_a_folder(compiled: bool, tmp_path: Path, imported: Any) -> None:
    archive, name = _archive(tmp_path, compiled=compiled)
    module = imported(name, str(archive))
    assert ".zip" in module.__file__
    assert is_spared(module)


def test_a_folder_inside_an_archive_is_recognised(tmp_path: Path, imported: Any) -> None:
    archive, name = _archive(tmp_path, inner=".deps/somelib.whl/")
    assert is_spared(imported(name, f"{archive}/.deps/somelib.whl"))


def test_an_archive_on_a_relative_path_is_recognised(
    tmp_path: Path, imported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, name = _archive(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert is_spared(imported(name, archive.name))


def test_the_standard_library_in_an_archive_is_a_library(tmp_path: Path, imported: Any) -> None:
    with zipfile.ZipFile(tmp_path / "base_library.zip", "w") as file:
        for name in ("encodings/__init__.pyc", "codecs.pyc"):
            file.writestr(name, b"")
        file.writestr("frozen_module.py", SOURCE)
    assert is_spared(imported("frozen_module", str(tmp_path / "base_library.zip")))


def test_a_namespace_package_is_where_its_parts_are(tmp_path: Path, imported: Any) -> None:
    name = package(tmp_path)
    (tmp_path / name / "__init__.py").rename(tmp_path / name / "part.py")
    part = imported(f"{name}.part", str(tmp_path))
    assert is_spared(part)
    assert libraries().is_library(name)
    sys.modules[name].TABLE = torch.ones(3)  # type: ignore[attr-defined]
    assert is_spared(sys.modules[name])


# Folders of the program


def test_a_project_under_development_is_the_program(tmp_path: Path, imported: Any) -> None:
    name = package(tmp_path / "src", metadata="{}.egg-info")
    (tmp_path / "src" / f"{name}.egg-info" / "SOURCES.txt").write_text(f"{name}/__init__.py\n")
    assert not is_spared(imported(name, str(tmp_path / "src")))


@pytest.mark.parametrize("file", ["pyproject.toml", "setup.py", "setup.cfg"])
def test_build_metadata_in_a_project_makes_no_library(file: str, tmp_path: Path, imported: Any) -> None:
    name = package(tmp_path)
    (tmp_path / file).touch()
    assert not is_spared(imported(name, str(tmp_path)))


def test_in_the_programs_folder_only_what_was_installed_is_a_library(
    tmp_path: Path, imported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `pip install --target .` beside the handler of a cloud function does.
    name, own = package(tmp_path), package(tmp_path, metadata=None)
    (tmp_path / f"{name}_one.py").write_text(SOURCE)
    record(tmp_path, name, f"{name}/__init__.py", f"{name}_one.py", "../../bin/tool")
    monkeypatch.chdir(tmp_path)
    assert is_spared(imported(name, str(tmp_path)))
    assert is_spared(imported(f"{name}_one", None))
    assert not is_spared(imported(own, None))


@pytest.mark.parametrize("metadata", ["{}-1.0.dist-info", "{}.egg-info"])
def test_without_a_record_file_the_name_identifies_the_installed_package(
    metadata: str, tmp_path: Path, imported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, own = package(tmp_path, metadata=metadata), package(tmp_path, metadata=None)
    monkeypatch.chdir(tmp_path)
    assert is_spared(imported(name, ""))
    assert not is_spared(imported(own, None))


def test_an_explicit_entry_decides_and_the_deepest_wins(tmp_path: Path, imported: Any) -> None:
    pack, vendored = package(tmp_path / "custom_nodes"), package(tmp_path / "custom_nodes" / "pack" / "libs")
    record(tmp_path / "custom_nodes", pack, f"other{pack}/__init__.py")
    try:
        judge_folder(tmp_path, is_library=True)
        judge_folder(tmp_path / "custom_nodes", is_library=False)
        assert not is_spared(imported(pack, str(tmp_path / "custom_nodes")))
        assert is_spared(imported(vendored, str(tmp_path / "custom_nodes" / "pack" / "libs")))
    finally:
        library_folders._explicit.clear()
        library_folders._found.forget()


# Run time


def test_folders_are_searched_again_only_if_the_path_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = libraries()

    def never(*_: object) -> None:
        raise AssertionError

    for name in ("stat", "lstat", "listdir", "scandir"):
        monkeypatch.setattr(os, name, never)
    assert libraries() is known
    started = time.perf_counter()
    for _ in range(1000):
        libraries()
    assert time.perf_counter() - started < 0.1  # 100 microseconds each would be too slow
