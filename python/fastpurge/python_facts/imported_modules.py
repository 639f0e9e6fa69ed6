"""What imported modules have, as far as they are: another thread may be in the midst of importing them.

No code of theirs is run: a module may make up what it has (`__getattr__`), or be replaced by something else.
What is not there yet has no instances, and nothing that uses it runs yet.
"""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

_namespace = cast(Any, vars(ModuleType)["__dict__"]).__get__


def namespace(module: Any) -> dict[str, Any]:
    """The globals of a module, without asking a subclass that makes them up."""
    found: dict[str, Any] | None = _namespace(module)  # there is none before `ModuleType.__init__` has run
    return {} if found is None else found


def modules() -> dict[str, Any]:
    """All modules by name. What else is in `sys.modules` is left out."""
    # In one call: a tuple for each item would let the collector run, and with it another thread that imports.
    found = sys.modules.copy()
    return {
        name: one for name, one in found.items() if type(name) is str and issubclass(type(one), ModuleType)
    }


def attribute(module: str, name: str) -> Any:
    """What a module has under a name; ``None`` if there is no such module, or nothing there by now."""
    found = sys.modules.get(module)
    return namespace(found).get(name) if issubclass(type(found), ModuleType) else None


def types_in(names: Mapping[str, tuple[str, ...]]) -> tuple[type, ...]:
    """Those types, by module, that are there: no others can have instances."""
    found = (attribute(module, name) for module, types in names.items() for name in types)
    return tuple(one for one in found if issubclass(type(one), type))
