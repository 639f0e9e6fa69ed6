"""Custom node packs: which code is theirs.

A pack is told by where its files lie: what ComfyUI calls its modules differs between versions, and a pack
may import its own files by way of `sys.path`, or without an entry in `sys.modules`.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, cast

from fastpurge.inspection.path_expressions import instance_dict
from fastpurge.python_facts.imported_modules import namespace
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a

_mro_of = cast(Any, type.__dict__["__mro__"]).__get__
_module_of = cast(Any, type.__dict__["__module__"]).__get__
_qualname_of = cast(Any, type.__dict__["__qualname__"]).__get__


class Packs:
    """The packs in ``custom_nodes``, each named as its folder or file there is."""

    def __init__(self) -> None:
        given = [Path(folder).absolute() for folder in _custom_nodes()]
        folders = [*dict.fromkeys([*given, *(folder.resolve() for folder in given)])]
        self._folders = tuple(f"{folder}{os.sep}" for folder in folders)
        self._elsewhere = {
            f"{entry.resolve()}{os.sep}": entry.name
            for folder in folders
            if folder.is_dir()
            for entry in folder.iterdir()
            if entry.is_symlink()
        }
        self._prefixes = (*self._folders, *self._elsewhere)
        own = _file_of(vars(import_module("folder_paths")))
        self._comfyui = f"{Path(own).parent}{os.sep}" if own else ""
        self._libraries = libraries()

    def of(self, globals_: dict[str, Any]) -> str | None:
        """The pack that code with these globals belongs to."""
        file = _file_of(globals_)
        if not file.startswith(self._prefixes):
            return None
        for folder in self._folders:
            if file.startswith(folder):
                return file[len(folder) :].split(os.sep, 1)[0].removesuffix(".py")
        return next((pack for folder, pack in self._elsewhere.items() if file.startswith(folder)), None)

    def is_theirs(self, globals_: dict[str, Any]) -> bool:
        """Whether custom nodes may keep things in these globals.

        Also of a module that is neither a pack's nor a library's: packs make modules at run time.
        """
        if self.of(globals_) is not None:
            return True
        if self._comfyui and _file_of(globals_).startswith(self._comfyui):
            return False  # its main.py, which goes by the name of a program's, and packages without a file
        name = dict.get(globals_, "__name__")
        return type(name) is not str or not self._libraries.is_library(name)

    def is_their_class(self, of: type) -> bool:
        """Whether a class, or one that it is derived from, is a custom node's."""
        names = (_module_of(one) for one in _mro_of(of))
        return any(type(name) is not str or not self._libraries.is_library(name) for name in names)

    def has_to_do_with(self, value: object) -> bool:
        """Whether a value is a function of a pack, or an instance of one of its classes."""
        if is_a(value, MethodType):
            value = cast(MethodType, value).__func__
        if is_a(value, FunctionType):
            return self.of(cast(FunctionType, value).__globals__) is not None
        return self.is_their_class(type(value))

    def name_of(self, globals_: dict[str, Any]) -> str:
        """What to call a module. ComfyUI names a pack by its whole path (`load_custom_node` in nodes.py)."""
        name = dict.get(globals_, "__name__")
        short = name.replace("\\", "/").rsplit("/", 1)[-1] if type(name) is str else "?"
        pack = self.of(globals_)
        if pack is None:
            return short
        _, found, within = short.partition(pack)
        return f"{pack}{within}" if found else f"{pack}.{short}"

    def name_of_class(self, of: type) -> str:
        """What to call a class."""
        name = _module_of(of)
        module = sys.modules.get(name) if type(name) is str else None
        known = is_a(module, ModuleType)
        return f"{self.name_of(namespace(module) if known else {'__name__': name})}.{_qualname_of(of)}"


def _file_of(globals_: dict[str, Any]) -> str:
    """The file of a module, or the folder of a package without one; empty if it has neither."""
    file = dict.get(globals_, "__file__")
    if type(file) is str:
        return file
    folders = dict.get(globals_, "__path__")
    if type(folders) is not list:  # of such a package it is an object, which would look at the disk
        folders = (instance_dict(folders) or {}).get("_path")
    return f"{folders[0]}{os.sep}" if type(folders) is list and folders else ""


def _custom_nodes() -> list[str]:
    folders: list[str] = import_module("folder_paths").get_folder_paths("custom_nodes")
    return folders
