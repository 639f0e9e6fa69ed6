"""What the code of custom nodes does with a name: whether it would assign it again, how it asks for it."""

import dis
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fastpurge import _core

_ONCE = ("__init__", "__new__")
_ASKING = ("hasattr", "globals")

Namespace = dict[str, Any]


def _cannot() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class _Function:
    """The code of a function, and the class that it is a method of, if it is."""

    code: CodeType
    owner: str

    def assigns(self, instruction: str, name: str) -> bool:
        # The names first: to take a function apart takes a thousand times as long.
        return name in self.code.co_names and any(
            one.opname == instruction and one.argval == name for one in dis.get_instructions(self.code)
        )

    def asks_for(self, name: str) -> bool:
        return name in self.code.co_consts and not {*_ASKING}.isdisjoint(self.code.co_names)


class Code:
    """The functions of custom nodes, found on the heap when they are first asked about."""

    def __init__(self) -> None:
        self._by_namespace: dict[int, list[_Function]] = {}

    def empty(
        self,
        holder: Any,
        name: str,
        scopes: Iterable[Namespace],
        *,
        otherwise: Callable[[], bool] = _cannot,
    ) -> bool:
        """Empty a global of a module, or an attribute, that a function in these scopes assigns again.

        A method only counts for its own class. If none does, do ``otherwise``. Returns whether something was
        emptied.
        """
        instruction = "STORE_GLOBAL" if issubclass(type(holder), ModuleType) else "STORE_ATTR"
        owners = _owners_of(holder)
        functions = [
            one for scope in scopes for one in self._of(scope) if owners is None or one.owner in owners
        ]
        if not any(one.assigns(instruction, name) for one in functions):
            return otherwise()
        if any(one.asks_for(name) for one in functions):
            delattr(holder, name)
        else:
            setattr(holder, name, None)
        return True

    def _of(self, scope: Namespace) -> list[_Function]:
        """The functions that run in a namespace, and can run again."""
        if not self._by_namespace:
            for function in _core.scan((FunctionType,)):
                if function.__code__.co_name not in _ONCE:
                    found = self._by_namespace.setdefault(id(function.__globals__), [])
                    owner = _owner_of(function)
                    found += (_Function(code, owner) for code in _with_inner(function.__code__))
        return self._by_namespace.get(id(scope), [])


def _owner_of(function: FunctionType) -> str:
    """The class that a function is a method of, or is made in a method of; or none."""
    outermost, *_ = function.__qualname__.split(".<locals>")
    return ("", *outermost.split("."))[-2]


def _owners_of(holder: Any) -> set[str] | None:
    """The classes whose methods may assign an attribute, and none, for plain functions; of a module, all."""
    of = type(holder)
    if issubclass(of, ModuleType):
        return None
    return {"", *(one.__name__ for one in (holder.__mro__ if issubclass(of, type) else of.__mro__))}


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _with_inner(constant)
