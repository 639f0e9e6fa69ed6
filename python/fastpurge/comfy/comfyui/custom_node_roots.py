"""Roots from which custom nodes reach their objects. A purge keeps all of those, and reports their sizes.

A cache that would be filled again looks like data that one node stores for another: frames of a loop, a value
under a name, a running sum. So all of it counts as used, wherever it is: in a global, an attribute of a class
or an object, a closure, a default argument, a decorator's cache, a thread.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import CO_NEWLOCALS
from types import CoroutineType, FrameType, ModuleType
from typing import Any

from fastpurge import _core
from fastpurge.comfy.comfyui.pack_of_code import CustomNodePacks
from fastpurge.comfy.comfyui.prompt import frames_of_all_threads
from fastpurge.comfy.comfyui.unkept_tensors import Unkept, nbytes_of
from fastpurge.inspection.path_expressions import path_steps
from fastpurge.python_facts.imported_modules import namespace
from fastpurge.python_facts.object_types import is_a


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """An object of custom nodes from which a closure starts.

    Attributes:
        name: shown to the user.
        obj: the object; for a module or a running function, its namespace dict.
        is_namespace: whether `obj` is a namespace dict.

    """

    name: str
    obj: Any
    is_namespace: bool = True

    @property
    def closure_start(self) -> Any:
        """What to start the closure from: it does not enter the namespace of a module itself."""
        return [*dict.values(self.obj)] if self.is_namespace else self.obj

    def name_of_path(self, path: list[Any]) -> str:
        """The name of the global or attribute through which a path leaves this root."""
        steps = path_steps(self.name, path, {}, is_namespace=self.is_namespace)
        is_deeper = not self.is_namespace or is_a(steps[0][1], type)
        return "".join(word for word, _ in steps[: 1 + is_deeper])


@dataclass(frozen=True, slots=True)
class KeptMemory:
    """Memory that a purge kept.

    Attributes:
        where: the name of its owner, such as ``my_pack.nodes.CACHE``.
        nbytes: its size in bytes.

    """

    where: str
    nbytes: int


def find_roots(code: Iterable[Any], caches: Iterable[Any]) -> list[Root]:
    """All roots: modules, node classes and instances, running and suspended functions, threads."""
    packs = CustomNodePacks()
    return [
        *_modules(packs, (one for one in code if is_a(one, ModuleType))),
        *_node_classes(packs),
        *_instances(packs, caches),
        *_running_functions(packs),
        *_suspended(packs, (one for one in code if not is_a(one, ModuleType))),
        *_threads(packs),
    ]


def kept_sizes(kept: list[Unkept], roots: list[Root], *, min_bytes: int) -> list[KeptMemory]:
    """Bytes of kept tensors by owner, the largest first; owners below ``min_bytes`` are left out."""
    if nbytes_of(kept) < min_bytes:
        return []
    by_root = {id(root.obj): root for root in reversed(roots)}
    paths = _core.referrer_paths((*(one.tensor for one in kept),), [root.obj for root in roots])
    by_name: dict[str, list[Unkept]] = {}
    for one, (how, path) in zip(kept, paths, strict=True):
        # A path through a module leads to what another pack owns.
        is_known = how == "root" and not any(is_a(at, ModuleType) for at in path)
        name = by_root[id(path[0])].name_of_path(path) if is_known else "a place without a name"
        by_name.setdefault(name, []).append(one)
    left = [KeptMemory(name, nbytes_of(of)) for name, of in by_name.items()]
    return sorted((one for one in left if one.nbytes >= min_bytes), key=lambda one: -one.nbytes)


def _modules(packs: CustomNodePacks, modules: Iterable[ModuleType]) -> Iterator[Root]:
    for module in modules:
        if packs.is_custom_code(namespace(module)):
            yield Root(packs.module_name(namespace(module)), namespace(module))


def _node_classes(packs: CustomNodePacks) -> Iterator[Root]:
    """Some classes are created in a function, and no global refers to them."""
    for of in [*import_module("nodes").NODE_CLASS_MAPPINGS.values()]:
        if is_a(of, type) and packs.is_custom_class(of):
            yield Root(packs.class_name(of), of, is_namespace=False)


def _instances(packs: CustomNodePacks, caches: Iterable[Any]) -> Iterator[Root]:
    """ComfyUI caches an instance of each node from one prompt to the next."""
    for cache in caches:
        entries = getattr(cache, "cache", None)
        for one in [*entries.values()] if type(entries) is dict else []:
            if packs.is_custom_class(type(one)):
                yield Root(f"{packs.class_name(type(one))}()", one, is_namespace=False)


def _running_functions(packs: CustomNodePacks) -> Iterator[Root]:
    """Local variables of their running functions, in any thread."""
    for frame in frames_of_all_threads():
        if packs.pack_of(frame.f_globals) is not None and frame.f_code.co_flags & CO_NEWLOCALS:
            yield Root(_function_name(frame, packs), _core.frame_locals(frame))


def _suspended(packs: CustomNodePacks, suspended: Iterable[Any]) -> Iterator[Root]:
    for one in suspended:
        frame = one.cr_frame if is_a(one, CoroutineType) else one.ag_frame
        if frame is not None and packs.pack_of(frame.f_globals) is not None:
            yield Root(_function_name(frame, packs), one, is_namespace=False)


def _function_name(frame: FrameType, packs: CustomNodePacks) -> str:
    return f"{packs.module_name(frame.f_globals)}.{frame.f_code.co_name}()"


def _threads(packs: CustomNodePacks) -> Iterator[Root]:
    """Threads of their classes, and threads whose arguments are their functions or objects."""
    for thread in threading.enumerate():
        attributes: dict[str, Any] = object.__getattribute__(thread, "__dict__")
        arguments = [*attributes.values()]
        arguments += [one for value in arguments if type(value) is tuple for one in value]
        if any(packs.belongs_to_pack(one) for one in (thread, *arguments)):
            yield Root(f"thread {attributes.get('_name')}", thread, is_namespace=False)
