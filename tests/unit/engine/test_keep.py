"""Everything reachable from `keep` stays bit-for-bit unchanged, also where torch hides references."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import Guard, is_purged

pytestmark = pytest.mark.usefixtures("small_heap")


class Slotted:
    __slots__ = ("referent",)

    def __init__(self, referent: object) -> None:
        self.referent = referent

    def method(self) -> None: ...


def _suspended(referent: object) -> Any:
    def generator() -> Any:
        local = referent
        yield
        yield local

    running = generator()
    next(running)
    return running


def _object_array(*referent: object) -> Any:
    # Element by element: `np.array` would call `__array__` of a tensor, and share its memory.
    array = np.empty(len(referent), dtype=object)
    for at, one in enumerate(referent):
        array[at] = one
    return array


def _record(referent: object) -> Any:
    array = np.zeros(2, dtype=[("number", "i4"), ("referent", "O")])
    array["referent"][1] = referent
    return array[1]


def test_the_array_of_a_record_is_kept_with_it(program: Any) -> None:
    program.record = _record(None)
    program.other = program.record.base["referent"][0] = torch.ones(4)
    fastpurge.sweep(keep=program.record, guards=Guard.NONE)
    assert program.record.base["referent"][0].sum() == 4


class Node:
    """A node of a tree whose children are in arrays."""

    def __init__(self, depth: int) -> None:
        self.children = _object_array(Node(depth - 1), None) if depth else None
        self.value = None if depth else torch.ones(4)

    def leaf(self) -> Any:
        return self.value if self.children is None else self.children[0].leaf()


@pytest.mark.parametrize("threads", [0, 2])
def test_a_tree_in_arrays_is_kept_down_to_its_leaves(threads: int, program: Any) -> None:
    def compute() -> None:
        weight = torch.ones(3, requires_grad=True)
        while not stop.is_set():
            (weight * 2).sum().backward()

    stop = threading.Event()
    others = [threading.Thread(target=compute) for _ in range(threads)]
    for one in others:
        one.start()
    program.tree = Node(30)
    try:
        assert [item.shape for item in fastpurge.plan(keep=program.tree).items if item.shape == (4,)] == []
        fastpurge.sweep(keep=program.tree)
    finally:
        stop.set()
        for one in others:
            one.join()
    assert program.tree.leaf().sum() == 4


NEW_AT_EACH_READING = """
import numpy as np, torch, fastpurge
leak = [torch.ones(7)]
fields = np.dtype([("image", object), ("label", int)])
array = np.array([(torch.ones(3), 1)], dtype=fields)
record, plain = array[0].copy(), np.void(b"abc")
weight = torch.ones(3, requires_grad=True)
loss = (weight.exp().tanh().softmax(0) ** 2).sum()
fastpurge.sweep(keep=[array, record, plain, loss])
assert fastpurge.is_purged(leak[0])
assert record["image"].sum() == 3
loss.backward()
"""


def test_a_search_ends_although_each_reading_creates_new_objects() -> None:
    # In a process with one thread: there a search continues as long as it finds new objects.
    subprocess.run([sys.executable, "-c", NEW_AT_EACH_READING], check=True, timeout=300)


def _record_of_its_own(referent: object) -> Any:
    return _record(referent).copy()


def _cyclic_array(referent: object) -> Any:
    array = _object_array(None, referent)
    array[0] = array
    return array


def _nested_arrays(referent: object, depth: int) -> Any:
    return referent if depth == 0 else _object_array(None, _nested_arrays(referent, depth - 1))


def _structured(referent: object) -> Any:
    array = np.zeros(3, dtype=[("number", "i4"), ("pair", [("none", "O"), ("referent", "O")])])
    array["pair"]["referent"][2] = referent
    return array


def _boxed(referent: object, depth: int) -> Any:
    """Alternating arrays and dicts; the collector does not track a dict that contains only an array."""
    return referent if depth == 0 else _object_array({"next": _boxed(referent, depth - 1)})


OWNERS = {
    "nothing": lambda x: x,
    "list": lambda x: [x],
    "nested": lambda x: [({"k": [x]},)],
    "set": lambda x: {x},
    "deque": lambda x: deque([x]),
    "slots": Slotted,
    "bound method": lambda x: Slotted(x).method,
    "closure": lambda x: lambda: x,
    "partial": lambda x: functools.partial(torch.add, x),
    "generator": _suspended,
    "mapping proxy": lambda x: MappingProxyType({"k": x}),
    "object array": lambda x: _object_array(None, x, 3),
    "object array in a list": lambda x: [_object_array(x, None).reshape(2, 1)],
    "object array that holds itself": _cyclic_array,
    "object arrays and dicts by turns": lambda x: _boxed([x], depth=20),
    "object arrays in each other": lambda x: _nested_arrays(x, depth=20),
    "record": _record,
    "structured array": _structured,
    "record of its own": lambda x: [_record_of_its_own(x)],
    "own class": lambda x: type("Own", (), {"referent": x})(),
}


@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)
def test_everything_reachable_from_keep_is_unchanged(owner: Any, program: Any) -> None:
    program.kept = torch.arange(12.0)
    program.other = torch.arange(12.0)
    fastpurge.sweep(keep=[owner(program.kept)])
    assert program.kept.tolist() == list(range(12))
    assert is_purged(program.other)


@pytest.mark.parametrize("name", [name for name in OWNERS if "object array" in name])
def test_contents_of_arrays_are_kept_without_the_guard_of_running_code(name: str, program: Any) -> None:
    # An array does not report its items to the collector: they have external references, which spare them.
    program.kept = torch.arange(12.0)
    fastpurge.sweep(keep=[OWNERS[name](program.kept)], guards=Guard.ALL & ~Guard.RUNNING)
    assert program.kept.tolist() == list(range(12))


def test_keep_may_be_the_object_itself(program: Any) -> None:
    program.kept = torch.ones(3)
    fastpurge.sweep(keep=program.kept)
    assert program.kept.tolist() == [1, 1, 1]


def test_keep_may_be_a_module_or_its_globals(program: Any) -> None:
    program.kept = torch.ones(3)
    fastpurge.sweep(keep=[program])
    fastpurge.sweep(keep=program)
    fastpurge.sweep(keep=vars(program))
    fastpurge.sweep(keep=(vars(program),))
    assert program.kept.tolist() == [1, 1, 1]
    fastpurge.sweep(keep=())
    assert is_purged(program.kept)


def test_gradients_are_kept_with_their_tensors(program: Any) -> None:
    program.model = torch.nn.Linear(3, 2)
    program.model(torch.ones(1, 3)).sum().backward()
    grad = [p.grad.clone() for p in program.model.parameters()]
    program.grad = [p.grad for p in program.model.parameters()]
    fastpurge.sweep(keep=[program.model, grad], wipe=True)
    assert not any(is_purged(g) for g in program.grad)
    assert all(torch.equal(p.grad, g) for p, g in zip(program.model.parameters(), grad, strict=True))


def test_a_kept_submodule_survives_the_release_of_its_model(program: Any) -> None:
    program.model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    kept, program.other = program.model[0], program.model[1]
    x = torch.ones(1, 3)
    with torch.no_grad():
        expected = kept(x)
    fastpurge.sweep(keep=[kept, x, expected])
    assert is_purged(program.model)
    assert is_purged(program.other)
    with torch.no_grad():
        assert torch.equal(kept(x), expected)


class Owner:
    """An instance of a class of the program."""


def test_the_attributes_of_an_object_are_kept_with_its_dict(program: Any) -> None:
    # From 3.13 on the values are in the object, and its dict does not report them to the collector.
    program.holder = Owner()
    program.holder.tensor = torch.ones(3)
    program.holder.nested = [Owner()]
    program.holder.nested[0].tensor = torch.ones(3)
    kept = Owner()
    kept.attributes = vars(program.holder)  # type: ignore[attr-defined]
    fastpurge.sweep(keep=[kept])
    assert program.holder.tensor.sum() == 3
    assert program.holder.nested[0].tensor.sum() == 3


def _view_that_autograd_cannot_follow() -> torch.Tensor:
    base = torch.ones(4, requires_grad=True).clone()
    with torch.no_grad():
        view = base[:2]
    base.mul_(2)
    return view


def _one_of_several_views() -> torch.Tensor:
    base = torch.ones(4, requires_grad=True).clone()
    view = base.unbind()[0]
    base.mul_(2)
    return view


@pytest.mark.parametrize("make", [_view_that_autograd_cannot_follow, _one_of_several_views])
def test_a_kept_view_without_a_readable_graph_ends_no_sweep(
    program: Any, make: Callable[[], torch.Tensor]
) -> None:
    kept = make()
    program.tensor = torch.ones(3)
    with pytest.raises(RuntimeError, match="view"):
        _ = kept.grad_fn
    fastpurge.sweep(keep=[kept])
    assert is_purged(program.tensor)
    assert kept.detach().sum() == 2 * kept.numel()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_parameters_of_a_script_module_are_kept(program: Any, how: str) -> None:
    program.model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).eval()
    program.constant = torch.ones(3) * 3
    program.weights = list(program.model.parameters()) + list(program.model.buffers())
    x = torch.rand(2, 3)
    jit: Any = torch.jit
    kept = jit.script(program.model) if how == "script" else jit.trace(program.model, (x,))
    multiply = jit.trace(lambda x: x * program.constant, (x,))
    expected = kept(x).detach(), multiply(x)
    fastpurge.sweep(keep=[kept, multiply, x, expected], wipe=True)
    # A scripted module refers to bound methods of the module that it was made from.
    assert is_purged(program.model) == (how == "trace")
    assert not any(is_purged(weight) for weight in program.weights)
    assert torch.equal(kept(x), expected[0])
    assert torch.equal(multiply(x), expected[1])


class Half(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


class Centered(torch.nn.Linear):
    mean: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - self.mean)


def test_class_attributes_are_kept_behind_a_parametrized_class(program: Any) -> None:
    Centered.mean = torch.ones(6)
    program.model = Centered(6, 2)
    torch.nn.utils.parametrize.register_parametrization(program.model, "weight", Half())
    fastpurge.sweep(keep=program.model)
    assert program.model(torch.ones(1, 6)).shape == (1, 2)
