"""Which custom node pack a module, class or function belongs to.

The file decides. Module names do not work: ComfyUI names the modules of packs differently between versions,
and a pack may import its own files through `sys.path`, or without an entry in `sys.modules`.
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


class CustomNodePacks:
    """The packs in ``custom_nodes``. The name of a pack is that of its folder or file there."""

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

    def pack_of(self, globals_: dict[str, Any]) -> str | None:
        """The name of the pack that owns the module with these globals; None if no pack does."""
        file = _file_of(globals_)
        if not file.startswith(self._prefixes):
            return None
        for folder in self._folders:
            if file.startswith(folder):
                return file[len(folder) :].split(os.sep, 1)[0].removesuffix(".py")
        return next((pack for folder, pack in self._elsewhere.items() if file.startswith(folder)), None)

    def is_custom_code(self, globals_: dict[str, Any]) -> bool:
        """Whether the module with these globals is code of custom nodes.

        That includes modules of no pack and no library: packs create modules at run time.
        """
        if self.pack_of(globals_) is not None:
            return True
        if self._comfyui and _file_of(globals_).startswith(self._comfyui):
            return False  # its main.py, whose name is `__main__`, and packages without a file
        name = dict.get(globals_, "__name__")
        return type(name) is not str or not self._libraries.is_library(name)

    def is_custom_class(self, of: type) -> bool:
        """Whether a class or one of its bases is defined by custom nodes."""
        names = (_module_of(one) for one in _mro_of(of))
        return any(type(name) is not str or not self._libraries.is_library(name) for name in names)

    def belongs_to_pack(self, value: object) -> bool:
        """Whether a value is a function of a pack, or an instance of one of its classes."""
        if is_a(value, MethodType):
            value = cast(MethodType, value).__func__
        if is_a(value, FunctionType):
            return self.pack_of(cast(FunctionType, value).__globals__) is not None
        return self.is_custom_class(type(value))

    def module_name(self, globals_: dict[str, Any]) -> str:
        """A short module name. ComfyUI names a pack by its full path (`load_custom_node` in nodes.py)."""
        name = dict.get(globals_, "__name__")
        short = name.replace("\\", "/").rsplit("/", 1)[-1] if type(name) is str else "?"
        pack = self.pack_of(globals_)
        if pack is None:
            return short
        _, found, within = short.partition(pack)
        return f"{pack}{within}" if found else f"{pack}.{short}"

    def class_name(self, of: type) -> str:
        """The qualified name of a class, with a short module name."""
        name = _module_of(of)
        module = sys.modules.get(name) if type(name) is str else None
        known = is_a(module, ModuleType)
        return f"{self.module_name(namespace(module) if known else {'__name__': name})}.{_qualname_of(of)}"


def _file_of(globals_: dict[str, Any]) -> str:
    """The file of a module, or the folder of a package without one; empty if it has neither."""
    file = dict.get(globals_, "__file__")
    if type(file) is str:
        return file
    folders = dict.get(globals_, "__path__")
    if type(folders) is not list:  # a `_NamespacePath`, which reads the disk when it is iterated
        folders = (instance_dict(folders) or {}).get("_path")
    return f"{folders[0]}{os.sep}" if type(folders) is list and folders else ""


def _custom_nodes() -> list[str]:
    folders: list[str] = import_module("folder_paths").get_folder_paths("custom_nodes")
    return folders
