"""Reads attributes of imported modules, which another thread may still be importing.

Runs none of their code: a module may compute attributes (`__getattr__`), and `sys.modules` may have other
objects. A class that does not exist yet has no instances.
"""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

_namespace = cast(Any, vars(ModuleType)["__dict__"]).__get__


def namespace(module: Any) -> dict[str, Any]:
    """The globals of a module, without running code of a subclass."""
    found: dict[str, Any] | None = _namespace(module)  # there is none before `ModuleType.__init__` has run
    return {} if found is None else found


def modules() -> dict[str, Any]:
    """All modules by name. Other objects in `sys.modules` are left out."""
    # `copy` is one call. `items` would make a tuple for each, and a garbage collection meanwhile can switch
    # threads.
    found = sys.modules.copy()
    return {
        name: one for name, one in found.items() if type(name) is str and issubclass(type(one), ModuleType)
    }


def attribute(module: str, name: str) -> Any:
    """A global of a module; ``None`` if there is no such module or name yet."""
    found = sys.modules.get(module)
    return namespace(found).get(name) if issubclass(type(found), ModuleType) else None


def types_in(names: Mapping[str, tuple[str, ...]]) -> tuple[type, ...]:
    """The types that exist, of these names by module. Others have no instances."""
    found = (attribute(module, name) for module, types in names.items() for name in types)
    return tuple(one for one in found if issubclass(type(one), type))
