"""Where custom nodes keep things: nothing in such a place is taken, and the purge node says what is there.

Nobody can tell a cache that would be filled again from what one node has put there for another to read: the
frames of a loop, a value under a name, a sum. So all of it is in use, whatever holds it there: a global, an
attribute of a class or of an object, a closure, a default argument, a decorator's cache, a thread.
"""

import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import CO_NEWLOCALS
from types import CoroutineType, FrameType, ModuleType
from typing import Any

from fastpurge import _core
from fastpurge.comfy.comfyui.custom_node_packs import Packs
from fastpurge.comfy.comfyui.unkept_tensors import Unkept, nbytes_of
from fastpurge.inspection.path_expressions import path_steps
from fastpurge.python_facts.imported_modules import namespace
from fastpurge.python_facts.object_types import is_a


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where custom nodes keep things.

    Attributes:
        name: what to call it.
        obj: what it is; of a module, or of a running function, its namespace.
        is_namespace: whether it is that.

    """

    name: str
    obj: Any
    is_namespace: bool = True

    @property
    def root(self) -> Any:
        """Where a closure begins that is to find what is kept here: it stops at the namespace of a module."""
        return [*dict.values(self.obj)] if self.is_namespace else self.obj

    def part(self, way: list[Any]) -> str:
        """What to call the part that leads on, by the objects on the way: a global, or an attribute."""
        steps = path_steps(self.name, way, {}, is_namespace=self.is_namespace)
        is_deeper = not self.is_namespace or is_a(steps[0][1], type)
        return "".join(word for word, _ in steps[: 1 + is_deeper])


@dataclass(frozen=True, slots=True)
class Left:
    """What was left.

    Attributes:
        where: where it is kept.
        nbytes: how large it is.

    """

    where: str
    nbytes: int


def find(code: Iterable[Any], caches: Iterable[Any]) -> list[Place]:
    """Every place there is: in modules and functions that wait, and in instances of nodes in caches."""
    packs = Packs()
    return [
        *_modules(packs, (one for one in code if is_a(one, ModuleType))),
        *_node_classes(packs),
        *_instances(packs, caches),
        *_running(packs),
        *_waiting(packs, (one for one in code if not is_a(one, ModuleType))),
        *_threads(packs),
    ]


def sizes(kept: list[Unkept], places: list[Place], *, min_bytes: int) -> list[Left]:
    """What tensors amount to by where they are kept, the largest first, if it is so many bytes."""
    if nbytes_of(kept) < min_bytes:
        return []
    by_root = {id(place.obj): place for place in reversed(places)}
    ways = _core.referrer_paths((*(one.tensor for one in kept),), [place.obj for place in places])
    by_name: dict[str, list[Unkept]] = {}
    for one, (how, way) in zip(kept, ways, strict=True):
        # Through a module it leads to what is another's.
        is_known = how == "root" and not any(is_a(at, ModuleType) for at in way)
        name = by_root[id(way[0])].part(way) if is_known else "a place without a name"
        by_name.setdefault(name, []).append(one)
    left = [Left(name, nbytes_of(of)) for name, of in by_name.items()]
    return sorted((one for one in left if one.nbytes >= min_bytes), key=lambda one: -one.nbytes)


def _modules(packs: Packs, modules: Iterable[ModuleType]) -> Iterator[Place]:
    for module in modules:
        if packs.is_theirs(namespace(module)):
            yield Place(packs.name_of(namespace(module)), namespace(module))


def _node_classes(packs: Packs) -> Iterator[Place]:
    """Some are made in a function, and no global leads to them."""
    for of in [*import_module("nodes").NODE_CLASS_MAPPINGS.values()]:
        if is_a(of, type) and packs.is_their_class(of):
            yield Place(packs.name_of_class(of), of, is_namespace=False)


def _instances(packs: Packs, caches: Iterable[Any]) -> Iterator[Place]:
    """ComfyUI keeps an instance of each node from one prompt to the next."""
    for cache in caches:
        entries = getattr(cache, "cache", None)
        for one in [*entries.values()] if type(entries) is dict else []:
            if packs.is_their_class(type(one)):
                yield Place(f"{packs.name_of_class(type(one))}()", one, is_namespace=False)


def _running(packs: Packs) -> Iterator[Place]:
    """The variables of their functions that run, in any thread."""
    for frame in _frames():
        if packs.of(frame.f_globals) is not None and frame.f_code.co_flags & CO_NEWLOCALS:
            yield Place(_name_of(frame, packs), _core.frame_locals(frame))


def _waiting(packs: Packs, suspended: Iterable[Any]) -> Iterator[Place]:
    for one in suspended:
        frame = one.cr_frame if is_a(one, CoroutineType) else one.ag_frame
        if frame is not None and packs.of(frame.f_globals) is not None:
            yield Place(_name_of(frame, packs), one, is_namespace=False)


def _name_of(frame: FrameType, packs: Packs) -> str:
    return f"{packs.name_of(frame.f_globals)}.{frame.f_code.co_name}()"


def _frames() -> Iterator[FrameType]:
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            yield frame
            frame = frame.f_back


def _threads(packs: Packs) -> Iterator[Place]:
    """Threads that are of a class of theirs, or have been handed something of theirs."""
    for thread in threading.enumerate():
        attributes: dict[str, Any] = object.__getattribute__(thread, "__dict__")
        handed = [*attributes.values()]
        handed += [one for value in handed if type(value) is tuple for one in value]
        if any(packs.has_to_do_with(one) for one in (thread, *handed)):
            yield Place(f"thread {attributes.get('_name')}", thread, is_namespace=False)
