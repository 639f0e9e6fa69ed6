"""Finds the folders of libraries, by their names and by the metadata of installed distributions.

A folder that modules are imported from is a library folder if it is named ``site-packages`` or
``dist-packages``, or contains metadata of an installed distribution (``*.dist-info``, ``*.egg-info``). A
folder of the program may contain metadata too: its own, or of distributions installed into it. Then only what
the metadata lists is a library.
"""

import csv
import json
import os
import site
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from operator import is_
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import torch

from fastpurge._core import Libraries
from fastpurge.python_facts.imported_modules import modules, namespace
from fastpurge.python_facts.object_types import is_a

_NAMED = ("site-packages", "dist-packages")
_METADATA = (".dist-info", ".egg-info")
# Modules without a file in which extensions share types: Cython's coroutines and functions
# (`__Pyx_FetchSharedCythonABIModule` in Cython/Utility/CommonStructures.c), the base class of pybind11.
_OF_EXTENSIONS = ("_cython_*", "pybind11_builtins")
_OF_A_PROJECT = {"pyproject.toml", "setup.py", "setup.cfg"}

_explicit: dict[str, bool] = {}


def judge_folder(folder: Path, *, is_library: bool) -> None:
    """Declare a folder a library or part of the program. Of nested folders the deepest one decides."""
    _explicit[str(folder)] = is_library
    _found.forget()


def libraries() -> Libraries:
    """The folders of libraries. Searched again if the import path has changed."""
    return _found.libraries()


class _Found:
    """Decides for each folder of the import path once whether it is a library."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._path: tuple[object, ...] = ()
        self._imported_from = 0
        self._directory: str | None = None
        self._judged: dict[str, bool] = {}
        self._seen: set[str] = set()
        self._editable: list[str] = []
        self._libraries: Libraries | None = None

    def libraries(self) -> Libraries:
        if self._libraries is None or not self._is_current():
            self._libraries = self._search()
        return self._libraries

    def _is_current(self) -> bool:
        path = sys.path
        return (
            len(path) == len(self._path)
            and all(map(is_, path, self._path))  # an entry that is no str may have its own `__eq__`
            and len(sys.path_importer_cache) == self._imported_from
            and (self._directory is None or self._directory == _working_directory())
        )

    def _search(self) -> Libraries:
        if not self._judged:
            self._judged = dict.fromkeys(_always(), True)
        self._path, self._imported_from = (*sys.path,), len(sys.path_importer_cache)
        # The cache also has folders that have been removed from the path.
        entries = [one for one in (*self._path, *sys.path_importer_cache) if type(one) is str]
        directory = _working_directory()
        is_relative = not all(map(os.path.isabs, entries))
        self._directory = directory if is_relative else None
        for entry in sorted({os.path.join(directory, one) for one in entries} - self._seen, key=_is_unnamed):
            self._seen.add(entry)
            with suppress(OSError, ValueError, zipfile.BadZipFile):  # gone, no folder, or no archive
                self._judge(entry)
        judged = {**self._judged, **_explicit}
        names = {*sys.stdlib_module_names, *sys.builtin_module_names, *_without_file(judged), *_OF_EXTENSIONS}
        return Libraries((*sorted(judged.items()),), (*sorted(names),))

    def _judge(self, folder: str) -> None:
        if not _is_unnamed(folder):
            self._add(folder, [""])
            self._note_editable(Path(folder))
        elif not _is_in(os.path.abspath(folder), [one for one, yes in self._judged.items() if yes]):
            files = _Files(folder)
            installed = files.installed()
            if installed and (files.names & _OF_A_PROJECT or self._is_own(folder)):
                listed = (name for one in installed for name in files.listed(one))
                self._add(folder, [f"{os.sep}{name}" for name in listed])
            elif installed or files.are_of_python():
                self._add(folder, [""])

    def _note_editable(self, folder: Path) -> None:
        """Note the projects that are installed as editable there, also by links, as flit does."""
        if not (projects := [*_editable_in(folder)]):
            return
        self._editable += projects
        real = [os.path.realpath(one) for one in projects]
        for one in os.scandir(folder):
            if one.is_symlink() and _is_in(os.path.realpath(one.path), real):
                self._judged[one.path] = False

    def _is_own(self, folder: str) -> bool:
        """Whether a folder is the program's: of its script, the working directory, or an editable install."""
        real = os.path.realpath(folder)
        places = [_working_directory(), *_scripts()]
        programs = [*self._editable, *(one for one, is_library in _explicit.items() if not is_library)]
        return any(_is_in(os.path.realpath(one), [real]) for one in places) or _is_in(
            real, [os.path.realpath(one) for one in programs]
        )

    def _add(self, folder: str, below: Iterable[str]) -> None:
        # The path of a module in an archive starts with the entry as written, which may be relative
        # (Lib/zipimport.py).
        spellings = {folder, os.path.abspath(folder), os.path.realpath(folder)}
        spellings |= {one for one in self._path if type(one) is str and one and _is_same(one, folder)}
        self._judged.update((f"{one.rstrip(os.sep)}{name}", True) for name in below for one in spellings)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.sep


def _is_same(entry: str, folder: str) -> bool:
    return os.path.join(_working_directory(), entry) == folder


def _always() -> set[str]:
    """The standard library, the folders of `site`, and the folders of torch and of this package."""
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    folders |= {str(Path(torch.__file__).parent), str(Path(__file__).parents[1])}
    return folders | {os.path.realpath(folder) for folder in folders}


def _is_unnamed(folder: str) -> bool:
    return Path(folder).name not in _NAMED


def _is_in(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder.rstrip(os.sep)}{os.sep}") for folder in folders)


def _scripts() -> Iterator[str]:
    """The files of the program's main module."""
    for name in ("__main__", "__mp_main__"):  # its name in a child of `multiprocessing`
        if is_a(module := sys.modules.get(name), ModuleType):
            file = namespace(module).get("__file__")
            if type(file) is str:
                yield file


def _editable_in(folder: Path) -> Iterator[str]:
    """The folders of projects that are installed as editable (PEP 610, direct_url.json)."""
    for file in folder.glob("*.dist-info/direct_url.json"):
        with suppress(OSError, ValueError, AttributeError):  # any installer may have written it
            metadata = json.loads(file.read_text(encoding="utf-8"))
            if metadata.get("dir_info", {}).get("editable"):
                yield url2pathname(unquote(urlsplit(metadata["url"]).path))


# It recomputes its parts when it is iterated (`_NamespacePath` in Lib/importlib/_bootstrap_external.py).
_NAMESPACE_PATH: Any = vars(sys.modules["_frozen_importlib_external"])["_NamespacePath"]


def _without_file(judged: dict[str, bool]) -> Iterator[str]:
    """Namespace packages, which have no file, if all of their folders are library folders."""
    folders = [one for one, is_library in judged.items() if is_library]
    for name, module in modules().items():
        if type(module) is ModuleType and "." not in name and namespace(module).get("__file__") is None:
            path: Any = namespace(module).get("__path__")
            parts = path._path if type(path) is _NAMESPACE_PATH else path
            if (
                type(parts) is list
                and parts
                and all(type(one) is str and _is_in(one, folders) for one in parts)
            ):
                yield name


class _Files:
    """The files of a folder, or of an archive that modules are imported from."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._archive: zipfile.ZipFile | None = None
        self._prefix = ""
        try:
            self.names = {*os.listdir(folder)}
        except NotADirectoryError:
            file = next(one for one in (self._folder, *self._folder.parents) if one.is_file())
            self._archive = zipfile.ZipFile(file)
            inner = self._folder.relative_to(file).parts
            self._prefix = "".join(f"{part}/" for part in inner)
            inside = (one for one in self._archive.namelist() if one.startswith(self._prefix))
            self.names = {one[len(self._prefix) :].partition("/")[0] for one in inside}

    def installed(self) -> list[str]:
        """The metadata folders of installed distributions. That of a source tree lists its sources."""
        found = [name for name in self.names if name.endswith(_METADATA) or name == "EGG-INFO"]
        return [one for one in found if "-" in Path(one).stem or self._read(f"{one}/SOURCES.txt") is None]

    def are_of_python(self) -> bool:
        """Whether it is a standard library: an embedded or frozen interpreter has it in an archive."""
        return "encodings" in self.names and not {"codecs.py", "codecs.pyc"}.isdisjoint(self.names)

    def listed(self, metadata: str) -> Iterator[str]:
        """The folders and files that a distribution has installed beside its metadata."""
        if (record := self._read(f"{metadata}/RECORD")) is not None:
            paths = [row[0] for row in csv.reader(record.splitlines()) if row]
        elif (record := self._read(f"{metadata}/installed-files.txt")) is not None:
            paths = [line.removeprefix("../") for line in record.splitlines()]
        elif self.names & _OF_A_PROJECT:
            return  # left by a build
        else:
            names = (self._read(f"{metadata}/top_level.txt") or Path(metadata).stem.partition("-")[0]).split()
            paths = [path for name in names for path in (name, f"{name}.py")]
        tops = {path.replace("\\", "/").partition("/")[0] for path in paths}
        yield from (one for one in tops if one not in ("", ".", "..") and not one.endswith(_METADATA))

    def _read(self, name: str) -> str | None:
        try:
            if self._archive is not None:
                return self._archive.read(f"{self._prefix}{name}").decode("utf-8", "replace")
            return (self._folder / name).read_text(encoding="utf-8", errors="replace")
        except (OSError, KeyError):
            return None


_found = _Found()
