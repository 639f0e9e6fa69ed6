"""Custom node packs: which modules are whose, and which pack a node class is from.

A pack is told by where its files lie: what ComfyUI calls its modules differs between versions, and a pack
may import its own files by way of `sys.path`.
"""

import os
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from fastpurge.imported import namespace
from fastpurge.library_folders import libraries


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
        self._of_class: dict[type, set[str]] = {}

    @cached_property
    def modules(self) -> list[tuple[str, ModuleType]]:
        """Every module of a pack, with the name of the pack."""
        found = ((self.of_module(module), module) for module in [*sys.modules.values()])
        return [(pack, module) for pack, module in found if pack is not None]

    def strays(self) -> Iterator[dict[str, Any]]:
        """The globals of modules that are no library's and no pack's: ``__main__``, and what has no file."""
        known = libraries()
        for name, module in [*sys.modules.items()]:
            is_module = issubclass(type(module), ModuleType)
            if is_module and self.of_module(module) is None and not known.is_library(name):
                yield namespace(module)

    def of_module(self, module: object) -> str | None:
        """The pack that a module belongs to."""
        file = namespace(module).get("__file__") if issubclass(type(module), ModuleType) else None
        if type(file) is not str or not file.startswith(self._prefixes):
            return None
        for folder in self._folders:
            if file.startswith(folder):
                return file[len(folder) :].split(os.sep, 1)[0]
        return next((pack for folder, pack in self._elsewhere.items() if file.startswith(folder)), None)

    def of_class(self, of: type) -> set[str]:
        """The packs that a class and its bases belong to; ComfyUI's own belong to none."""
        if of not in self._of_class:
            modules = (sys.modules.get(str(one.__module__)) for one in of.__mro__)
            self._of_class[of] = {pack for pack in map(self.of_module, modules) if pack is not None}
        return self._of_class[of]

    def with_imported(self, packs: set[str]) -> set[str]:
        """Some packs, and those whose modules, classes and functions they have imported."""
        found, todo = set(packs), set(packs)
        by_pack: dict[str, list[ModuleType]] = {}
        for pack, module in self.modules:
            by_pack.setdefault(pack, []).append(module)
        while todo:
            values = (one for module in by_pack.get(todo.pop(), []) for one in [*namespace(module).values()])
            new = {self._of_value(one) for one in values} - found - {None}
            todo |= new  # type: ignore[arg-type]
            found |= new  # type: ignore[arg-type]
        return found

    def _of_value(self, value: Any) -> str | None:
        of = type(value)
        if issubclass(of, ModuleType):
            return self.of_module(value)
        if issubclass(of, (type, FunctionType)):
            return self.of_module(sys.modules.get(str(value.__module__)))
        return None


def _custom_nodes() -> list[str]:
    folders: list[str] = import_module("folder_paths").get_folder_paths("custom_nodes")
    return folders
