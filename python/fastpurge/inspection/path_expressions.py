"""Writes referrer paths as Python code, such as ``.cache['sdxl'][0].weight``.

Runs no code of the objects: attributes are read from their dicts, and with descriptors of built-in types.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import FrameType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import Any, cast

import torch

from fastpurge import _core
from fastpurge.python_facts.object_types import is_a, is_exactly, safe_repr, type_name
from fastpurge.python_facts.running_code import FRAME_ATTRIBUTES

_SETS = (set, frozenset)
_SEQUENCES = (list, tuple, deque)
# Attributes of built-in types that `tp_traverse` visits. Member descriptors are read under any name.
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
"""Path expressions of hidden references, by the ids of the owner and the referent."""


def path_steps(
    start: str, path: Sequence[Any], labels: Labels, *, is_namespace: bool
) -> list[tuple[str, Any]]:
    """The steps of a path as code, each with the object that it leads to.

    Args:
        start: the name of the first object; if that is a namespace, what to write before a name in it.
        path: the objects, each of which references the next.
        labels: the expressions of hidden references.
        is_namespace: whether the first object is the namespace of a module or a function.

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
    """The expression from the object at an index to a later one, and how many objects later that is."""
    owner, referent = path[at], path[at + 1]
    if (label := labels.get((id(owner), id(referent)))) is not None:
        return label, 1
    attributes, used = instance_dict(owner), 1
    if at + 2 < len(path) and _is_dict_of(owner, referent, attributes):
        referent, used = path[at + 2], 2
    if attributes is not None and (name := _key_of(attributes, referent)) is not None:
        if is_a(owner, torch.nn.Module) and name in _PARTS_OF_MODULES and at + used + 1 < len(path):
            return _part(owner, name, referent, path[at + used + 1]), used + 1
        return _attribute(name), used
    if referent is attributes:
        return ".__dict__", 1
    return _within(owner, path[at + 1]), 1


def _is_dict_of(owner: Any, referent: Any, attributes: dict[Any, Any] | None) -> bool:
    # `tp_traverse` of a class visits its dict, which Python code only gets as a mappingproxy.
    return referent is attributes or (is_a(owner, type) and is_a(referent, dict))


def _part(module: torch.nn.Module, kind: str, parts: Any, referent: Any) -> str:
    """A parameter, buffer or sub-module, by its name in the module."""
    key = _key_of(parts, referent) if is_a(parts, dict) else None
    if type(key) is not str:
        return f".{kind}{_within(parts, referent)}"
    if is_a(module, *_BY_NUMBER) and key.isdecimal():
        return f"[{int(key)}]"
    if is_a(module, *_BY_KEY):
        return f"[{safe_repr(key)}]"
    return f".{key}" if key.isidentifier() else f".{kind}[{safe_repr(key)}]"


def instance_dict(obj: Any) -> dict[Any, Any] | None:
    """The `__dict__` of an object, for a class a copy of its own; ``None`` if it has none."""
    if is_a(obj, type):
        return dict(_dict_of_class(obj))
    for of in _mro_of(type(obj)):
        found = _dict_of_class(of).get("__dict__")
        if is_exactly(found, (GetSetDescriptorType, MemberDescriptorType)):
            with suppress(Exception):
                attributes = cast(Any, found).__get__(obj)
                return attributes if is_a(attributes, dict) else None
    return None


def _within(owner: Any, referent: Any) -> str:
    """The expression from an object to a referent that is not in its instance dict."""
    for types, expressions in _EXPRESSIONS:
        if is_a(owner, *types) and (word := next(expressions(owner, referent), None)) is not None:
            return word
    for name, value in _members(owner):
        if value is referent:
            return f".{name}"
    return f" -> {type_name(referent)}"


def _in_dict(owner: Any, referent: Any) -> Iterator[str]:
    for key, value in [*dict.items(owner)]:
        if value is referent:
            yield f"[{safe_repr(key)}]"
    if any(key is referent for key in [*dict.keys(owner)]):
        yield ".keys(){...}"


def _in_sequence(owner: Any, referent: Any) -> Iterator[str]:
    base: Any = next(one for one in _SEQUENCES if is_a(owner, one))
    return (f"[{at}]" for at, value in enumerate([*base.__iter__(owner)]) if value is referent)


def _in_set(owner: Any, referent: Any) -> Iterator[str]:
    base: Any = next(one for one in _SETS if is_a(owner, one))
    return ("{...}" for value in [*base.__iter__(owner)] if value is referent)


def _in_frame(owner: Any, referent: Any) -> Iterator[str]:
    locals_: dict[Any, Any] = _core.frame_locals(owner)
    return (f".f_locals[{safe_repr(name)}]" for name, value in locals_.items() if value is referent)


def _in_generator(owner: Any, referent: Any) -> Iterator[str]:
    attribute = FRAME_ATTRIBUTES[type(owner)]
    frame = getattr(owner, attribute)
    return (f".{attribute}{word}" for word in _in_frame(frame, referent)) if frame is not None else iter(())


_EXPRESSIONS: list[tuple[tuple[type, ...], Callable[[Any, Any], Iterator[str]]]] = [
    ((dict,), _in_dict),
    (_SEQUENCES, _in_sequence),
    (_SETS, _in_set),
    ((FrameType,), _in_frame),
    ((*FRAME_ATTRIBUTES,), _in_generator),
]


def _members(obj: Any) -> Iterator[tuple[str, Any]]:
    """The values of an object's slots, and of the members of its built-in base types."""
    for of in _mro_of(type(obj)):
        for name, descriptor in [*_dict_of_class(of).items()]:
            if type(descriptor) is MemberDescriptorType or (
                type(descriptor) is GetSetDescriptorType and name in _GETTERS and of.__module__ == "builtins"
            ):
                with suppress(Exception):  # an empty slot or cell
                    yield name, descriptor.__get__(obj)


def _named(namespace: Any, referent: Any, *, dot: bool) -> str:
    """The name of a referent in a namespace; with ``dot`` as an attribute."""
    name = _key_of(namespace, referent) if is_a(namespace, dict) else None
    if name is None:
        return _within(namespace, referent)
    return _attribute(name) if dot else str(name)


def _attribute(name: Any) -> str:
    is_name = type(name) is str and name.isidentifier()
    return f".{name}" if is_name else f"[{safe_repr(name)}]"


def _key_of(mapping: dict[Any, Any], referent: Any) -> Any:
    return next((key for key, value in [*dict.items(mapping)] if value is referent), None)
