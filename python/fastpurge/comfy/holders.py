"""Where custom nodes hold what was released, at module and class level, and how they load it again.

A node that keeps its model in a global looks there first: it would meet the tombstone on every prompt until
ComfyUI is started anew. So the entry goes with what it held: out of a dict, and a name becomes ``None``,
which is what such names start as. A list keeps its tombstones: without them what follows would move up,
and be taken for something else.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from fastpurge import _core, keep
from fastpurge.tombstones import PurgedModule, PurgedTensor, is_purged


def forget_tombstones() -> list[str]:
    """Take what was released out of the globals and classes of custom nodes; say where it was."""
    tombstones = _core.scan((PurgedTensor, PurgedModule))
    if not tombstones:
        return []

    def is_spoiled(value: Any) -> bool:
        if is_purged(value):
            return True
        reached = _core.closure((value,), libraries=keep.libraries())
        return any(one in reached for one in tombstones)

    return [place for name, holder in _holders() for place in _clear(name, holder, is_spoiled)]


def _holders() -> Iterator[tuple[str, Any]]:
    """The modules of custom nodes and the classes in them, with names to print."""
    folders = [Path(folder).resolve() for folder in _custom_nodes()]
    for module in [*sys.modules.values()]:
        file = getattr(module, "__file__", None) if type(module) is ModuleType else None
        if file and any(Path(file).resolve().is_relative_to(folder) for folder in folders):
            short = Path(file).parent.name if Path(file).name == "__init__.py" else Path(file).stem
            yield short, module
            for name, value in [*vars(module).items()]:
                if type(value) is type and value.__module__ == module.__name__:
                    yield f"{short}.{name}", value


def _clear(name: str, holder: Any, is_spoiled: Callable[[Any], bool]) -> Iterator[str]:
    for attribute, value in [*vars(holder).items()]:
        place = f"{name}.{attribute}"
        if is_purged(value):
            setattr(holder, attribute, None)
            yield place
        elif type(value) in (dict, OrderedDict) and not attribute.startswith("__"):
            # A copy: another thread of a custom node may put something in meanwhile.
            for key in [key for key, held in [*value.items()] if is_spoiled(held)]:
                value.pop(key, None)
                yield f"{place}[{key!r}]"


def _custom_nodes() -> list[str]:
    folders: list[str] = import_module("folder_paths").get_folder_paths("custom_nodes")
    return folders
