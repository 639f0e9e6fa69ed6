"""How one object gets from another, as code that a person can read.

Objects are asked nothing: their attributes are read from their dicts, and with descriptors of built-in types.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import FrameType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import Any, cast

import torch

from fastpurge import _core
from fastpurge.python_facts.object_types import is_a, safe_repr, type_name
from fastpurge.python_facts.running_code import FRAME_ATTRIBUTES

_SETS = (set, frozenset)
_SEQUENCES = (list, tuple, deque)
# What built-in types read in C and show in `tp_traverse`; members are read whatever they are called.
_GETTERS = """
    __self__ __defaults__ __kwdefaults__ cell_contents __traceback__ __cause__ __context__ args tb_next
    __bases__ gi_yieldfrom cr_await ag_await
""".split()
_PARTS_OF_MODULES = ("_parameters", "_buffers", "_modules")
_BY_NUMBER = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ParameterList)
_BY_KEY = (torch.nn.ModuleDict, torch.nn.ParameterDict)

_mro_of = cast(Any, type.__dict__["__mro__"]).__get__
_dict_of_class: Callable[[type], MappingProxyType[str, Any]] = cast(Any, type.__dict__["__dict__"]).__get__

Labels = dict[tuple[int, int], str]
"""What is to be written between two objects, by their ids, where neither of them shows it."""


def path_steps(
    start: str, path: Sequence[Any], labels: Labels, *, is_namespace: bool
) -> list[tuple[str, Any]]:
    """What leads from the first of some objects to the last, each of which holds the next, as words of code.

    Each with what it leads to. ``start`` is what the first is called; of a namespace, what precedes names.
    """
    if len(path) == 1 and is_namespace:
        return [(f"{start}.__dict__" if start else "locals()", path[0])]
    steps, at = [] if is_namespace else [(start, path[0])], 0
    while at < len(path) - 1:
        if at == 0 and is_namespace:
            word, used = start + _named(path[0], path[1], dot=bool(start)), 1
        else:
            word, used = _step(path, at, labels)
        at += used
        steps.append((word, path[at]))
    return steps


def _step(path: Sequence[Any], at: int, labels: Labels) -> tuple[str, int]:
    """What leads on from one object of a path, and how many objects further that is."""
    holder, held = path[at], path[at + 1]
    if (label := labels.get((id(holder), id(held)))) is not None:
        return label, 1
    attributes, used = instance_dict(holder), 1
    if at + 2 < len(path) and _is_dict_of(holder, held, attributes):
        held, used = path[at + 2], 2
    if attributes is not None and (name := _key_of(attributes, held)) is not None:
        if is_a(holder, torch.nn.Module) and name in _PARTS_OF_MODULES and at + used + 1 < len(path):
            return _part(holder, name, held, path[at + used + 1]), used + 1
        return _attribute(name), used
    if held is attributes:
        return ".__dict__", 1
    return _within(holder, path[at + 1]), 1


def _is_dict_of(holder: Any, held: Any, attributes: dict[Any, Any] | None) -> bool:
    # A class shows its dict, which nobody else is given.
    return held is attributes or (is_a(holder, type) and is_a(held, dict))


def _part(module: torch.nn.Module, kind: str, parts: Any, held: Any) -> str:
    """A parameter, buffer or sub-module, by what its module calls it."""
    key = _key_of(parts, held) if is_a(parts, dict) else None
    if type(key) is not str:
        return f".{kind}{_within(parts, held)}"
    if is_a(module, *_BY_NUMBER) and key.isdecimal():
        return f"[{int(key)}]"
    if is_a(module, *_BY_KEY):
        return f"[{safe_repr(key)}]"
    return f".{key}" if key.isidentifier() else f".{kind}[{safe_repr(key)}]"


def instance_dict(obj: Any) -> dict[Any, Any] | None:
    """The `__dict__` of an object, of a class that of its own attributes; ``None`` if it has none."""
    if is_a(obj, type):
        return dict(_dict_of_class(obj))
    for of in _mro_of(type(obj)):
        found = _dict_of_class(of).get("__dict__")
        if type(found) in (GetSetDescriptorType, MemberDescriptorType):
            with suppress(Exception):
                attributes = cast(Any, found).__get__(obj)
                return attributes if is_a(attributes, dict) else None
    return None


def _within(holder: Any, held: Any) -> str:
    """What leads from an object to what it holds, and not as an attribute in its dict."""
    for types, words in _WORDS:
        if is_a(holder, *types) and (word := next(words(holder, held), None)) is not None:
            return word
    for name, value in _members(holder):
        if value is held:
            return f".{name}"
    return f" -> {type_name(held)}"


def _in_dict(holder: Any, held: Any) -> Iterator[str]:
    for key, value in [*dict.items(holder)]:
        if value is held:
            yield f"[{safe_repr(key)}]"
    if any(key is held for key in [*dict.keys(holder)]):
        yield ".keys(){...}"


def _in_sequence(holder: Any, held: Any) -> Iterator[str]:
    base: Any = next(one for one in _SEQUENCES if is_a(holder, one))
    return (f"[{at}]" for at, value in enumerate([*base.__iter__(holder)]) if value is held)


def _in_set(holder: Any, held: Any) -> Iterator[str]:
    base: Any = next(one for one in _SETS if is_a(holder, one))
    return ("{...}" for value in [*base.__iter__(holder)] if value is held)


def _in_frame(holder: Any, held: Any) -> Iterator[str]:
    locals_: dict[Any, Any] = _core.frame_locals(holder)
    return (f".f_locals[{safe_repr(name)}]" for name, value in locals_.items() if value is held)


def _in_generator(holder: Any, held: Any) -> Iterator[str]:
    attribute = FRAME_ATTRIBUTES[type(holder)]
    frame = getattr(holder, attribute)
    return (f".{attribute}{word}" for word in _in_frame(frame, held)) if frame is not None else iter(())


_WORDS: list[tuple[tuple[type, ...], Callable[[Any, Any], Iterator[str]]]] = [
    ((dict,), _in_dict),
    (_SEQUENCES, _in_sequence),
    (_SETS, _in_set),
    ((FrameType,), _in_frame),
    ((*FRAME_ATTRIBUTES,), _in_generator),
]


def _members(obj: Any) -> Iterator[tuple[str, Any]]:
    """What is in the slots of an object, and in those of built-in types."""
    for of in _mro_of(type(obj)):
        for name, descriptor in [*_dict_of_class(of).items()]:
            if type(descriptor) is MemberDescriptorType or (
                type(descriptor) is GetSetDescriptorType and name in _GETTERS and of.__module__ == "builtins"
            ):
                with suppress(Exception):  # an empty slot or cell
                    yield name, descriptor.__get__(obj)


def _named(namespace: Any, held: Any, *, dot: bool) -> str:
    """A name in a namespace; ``dot``: it is an attribute of what was written so far."""
    name = _key_of(namespace, held) if is_a(namespace, dict) else None
    if name is None:
        return _within(namespace, held)
    return _attribute(name) if dot else str(name)


def _attribute(name: Any) -> str:
    is_name = type(name) is str and name.isidentifier()
    return f".{name}" if is_name else f"[{safe_repr(name)}]"


def _key_of(mapping: dict[Any, Any], held: Any) -> Any:
    return next((key for key, value in [*dict.items(mapping)] if value is held), None)
