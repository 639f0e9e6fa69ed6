"""Why an object is alive: the shortest path from a root to it."""

import gc
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from types import FrameType
from typing import Any, Literal, cast, overload

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch._C import DisableTorchFunction

from fastpurge import _core
from fastpurge.inspection import roots
from fastpurge.inspection.path_expressions import Labels, path_steps
from fastpurge.inspection.roots import Root
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a, is_exactly, safe_repr, type_name
from fastpurge.reporting.items import tensor_item
from fastpurge.reporting.text import Printable, human
from fastpurge.torch_facts import autograd, cpp_owners, hidden_references, numpy_arrays, script_modules
from fastpurge.torch_facts.recorders import Unrecorded, never_compiled
from fastpurge.torch_facts.tensors import facts_of

_OUTSIDE = (
    "an external reference keeps it alive: from C or C++ code, or from a running function that has no "
    "variable for it"
)
_CYCLE = "it is garbage: only a reference cycle keeps it alive, and gc.collect() would free it"
_NOTHING = "held only by this call's arguments"


@dataclass(frozen=True, slots=True)
class Why(Printable):
    """Why one object is alive.

    Attributes:
        what: the object in words, as in "float32 Tensor of shape (3, 4) on cpu, 48B".
        path: the path to it as code, such as ``my_nodes.CACHE['sdxl'][0].model.weight``; ``None`` if it is
            not reachable from any root.
        where: the function or the exception in which the path begins; empty if it begins in a module.
        reason: why there is no path.
        types: the types of the objects on the path, without the root.

    """

    what: str
    path: str | None
    where: str = ""
    reason: str | None = None
    types: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for `json.dumps`."""
        return asdict(self)

    def _renderable(self) -> RenderableType:
        lines = [Text(self.what, style="bold")]
        if self.path is not None:
            lines.append(Text(f"held by {self.path}" + (f", in {self.where}" if self.where else "")))
        if self.reason is not None:
            lines.append(Text(self.reason))
        if self.types:
            lines.append(Text(f"through {' > '.join(self.types)}"))
        return Group(*lines)


@overload
def why(obj: object, /) -> Why: ...
@overload
def why(obj: object, another: object, /, *more: object) -> tuple[Why, ...]: ...
@never_compiled
def why(*objects: object) -> Why | tuple[Why, ...]:
    """Explain why objects are alive: for each the shortest path from a root to it.

    A root is a global of a module, a local of a running function in any thread, or an exception being
    handled. The caller's own variable for an object is named only if there is no other path. Objects are
    found by the interpreter's own traversal, which runs none of their code. References of torch in C++
    (gradients, bases of views, graphs) are only read if an object has no other path.

    Args:
        objects: one or more objects of any type.

    Returns:
        A `Why` for one object; a tuple of them for several, found in the same walk over the heap.

    Raises:
        TypeError: called without an object.

    Examples:
        >>> cache = {"old": [bytearray(10)]}
        >>> print(why(cache["old"][0]))
        bytearray
        held by __main__.cache['old'][0]
        through dict > list > bytearray

    """
    if not objects:
        raise TypeError("why() needs at least one object to explain")
    with Unrecorded():
        found = explain(objects, roots.caller())
    return found[0] if len(found) == 1 else (*found,)


def explain(
    objects: tuple[object, ...], caller: FrameType | None, hidden: "HiddenReferences | None" = None
) -> list[Why]:
    """Explain for each object why it is alive; variables of the caller count last.

    Args:
        objects: the objects to explain.
        caller: the frame of the caller; with ``None`` no frame of the current thread is a root.
        hidden: the result of `find_hidden_references`, if there is one already.

    """
    starts = roots.find(caller)
    own = _CallerVariables(objects, caller, starts)
    paths, labels = _find_paths(objects, starts, own.namespaces, hidden)
    by_id = {id(root.obj): root for root in reversed(starts)}
    return [
        own.explain(obj) if how != "root" and obj in own else _explain_path(obj, how, path, by_id, labels)
        for obj, (how, path) in zip(objects, paths, strict=True)
    ]


def owner_paths(objects: tuple[object, ...]) -> list[str | None]:
    """For each object the path to it as code, or ``None``. Roots inside this package do not count."""
    starts = roots.find(roots.caller())
    by_id = {id(root.obj): root for root in reversed(starts)}
    paths = _core.referrer_paths(objects, [root.obj for root in starts])
    return [_path_text(by_id[id(path[0])], path) if how == "root" else None for how, path in paths]


def _path_text(root: Root, path: list[Any]) -> str:
    steps = path_steps(root.name, path, {}, is_namespace=is_a(root.obj, dict))
    expression = "".join(step for step, _ in steps)
    return f"{expression}, in {root.where}" if root.where else expression


class _CallerVariables:
    """The variables of the caller whose values are objects to explain: these count last."""

    def __init__(self, objects: tuple[object, ...], caller: FrameType | None, starts: list[Root]) -> None:
        self._names: dict[int, str] = {}
        self.namespaces: list[Any] = []
        """The namespace of the caller, if its references to the objects do not count."""
        if caller is None:
            return
        running = (root for root in starts if root.frame is caller)
        modules = (root for root in starts if root.obj is roots.namespace_of(caller))
        self._root = next(chain(running, modules), _NO_ROOT)
        if not is_a(self._root.obj, dict):
            return
        wanted = _core.IdSet(objects)
        for name, value in [*dict.items(self._root.obj)]:
            if value in wanted:
                self._names.setdefault(id(value), name)
                if self._root.is_copy:
                    del self._root.obj[name]
        if not self._root.is_copy:
            self.namespaces.append(self._root.obj)

    def __contains__(self, obj: object) -> bool:
        return id(obj) in self._names

    def explain(self, obj: object) -> Why:
        name = self._names[id(obj)]
        path = f"{self._root.name}.{name}" if self._root.name else name
        return Why(
            describe(obj),
            path,
            self._root.where,
            "nothing else that is reachable holds it",
            (type_name(obj),),
        )


def _explain_path(obj: object, how: str, path: list[Any], by_id: dict[int, Root], labels: Labels) -> Why:
    what = describe(obj)
    if how == "unreferenced":
        return Why(what, None, reason=_NOTHING)
    root = by_id[id(path[0])] if how == "root" else None
    start = root.name if root is not None else f"<{type_name(path[0])}>"
    steps = path_steps(start, path, labels, is_namespace=root is not None and is_a(root.obj, dict))
    expression, types = "".join(step for step, _ in steps), tuple(type_name(one) for _, one in steps)
    if root is not None:
        return Why(what, expression, root.where, None, types)
    reason = (cpp_owners.reason_for(path[0]) or _OUTSIDE) if how == "external" else _CYCLE
    return Why(what, None, reason=f"{reason}: {expression}", types=types)


_Paths = list[tuple[Literal["root", "external", "cycle", "unreferenced"], list[Any]]]


def _find_paths(
    objects: tuple[object, ...], starts: list[Root], besides: list[Any], hidden: "HiddenReferences | None"
) -> tuple[_Paths, Labels]:
    """The path to each object. Reads references in C++ only if some object has no other path."""
    objs = [root.obj for root in starts]
    if hidden is None:
        paths = _core.referrer_paths(objects, objs, ignored_owners=besides)
        if all(how == "root" for how, _ in paths):
            return paths, {}
        del paths
        hidden = find_hidden_references(starts)
    return _core.referrer_paths(
        objects, objs, ignored_owners=besides, hidden=hidden.pairs, search_unreachable=True
    ), hidden.labels


@dataclass(frozen=True, slots=True)
class HiddenReferences:
    """References that `tp_traverse` does not visit.

    Attributes:
        pairs: pairs of an owner and its referent.
        labels: the path expression of each pair.

    """

    pairs: list[tuple[Any, Any]]
    labels: Labels


def find_hidden_references(starts: list[Root]) -> HiddenReferences:
    """Find the references of tensors and scripts in C++, and of arrays that are reachable from roots."""
    tensors: list[torch.Tensor] = _core.scan((torch.Tensor,))
    compiled = _core.scan(script_modules.TYPES)
    owners = (*tensors, *compiled, *_arrays([root.obj for root in starts]))
    hidden = HiddenReferences([], {})
    with DisableTorchFunction():
        of_graphs = autograd.labelled_references(tensors, not_used_by_other_threads(tensors, starts))
        for references in (of_graphs, hidden_references.labelled_references(owners)):
            with suppress(AttributeError, LookupError, TypeError, RuntimeError):  # then less is explained
                for owner, referent, label in references:
                    hidden.pairs.append((owner, referent))
                    hidden.labels[id(owner), id(referent)] = label
    return hidden


def _arrays(roots: list[Any]) -> list[Any]:
    """The arrays reachable from roots, also through elements of other arrays."""
    types = numpy_arrays.array_types()
    met: list[Any] = []
    pairs: list[tuple[Any, Any]] = []
    while types:
        known = _core.IdSet(met)
        fresh = [
            one
            for one, *_ in _core.nearest_owners(
                types, roots, through=(), search_unreachable=False, hidden=pairs
            )
            if one not in known
        ]
        met += fresh
        more = [
            (owner, referent)
            for owner, referent, _ in hidden_references.labelled_references(fresh)
            if gc.is_tracked(referent)
        ]
        if not more:
            break
        pairs += more
    return met


def not_used_by_other_threads(tensors: list[torch.Tensor], starts: list[Root]) -> list[torch.Tensor]:
    """The tensors that are not reachable from variables of other threads.

    To read `grad_fn`, torch copies a pointer that another thread may be writing without the GIL.
    """
    elsewhere = tuple(root.obj for root in starts if root.is_elsewhere)
    if not elsewhere:
        return tensors
    busy = _core.closure(elsewhere, libraries=libraries())
    return [one for one in tensors if one not in busy]


_NO_ROOT = Root(None, "", "", "")


def describe(obj: object) -> str:
    """An object in words, or its type if its facts cannot be read."""
    if is_a(obj, torch.Tensor):
        try:
            facts = facts_of(cast(torch.Tensor, obj))
        except Exception:  # noqa: BLE001 - a subclass whose accessors raise
            return type_name(obj)
        item = tensor_item(facts)
        return f"{item.describe()}, {human(item.nbytes)}"
    if is_a(obj, type):
        return f"class {safe_repr(obj)}"
    return f"{type_name(obj)} {safe_repr(obj)}" if is_exactly(obj, (str, int, float)) else type_name(obj)
