"""What the code of custom nodes does with what they keep: whether it notices that it is gone, and loads it.

Read from the instructions of the functions that there are. What cannot be read counts as not noticed.
"""

import dis
import functools
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fastpurge import _core
from fastpurge.imported import namespace

# Empties a place.
Clear = Callable[[], object]

_ONCE = ("__init__", "__new__")
_OF_OBJECTS = ("hasattr", "getattr")
_OF_MODULES = ("globals",)
_ADDING = ("append", "appendleft", "extend", "insert", "add", "clear")
_ASKING = ("get", "setdefault", "KeyError")
_COMPARES = ("IS_OP", "COMPARE_OP")
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD")

_Step = tuple[str, Any]


class Function:
    """The code of a function, and the class that it is a method of, if it is."""

    def __init__(self, code: CodeType, owner: str) -> None:
        self.code = code
        self.owner = owner

    @functools.cached_property
    def steps(self) -> list[_Step]:
        """Its instructions, without those that only convert."""
        found = [(_name_of(one), one.argval) for one in dis.get_instructions(self.code)]
        return [step for step in found if step[0] not in ("TO_BOOL", "COPY", "DUP_TOP", "PUSH_NULL", "NOP")]

    def stores(self, instruction: str, name: str) -> bool:
        """Whether it assigns a name."""
        return name in self.code.co_names and (instruction, name) in self.steps

    def assigns(self, name: str) -> bool:
        """Whether it assigns a global or an attribute of this name."""
        return self.stores("STORE_GLOBAL", name) or self.stores("STORE_ATTR", name)

    def asks_by_name(self, name: str, by: tuple[str, ...]) -> bool:
        """Whether it asks, by one of these functions, for what may be missing."""
        return name in self.code.co_consts and not {*by}.isdisjoint(self.code.co_names)

    def asks_for(self, name: str) -> bool:
        """Whether it asks if there is anything but ``None`` under a name."""
        return any(_is_a_question(self.steps[at + 1 : at + 3]) for at in self._loads_of(name))

    def only_adds_to(self, name: str) -> bool:
        """Whether it does no more to what goes by a name than to put something in."""
        after = (self.steps[at + 1 : at + 2] for at in self._loads_of(name))
        return all(next_ and next_[0][0] in _LOADS and next_[0][1] in _ADDING for next_ in after)

    def names(self, name: str) -> bool:
        """Whether a name occurs in it."""
        return name in self.code.co_names

    def fills_by_key(self) -> bool:
        """Whether it puts something under a key."""
        return any(step[0] == "STORE_SUBSCR" for step in self.steps) or "setdefault" in self.code.co_names

    def asks_for_keys(self) -> bool:
        """Whether it asks if there is something under a key."""
        asks = any(step[0] == "CONTAINS_OP" for step in self.steps)
        return asks or not {*_ASKING}.isdisjoint(self.code.co_names)

    def asks_for_key(self, key: str) -> bool:
        """Whether it asks if this key, which is written in it, is there."""
        return any(
            step == ("LOAD_CONST", key) and any(one[0] == "CONTAINS_OP" for one in self.steps[at : at + 4])
            for at, step in enumerate(self.steps)
        )

    def asks_for_value(self, key: str) -> bool:
        """Whether it asks if there is anything but ``None`` under this key, which is written in it."""
        return any(
            step == ("LOAD_CONST", key)
            and self.steps[at + 1 : at + 2]
            and self.steps[at + 1][0] in ("BINARY_SUBSCR", "CALL", "CALL_METHOD", "PRECALL")
            and _is_a_question([one for one in self.steps[at + 2 : at + 5] if one[0] != "CALL"])
            for at, step in enumerate(self.steps)
        )

    def _loads_of(self, name: str) -> Iterator[int]:
        if name in self.code.co_names:
            yield from (at for at, step in enumerate(self.steps) if step[0] in _LOADS and step[1] == name)


class Code:
    """The functions of some modules, by the namespace that they run in; found when first asked for."""

    def __init__(self, modules: list[ModuleType]) -> None:
        self._namespaces = {id(namespace(module)) for module in modules}

    @functools.cached_property
    def _by_namespace(self) -> dict[int, list[Function]]:
        found: dict[int, list[Function]] = {}
        for function in _core.scan((FunctionType,)):
            where = id(function.__globals__)
            if where in self._namespaces and function.__code__.co_name not in _ONCE:
                owner = _owner_of(function)
                found.setdefault(where, []).extend(
                    Function(code, owner) for code in _with_inner(function.__code__)
                )
        return found

    def of(self, modules: list[ModuleType]) -> list[Function]:
        """The functions of these modules that can run again."""
        return [one for module in modules for one in self._by_namespace.get(id(namespace(module)), [])]


def emptying_a_name(holder: Any, name: str, functions: list[Function]) -> Clear | None:
    """How to empty a global or an attribute, if some code would notice and assign it again."""
    is_module = issubclass(type(holder), ModuleType)
    if not is_module:
        functions = _with_access(holder, name, functions)
        if any(type(vars(one).get(name)) is functools.cached_property for one in type(holder).__mro__):
            return partial(delattr, holder, name)
    stored = "STORE_GLOBAL" if is_module else "STORE_ATTR"
    if not any(one.stores(stored, name) for one in functions):
        return None
    if any(one.asks_for(name) for one in functions):
        return partial(setattr, holder, name, None)
    by = _OF_MODULES if is_module else _OF_OBJECTS
    return partial(delattr, holder, name) if any(one.asks_by_name(name, by) for one in functions) else None


def emptying_an_entry(of: Any, key: Any, name: str, functions: list[Function]) -> Clear | None:
    """How to take an entry out of a dict that goes by a name, if some code would notice and fill it again."""
    own = {one.__name__ for one in type(of).__mro__}
    functions = [one for one in functions if one.names(name) or one.owner in own]
    if not any(one.fills_by_key() for one in functions):
        return None
    if type(key) is str and any(key in one.code.co_consts for one in functions):
        if any(one.asks_for_key(key) for one in functions):
            return partial(of.pop, key, None)
        asks = any(one.asks_for_value(key) for one in functions)
        return partial(of.__setitem__, key, None) if asks else None
    return partial(of.pop, key, None) if any(one.asks_for_keys() for one in functions) else None


def is_only_added_to(name: str, functions: list[Function]) -> bool:
    """Whether no code reads what goes by a name."""
    return all(one.only_adds_to(name) for one in functions)


def _with_access(holder: Any, name: str, functions: list[Function]) -> list[Function]:
    """The methods of an object; if they have nothing to do with an attribute, plain functions."""
    of = holder if issubclass(type(holder), type) else type(holder)
    owners = {one.__name__ for one in of.__mro__}
    methods = [one for one in functions if one.owner in owners]
    if any(one.names(name) or name in one.code.co_consts for one in methods):
        return methods
    return [one for one in functions if not one.owner]


def _is_a_question(steps: list[_Step]) -> bool:
    """Whether what is on the stack is asked if it is anything, or anything but ``None``."""
    if not steps:
        return False
    name, _ = steps[0]
    is_compared = len(steps) > 1 and steps[0] == ("LOAD_CONST", None) and steps[1][0] in _COMPARES
    return "JUMP_IF" in name or name == "UNARY_NOT" or is_compared


def _name_of(instruction: dis.Instruction) -> str:
    # From CPython 3.14 on a subscript is one of the binary operations.
    is_subscript = instruction.opname == "BINARY_OP" and instruction.argrepr == "[]"
    return "BINARY_SUBSCR" if is_subscript else instruction.opname


def _owner_of(function: FunctionType) -> str:
    """The class that a function is a method of, or is made in a method of; or none."""
    outermost, *_ = function.__qualname__.split(".<locals>")
    return ("", *outermost.split("."))[-2]


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _with_inner(constant)
