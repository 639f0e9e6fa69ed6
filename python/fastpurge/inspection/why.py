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
from fastpurge.python_facts.object_types import is_a, safe_repr, type_name
from fastpurge.reporting.items import tensor_item
from fastpurge.reporting.text import Printable, human
from fastpurge.torch_facts import autograd, cpp_owners, hidden_references, numpy_arrays, script_modules
from fastpurge.torch_facts.recorders import Unrecorded, never_compiled
from fastpurge.torch_facts.tensors import facts_of

_OUTSIDE = (
    "held from where the heap does not show it: by C or C++ code, or by a running function that has "
    "given it no name"
)
_CYCLE = "only a reference cycle holds it: it is garbage, and gc.collect() would free it"
_NOTHING = "nothing holds it but what it was handed over in"


@dataclass(frozen=True, slots=True)
class Why(Printable):
    """Why one object is alive.

    Attributes:
        what: the object in words, as in "float32 Tensor of shape (3, 4) on cpu, 48B".
        path: code that leads to it, as in ``my_nodes.CACHE['sdxl'][0].model.weight``; ``None`` if nothing
            that can be reached holds it.
        where: whose locals the path begins in, or in which exception; empty if it begins in a module.
        reason: why there is no path.
        types: the types of the objects on the path, from the one that the root holds on.

    """

    what: str
    path: str | None
    where: str = ""
    reason: str | None = None
    types: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values that `json.dumps` takes."""
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
    """Say why objects are alive: for each the shortest path from a root to it.

    A root is a global of a module, a local of a running function in any thread, or an exception being
    handled. The variable that the caller itself has an object in counts last: it is named if nothing else
    holds that. Objects are found by the interpreter's own traversal, which runs no code of theirs; what torch
    holds in C++ (a gradient, the base of a view, a graph) is looked at if nothing else leads to an object.

    Args:
        objects: one or more, of any type.

    Returns:
        A `Why` for one object; for several a tuple of them, found in the same walk.

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
    """For each object why it is alive, the variables of the calling function or module last.

    ``caller`` is its frame; with ``None`` no frame of the current thread counts. ``hidden`` is what
    `find_hidden_references` has found, if that was asked for already.
    """
    starts = roots.find(caller)
    own = _CallerVariables(objects, caller, starts)
    ways, labels = _find_paths(objects, starts, own.namespaces, hidden)
    by_id = {id(root.obj): root for root in reversed(starts)}
    return [
        own.explain(obj) if how != "root" and obj in own else _explain_path(obj, how, way, by_id, labels)
        for obj, (how, way) in zip(objects, ways, strict=True)
    ]


def owner_paths(objects: tuple[object, ...]) -> list[str | None]:
    """For each object the path to it from outside this package, as far as the interpreter shows it."""
    starts = roots.find(roots.caller())
    by_id = {id(root.obj): root for root in reversed(starts)}
    ways = _core.paths(objects, [root.obj for root in starts])
    return [_path_text(by_id[id(way[0])], way) if how == "root" else None for how, way in ways]


def _path_text(root: Root, way: list[Any]) -> str:
    path = "".join(word for word, _ in path_steps(root.name, way, {}, is_namespace=is_a(root.obj, dict)))
    return f"{path}, in {root.where}" if root.where else path


class _CallerVariables:
    """The variables of the caller that hold nothing but an object that it asks for."""

    def __init__(self, objects: tuple[object, ...], caller: FrameType | None, starts: list[Root]) -> None:
        self._names: dict[int, str] = {}
        self.namespaces: list[Any] = []
        """Of the caller, where its variables are to be left out."""
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
            "nothing else that can be reached holds it",
            (type_name(obj),),
        )


def _explain_path(obj: object, how: str, way: list[Any], by_id: dict[int, Root], labels: Labels) -> Why:
    what = describe(obj)
    if how == "nothing":
        return Why(what, None, reason=_NOTHING)
    root = by_id[id(way[0])] if how == "root" else None
    start = root.name if root is not None else f"<{type_name(way[0])}>"
    steps = path_steps(start, way, labels, is_namespace=root is not None and is_a(root.obj, dict))
    path, types = "".join(word for word, _ in steps), tuple(type_name(one) for _, one in steps)
    if root is not None:
        return Why(what, path, root.where, None, types)
    reason = (cpp_owners.reason_for(way[0]) or _OUTSIDE) if how == "outside" else _CYCLE
    return Why(what, None, reason=f"{reason}: {path}", types=types)


_Paths = list[tuple[Literal["root", "outside", "cycle", "nothing"], list[Any]]]


def _find_paths(
    objects: tuple[object, ...], starts: list[Root], besides: list[Any], hidden: "HiddenReferences | None"
) -> tuple[_Paths, Labels]:
    """The way to each, looking for what C++ holds only if that is needed."""
    objs = [root.obj for root in starts]
    if hidden is None:
        ways = _core.paths(objects, objs, besides=besides)
        if all(how == "root" for how, _ in ways):
            return ways, {}
        del ways
        hidden = find_hidden_references(starts)
    return _core.paths(objects, objs, besides=besides, hidden=hidden.pairs, strays=True), hidden.labels


@dataclass(frozen=True, slots=True)
class HiddenReferences:
    """What objects hold where the interpreter does not show it.

    Attributes:
        pairs: a holder and what it holds.
        labels: what code calls that.

    """

    pairs: list[tuple[Any, Any]]
    labels: Labels


def find_hidden_references(starts: list[Root]) -> HiddenReferences:
    """Look for what C and C++ hold of tensors and script modules, and of the arrays that roots lead to."""
    tensors: list[torch.Tensor] = _core.scan((torch.Tensor,))
    compiled = _core.scan(script_modules.TYPES)
    owners = (*tensors, *compiled, *_arrays([root.obj for root in starts]))
    hidden = HiddenReferences([], {})
    with DisableTorchFunction():
        of_graphs = autograd.labelled_references(tensors, not_used_by_other_threads(tensors, starts))
        for holdings in (of_graphs, hidden_references.labelled_references(owners)):
            with suppress(AttributeError, LookupError, TypeError, RuntimeError):  # then less is explained
                for holder, held, label in holdings:
                    hidden.pairs.append((holder, held))
                    hidden.labels[id(holder), id(held)] = label
    return hidden


def _arrays(roots: list[Any]) -> list[Any]:
    """The arrays that roots lead to, also through the elements of others."""
    types = numpy_arrays.array_types()
    met: list[Any] = []
    pairs: list[tuple[Any, Any]] = []
    while types:
        known = _core.IdSet(met)
        fresh = [
            one
            for one, *_ in _core.holdings(types, roots, through=(), strays=False, hidden=pairs)
            if one not in known
        ]
        met += fresh
        more = [
            (holder, held)
            for holder, held, _ in hidden_references.labelled_references(fresh)
            if gc.is_tracked(held)
        ]
        if not more:
            break
        pairs += more
    return met


def not_used_by_other_threads(tensors: list[torch.Tensor], starts: list[Root]) -> list[torch.Tensor]:
    """Those that no other thread computes on, as far as its variables tell.

    To read a `grad_fn` torch copies a pointer that another thread may be writing, without the GIL.
    """
    elsewhere = tuple(root.obj for root in starts if root.is_elsewhere)
    if not elsewhere:
        return tensors
    busy = _core.closure(elsewhere, libraries=libraries())
    return [one for one in tensors if one not in busy]


_NO_ROOT = Root(None, "", "", "")


def describe(obj: object) -> str:
    """An object in words; one that cannot say what it is by its type."""
    if is_a(obj, torch.Tensor):
        try:
            facts = facts_of(cast(torch.Tensor, obj))
        except Exception:  # noqa: BLE001 - a subclass that cannot say what it is
            return type_name(obj)
        item = tensor_item(facts)
        return f"{item.describe()}, {human(item.nbytes)}"
    if is_a(obj, type):
        return f"class {safe_repr(obj)}"
    return f"{type_name(obj)} {safe_repr(obj)}" if type(obj) in (str, int, float) else type_name(obj)
