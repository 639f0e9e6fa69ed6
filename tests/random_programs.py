"""Random programs, and a model that says which of their objects must survive a sweep.

A program is built from steps: each names a kind of object and the objects that it is made from. Running
code refers to some of them (see `tests.owners`). `check` builds a program and sweeps it.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import fastpurge
import torch
from fastpurge import is_purged

from tests.owners import OWNERS
from tests.owners.owner import Owner, Values, values_of

SHARERS = ("view", "detach", "as_strided", "dtype view", "set_", "numpy", "storage")
CONTAINERS = (
    "list",
    "tuple",
    "dict",
    "slots",
    "instance",
    "closure",
    "partial",
    "method",
    "generator",
    "own class",
)
WEAK_CONTAINERS = ("weak reference", "weak dict")
Steps = Sequence[tuple[str, list[int]]]
KINDS = ("tensor", "leaf", "product", "module", "cycle", *SHARERS, *CONTAINERS, *WEAK_CONTAINERS)


class Slotted:
    __slots__ = ("contents",)

    def __init__(self, contents: object) -> None:
        self.contents = contents

    def method(self) -> None: ...


class Instance:
    def __init__(self, contents: object) -> None:
        self.contents = contents


@dataclass
class Node:
    """One object of the program in the model, which never reads the object itself."""

    kind: str
    references: set[int] = field(default_factory=set)
    storage: int | None = None
    lent: bool = False  # a NumPy array is an alias of the storage
    floats: bool = True
    requires_grad: bool = False
    is_leaf: bool = True
    graph: set[int] = field(default_factory=set)  # what backward reads

    @property
    def is_tensor(self) -> bool:
        return self.storage is not None and self.kind not in ("numpy", "storage")

    def is_accepted_by(self, owner: Owner) -> bool:
        """Whether an owner can refer to this object."""
        return {
            "anything": self.is_tensor or self.kind == "module",
            "tensors": self.is_tensor,
            "floats": self.is_tensor and self.floats,
            "leaves": self.is_tensor and self.is_leaf,
        }[owner.accepts]


class Model:
    """Computes from the steps which objects must survive."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def survivors(self, keep: list[int]) -> set[int]:
        lent = {n.storage for n in self.nodes if n.lent}
        alive: set[int] = set()
        pending = [k % len(self.nodes) for k in keep]
        pending += [i for i, n in enumerate(self.nodes) if n.is_tensor and n.storage in lent]
        while pending:
            if (at := pending.pop()) in alive:
                continue
            alive.add(at)
            node = self.nodes[at]
            pending += node.references | node.graph
            if node.storage is not None:
                pending += [i for i, n in enumerate(self.nodes) if n.storage == node.storage]
        return alive


def build(steps: Steps, objects: list[Any], model: Model) -> None:
    """Build a program: append its objects to a list that is no local variable here, and build the model."""
    for kind, indices in [("tensor", []), *steps]:
        at = [i % len(objects) for i in indices] if objects else []
        node = Node(kind)
        tensors = [i for i in at if model.nodes[i].is_tensor]
        if kind in SHARERS or kind in ("product", "leaf", "tensor"):
            _add_tensor(kind, tensors, objects, model, node)
        elif kind == "module":
            _add_module(tensors, objects, node)
        else:
            _add_container(kind, at, objects, model, node)
        model.nodes.append(node)


def _add_tensor(kind: str, tensors: list[int], objects: list[Any], model: Model, node: Node) -> None:
    node.storage = len(objects)
    if kind == "product" and (floats := [i for i in tensors if model.nodes[i].floats]):
        _add_product(floats[0], floats[-1], objects, model, node)
    elif kind in SHARERS and tensors:
        _add_sharer(kind, tensors[0], objects, model, node)
    else:
        node.kind = "leaf" if kind == "leaf" else "tensor"
        node.requires_grad = kind == "leaf"
        objects.append(torch.arange(8.0, requires_grad=node.requires_grad))


def _add_product(a: int, b: int, objects: list[Any], model: Model, node: Node) -> None:
    # Autograd saves each factor of a product: it is the derivative to the other one.
    if a == b:
        node.kind = "tensor"
        objects.append(objects[a].detach().clone())
        return
    objects.append(objects[a].sum() * objects[b].sum())
    for one in (a, b):
        other = model.nodes[one]
        if other.requires_grad:
            node.requires_grad, node.is_leaf = True, False
            node.graph |= {one} if other.is_leaf else other.graph


def _add_sharer(kind: str, base: int, objects: list[Any], model: Model, node: Node) -> None:
    tensor = objects[base].detach()
    node.storage, node.floats = model.nodes[base].storage, model.nodes[base].floats
    if kind == "view":
        objects.append(tensor[:1] if tensor.dim() else tensor.view(1))
    elif kind == "detach":
        objects.append(tensor.detach())
    elif kind == "as_strided":
        objects.append(tensor.as_strided((1,), (1,)))
    elif kind == "dtype view":
        objects.append(tensor.reshape(-1).view(torch.uint8))
        node.floats = False
    elif kind == "set_":
        objects.append(torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()))
    elif kind == "storage":
        objects.append(tensor.untyped_storage())
    else:
        objects.append(tensor.numpy())
        node.lent = True


def _add_module(tensors: list[int], objects: list[Any], node: Node) -> None:
    objects.append(torch.nn.Linear(2, 2))
    for number, i in enumerate(tensors):
        # Not by `register_buffer`, which refuses non-leaves: attributes of a module may be anything.
        objects[-1].__dict__[f"contents{number}"] = objects[i]
        node.references.add(i)


def _add_container(kind: str, at: list[int], objects: list[Any], model: Model, node: Node) -> None:
    node.references = set() if kind in WEAK_CONTAINERS else set(at)
    if kind == "cycle" and model.nodes and model.nodes[-1].kind in ("list", "cycle"):
        model.nodes[-1].references.add(len(objects))
        node.references.add(len(objects) - 1)
        objects.append([objects[i] for i in at] + [objects[-1]])
        objects[-2].append(objects[-1])
    else:
        objects.append(_container(kind, [objects[i] for i in at]))


def _container(kind: str, contents: list[Any]) -> Any:
    makers: dict[str, Any] = {
        "tuple": tuple,
        "dict": lambda contents: dict(enumerate(contents)),
        "slots": Slotted,
        "instance": Instance,
        "closure": lambda contents: lambda: contents,
        "partial": lambda contents: functools.partial(print, *contents),
        "method": lambda contents: Slotted(contents).method,
        "generator": _suspended,
        "weak reference": lambda contents: [weakref.ref(one) for one in contents if _can_be_weak(one)],
        "weak dict": lambda contents: weakref.WeakValueDictionary(enumerate(filter(_can_be_weak, contents))),
        "own class": lambda contents: type("Own", (), {"contents": contents}),
    }
    return makers.get(kind, list)(contents)


def _can_be_weak(obj: Any) -> bool:
    return isinstance(obj, torch.Tensor | torch.nn.Module | Instance)


def _suspended(contents: list[Any]) -> Any:
    def generator() -> Any:
        local = list(contents)
        yield
        yield local

    started = generator()
    next(started)
    return started


def check(steps: Steps, keep: list[int], *, wipe: bool, owners: Steps = ()) -> None:
    """Build a program, sweep it while owners refer to some objects, and compare with the model."""
    program: Any = types.ModuleType("random_program")
    program.objects = []
    sys.modules["random_program"] = program
    model = Model()
    build(steps, program.objects, model)
    expected = _values(program.objects, model)
    owned = [(OWNERS[name], _accepted(OWNERS[name], indices, model)) for name, indices in owners]
    survivors = model.survivors([*keep, *(i for owner, at in owned if owner.owns == "them" for i in at)])

    def sweep() -> None:
        report = fastpurge.sweep(keep=[program.objects[i % len(program.objects)] for i in keep], wipe=wipe)
        assert report.skipped == ()

    _run_owners(owned, sweep, expected)

    releasable = [i for i, n in enumerate(model.nodes) if n.is_tensor or n.kind == "module"]
    purged = {i for i in releasable if is_purged(program.objects[i])}
    assert purged == {i for i in releasable if i not in survivors}
    for i in releasable:
        if i in purged:
            _check_raises(program.objects[i], model.nodes[i])
        else:
            assert values_of(program.objects[i]) == expected[i]
            _check_backward(program.objects[i], model.nodes[i])
    program.objects.clear()


def _accepted(owner: Owner, indices: list[int], model: Model) -> list[int]:
    at = [i % len(model.nodes) for i in indices]
    return [i for i in at if model.nodes[i].is_accepted_by(owner)]


def _run_owners(
    owned: list[tuple[Owner, list[int]]], sweep: Callable[[], None], expected: list[Values | None]
) -> None:
    """Nest the owners, each in the body of the one before, and sweep in the innermost body."""
    if not owned:
        sweep()
        return
    (owner, indices), *others = owned
    results = owner.run(
        functools.partial(_objects_at, indices), functools.partial(_run_owners, others, sweep, expected)
    )
    found = [one if isinstance(one, list) else values_of(one) for one in results]
    assert found == ([] if owner.owns == "nothing" else [expected[i] for i in indices])


def _objects_at(indices: list[int]) -> list[Any]:
    # Read from the module: a local variable would refer to all of them.
    objects: list[Any] = cast(Any, sys.modules["random_program"]).objects
    return [objects[i] for i in indices]


def _values(objects: list[Any], model: Model) -> list[Values | None]:
    return [
        values_of(x) if node.is_tensor or node.kind == "module" else None
        for x, node in zip(objects, model.nodes, strict=True)
    ]


def _check_backward(tensor: torch.Tensor, node: Node) -> None:
    if node.requires_grad and not node.is_leaf:
        tensor.sum().backward(retain_graph=True)


def _check_raises(tombstone: Any, node: Node) -> None:
    uses: tuple[Callable[[Any], Any], ...] = (lambda x: x + 1, lambda x: x.state_dict(), bool)
    for use in uses:
        try:
            use(tombstone)
        except fastpurge.PurgedError:
            continue
        raise AssertionError(f"the tombstone of a {node.kind} raised no error")
