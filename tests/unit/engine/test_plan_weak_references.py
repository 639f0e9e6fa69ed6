"""A plan refers to the objects of `keep` weakly, and protects what is reachable from them later."""

from __future__ import annotations

import functools
import gc
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import is_purged

pytestmark = pytest.mark.usefixtures("small_heap")


class Model(torch.nn.Module):
    def method(self) -> None: ...


class Slotted:
    __slots__ = ("referent",)

    def __init__(self, referent: object) -> None:
        self.referent = referent


class Own:
    def __init__(self, referent: object) -> None:
        self.referent = referent


def _array(referent: object) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = referent
    return array


KEEPS: dict[str, Callable[[Any], object]] = {
    "itself": lambda model: model,
    "a list": lambda model: [model],
    "a tuple": lambda model: (model,),
    "a set": lambda model: {model},
    "a dict": lambda model: {"model": model},
    "a dict by keys": lambda model: {model: 1},
    "a view": lambda model: {"model": model}.values(),
    "a deque": lambda model: deque([model]),
    "a defaultdict": lambda model: defaultdict(list, model=model),
    "nested": lambda model: [({"k": [deque([model])]},)],
    "a mapping proxy": lambda model: MappingProxyType({"k": model}),
    "a namespace": lambda model: SimpleNamespace(model=model),
    "slots": Slotted,
    "a method": lambda model: model.method,
    "a closure": lambda model: lambda: model,
    "a default": lambda model: lambda model=model: model,
    "a partial": lambda model: functools.partial(print, model),
    "an object array": _array,
    "an iterator in a list": lambda model: [iter([model])],
}


@pytest.mark.parametrize("make", KEEPS.values(), ids=KEEPS)
def test_a_plan_keeps_nothing_alive_that_was_kept(make: Any, program: Any) -> None:
    program.model, program.planned = Model(), torch.ones(3)
    ref = weakref.ref(program.model)
    plan = fastpurge.plan(keep=make(program.model))
    del program.model
    assert ref() is None
    plan.apply()
    assert is_purged(program.planned)


def test_a_stored_plan_keeps_no_tensor_and_no_object_alive(program: Any) -> None:
    program.tensor, program.own = torch.ones(3), Own([torch.ones(4)])
    refs = [weakref.ref(program.tensor), weakref.ref(program.own), weakref.ref(program.own.referent[0])]
    plan = fastpurge.plan(keep=[program.tensor, {"own": program.own}])
    del program.tensor, program.own
    gc.collect()
    assert [ref() for ref in refs] == [None, None, None]
    assert "would release" in str(plan)


@pytest.mark.parametrize("make", KEEPS.values(), ids=KEEPS)
def test_objects_reachable_from_kept_ones_after_the_plan_stay(make: Any, program: Any) -> None:
    program.model = Model()
    program.late, program.planned = torch.ones(5), torch.ones(3)
    plan = fastpurge.plan(keep=make(program.model))
    gc.collect()
    program.model.late = program.late
    plan.apply()
    assert program.late.sum() == 5
    assert is_purged(program.planned)


CONTAINERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], object]]] = {
    "a list": (lambda: [Model()], lambda kept, late: kept.append(late)),
    "a list that was empty": (list, lambda kept, late: kept.append(late)),
    "a list, all exchanged": (lambda: [Model()], lambda kept, late: kept.__setitem__(slice(None), [late])),
    "a dict": (lambda: {"model": Model()}, lambda kept, late: kept.update(late=late)),
    "a dict that was empty": (dict, lambda kept, late: kept.update(late=late)),
    "a dict, exchanged": (lambda: {"x": torch.ones(7)}, lambda kept, late: kept.update(x=late)),
    "a defaultdict": (lambda: defaultdict(list), lambda kept, late: kept["late"].append(late)),
    "a set": (lambda: {Model()}, lambda kept, late: kept.add(late)),
    "a deque": (deque, lambda kept, late: kept.append(late)),
    "nested": (lambda: [Model(), [Model(), {}]], lambda kept, late: kept[1][1].update(late=late)),
    "a tuple": (lambda: ([],), lambda kept, late: kept[0].append(late)),
    "a namespace": (SimpleNamespace, lambda kept, late: setattr(kept, "late", late)),
    "slots": (lambda: Slotted(None), lambda kept, late: setattr(kept, "referent", late)),
    "an object": (lambda: Own(None), lambda kept, late: setattr(kept, "referent", late)),
    "a tensor": (lambda: torch.ones(2), lambda kept, late: setattr(kept, "late", late)),
    "an object array": (lambda: _array(None), lambda kept, late: kept.__setitem__(0, late)),
}
WAYS: dict[str, Callable[[Any], object]] = {
    "itself": lambda kept: kept,
    "in a list": lambda kept: [kept],
    "in a dict": lambda kept: {"k": kept},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("make", "put"), CONTAINERS.values(), ids=CONTAINERS)
def test_objects_added_to_a_kept_container_after_the_plan_stay(
    make: Any, put: Any, way: Any, program: Any
) -> None:
    program.kept = make()
    program.late, program.planned = torch.ones(5), torch.ones(3)
    plan = fastpurge.plan(keep=way(program.kept))
    gc.collect()
    put(program.kept, program.late)
    plan.apply()
    assert program.late.sum() == 5
    assert is_purged(program.planned)


def test_options_in_a_dict_make_no_difference(program: Any) -> None:
    program.kept, program.late = [], torch.ones(5)
    options = {"keep": program.kept, "devices": "cpu"}
    plan = fastpurge.plan(**options)
    program.kept.append(program.late)
    plan.apply()
    assert program.late.sum() == 5


def test_a_deleted_container_protects_nothing_by_its_address(program: Any) -> None:
    program.planned = torch.ones(3)
    kept = [Model()]
    plan = fastpurge.plan(keep=kept)
    where = id(kept)
    del kept
    program.others = tuple([program.planned] for _ in range(1000))
    if where not in map(id, program.others):
        pytest.skip("nothing has come to lie there")
    plan.apply()
    assert is_purged(program.planned)


def test_a_nested_module_is_a_boundary_for_apply_as_for_plan(program: Any) -> None:
    program.planned = torch.ones(3)
    plan = fastpurge.plan(keep=[[[program]]])
    assert (3,) in [item.shape for item in plan.items]
    plan.apply()
    assert is_purged(program.planned)


def test_globals_added_to_a_named_module_after_the_plan_are_kept(program: Any) -> None:
    program.planned = []
    fastpurge.sweep(keep=())
    program.planned.append(torch.ones(3))
    owner = SimpleNamespace(tensor=torch.ones(4))
    plan = fastpurge.plan(keep=[program])
    program.late = owner.tensor
    del owner
    plan.apply()
    assert program.late.sum() == 4
    assert program.planned[0].sum() == 3


def test_a_tensor_that_is_kept_can_still_be_swapped(program: Any) -> None:
    program.kept = torch.ones(3)
    plan = fastpurge.plan(keep=[program.kept])
    torch.utils.swap_tensors(program.kept, torch.zeros(3))
    plan.apply()
    assert program.kept.sum() == 0
