"""The path that `why` reports is an expression that evaluates to the object, where there is one."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from fastpurge import why

pytestmark = pytest.mark.usefixtures("collector_off")


class Own:
    pass


class Slotted:
    __slots__ = ("inner",)


class Raising:
    """An object whose attributes and special methods fail the test."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)

    __eq__ = __hash__ = __repr__ = __bool__ = __iter__ = __len__ = None  # type: ignore[assignment]


Pair = namedtuple("Pair", "left right")


def _own(referent: object) -> Own:
    own = Own()
    own.referent = referent  # type: ignore[attr-defined]
    return own


def _slotted(referent: object) -> Slotted:
    slotted = Slotted()
    slotted.inner = referent  # type: ignore[attr-defined]
    return slotted


def _raising_object(referent: object) -> Raising:
    raising = Raising()
    object.__setattr__(raising, "referent", referent)
    return raising


def _class(referent: object) -> type:
    return type("Klass", (), {"referent": referent})


def _closure(referent: object) -> Callable[[], object]:
    return lambda: referent


def _generator(referent: object) -> Iterator[object]:
    def generator() -> Iterator[object]:
        local = [referent]
        while True:
            yield local[0]

    running = generator()
    next(running)
    return running


def _error(referent: object) -> BaseException:
    def fail(big: object) -> None:
        raise ValueError

    try:
        fail(referent)
    except ValueError as error:
        return error
    raise AssertionError


def _defaults(referent: object) -> Callable[[], object]:
    def function(a: object = referent, *, b: object = None) -> object:
        return a

    return function


def _keyword(referent: object) -> Callable[[], object]:
    def function(*, b: object = referent) -> object:
        return b

    return function


def _model(referent: object) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(OrderedDict(last=torch.nn.Linear(2, 2))))
    model[1].last.register_buffer("referent", referent)  # type: ignore[arg-type, union-attr]
    return model


SPELLED = {
    "dict": (lambda x: {"sdxl": x}, "['sdxl']"),
    "dict by number": (lambda x: {3: {None: x}}, "[3][None]"),
    "dict by tuple": (lambda x: {(1, "a"): x}, "[(1, 'a')]"),
    "ordered dict": (lambda x: OrderedDict(a=x), "['a']"),
    "default dict": (lambda x: defaultdict(list, {"a": [x]}), "['a'][0]"),
    "list": (lambda x: [None, x], "[1]"),
    "tuple": (lambda x: (x, (1, x)), "[0]"),
    "deque": (lambda x: deque([1, x]), "[1]"),
    "named tuple": (lambda x: Pair(1, x), "[1]"),
    "attribute": (_own, ".referent"),
    "nested attributes": (lambda x: _own(_own([x])), ".referent.referent[0]"),
    "slot": (_slotted, ".inner"),
    "class": (_class, ".referent"),
    "closure": (_closure, ".__closure__[0].cell_contents"),
    "default": (_defaults, ".__defaults__[0]"),
    "keyword default": (_keyword, ".__kwdefaults__['b']"),
    "partial": (lambda x: functools.partial(print, x), ".args[0]"),
    "bound method": (lambda x: _own(x).__init__, ".__self__.referent"),  # type: ignore[misc]
    "generator": (_generator, ".gi_frame.f_locals['local'][0]"),
    "exception": (_error, ".__traceback__.tb_frame.f_locals['referent']"),
    "model": (_model, "[1].last.referent"),
    "property": (lambda x: property(lambda _: x), ".fget.__closure__[0].cell_contents"),
    "static method": (lambda x: staticmethod(_closure(x)), ".__func__.__closure__[0].cell_contents"),
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_path_evaluates_to_the_object(name: str, program: Any) -> None:
    owner, code = SPELLED[name]
    referent = torch.ones(3)
    program.root = owner(referent)
    found = why(referent)
    assert found.path == f"{program.__name__}.root{code}"
    assert eval(found.path, {program.__name__: program}) is referent
    assert found.reason is None
    assert found.types[-1] == "Tensor"


READ = {
    "set": (lambda x: {x}, "{...}"),
    "key of a dict": (lambda x: {x: 1}, ".keys(){...}"),
    "mapping proxy": (lambda x: MappingProxyType({"k": x}), " -> dict['k']"),
    "key of a class of one's own": (lambda x: {_Key(): x}, "[<_Key>]"),
    "a long key": (lambda x: {"k" * 100: x}, f"['{'k' * 39}...]"),
}


class _Key:
    def __repr__(self) -> str:
        raise AssertionError


@pytest.mark.parametrize("name", READ)
def test_a_step_without_code_is_described_in_the_path(name: str, program: Any) -> None:
    owner, words = READ[name]
    referent = torch.ones(3)
    program.root = owner(referent)
    assert why(referent).path == f"{program.__name__}.root{words}"


NAMED = {
    "a name that is code": (torch.nn.Module, "q4_k", ".q4_k"),
    "a number in a sequence": (torch.nn.Sequential, "0", "[0]"),
    "a number in a list": (torch.nn.ModuleList, "0", "[0]"),
    "a number in a dict": (torch.nn.ModuleDict, "0", "['0']"),
    "a number in a module of one's own": (torch.nn.Module, "0", "._modules['0']"),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_path_of_a_submodule_is_valid_code(name: str, program: Any) -> None:
    of, key, code = NAMED[name]
    program.root = of()
    program.root.add_module(key, torch.nn.Linear(2, 2))
    referent = program.root._modules[key]
    found = why(referent)
    assert found.path == f"{program.__name__}.root{code}"
    assert eval(found.path, {program.__name__: program}) is referent


def test_the_path_of_a_namespace_is_the_dict_of_its_module(program: Any) -> None:
    assert why(vars(program)).path == f"{program.__name__}.__dict__"


def test_why_runs_no_code_of_objects(program: Any) -> None:
    referent = torch.ones(3)
    program.root = _raising_object([referent])
    assert why(referent).path == f"{program.__name__}.root.referent[0]"
    assert why(program.root).what == "Raising"


HIDDEN = {
    "gradient": (lambda p: p.w.grad, ".w.grad"),
    "base of a view": (lambda p: p.view._base, ".view._base"),
    "leaf of a graph": (
        lambda p: p.leaf(),
        ".loss.grad_fn.next_functions[0][0].next_functions[0][0].variable",
    ),
    "array": (lambda p: p.array.base, ".array.base"),
    "array of objects": (lambda p: p.objects[0], ".objects[...]"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_references_hidden_by_torch_and_numpy_are_found(name: str, program: Any) -> None:
    program.w = torch.nn.Parameter(torch.ones(3))
    (program.w * 2).sum().backward()
    program.view = torch.ones(5)[1:]
    leaf = torch.nn.Parameter(torch.ones(3))
    program.loss = (leaf * 2).sum()
    program.leaf = weakref.ref(leaf)
    del leaf
    program.array = torch.ones(4).numpy()
    program.objects = np.empty(1, dtype=object)
    program.objects[0] = torch.ones(3)
    get, code = HIDDEN[name]
    assert why(get(program)).path == f"{program.__name__}{code}"


def test_tensors_saved_for_backward_are_found(program: Any) -> None:
    saved = torch.ones(3)
    program.loss = (torch.ones(3, requires_grad=True) * saved).sum()
    gone = weakref.ref(saved)
    del saved
    found = why(gone())
    if not hasattr(torch._C._autograd.SavedTensor, "data"):  # docs/limits.md
        assert str(found.reason).startswith("an external reference keeps it alive")
        return
    assert found.path == f"{program.__name__}.loss.grad_fn.next_functions[0][0] (saved for backward)"


def test_a_path_of_thousands_of_steps_is_found(program: Any) -> None:
    referent = torch.ones(3)
    chain: Any = referent
    for _ in range(5_000):
        chain = [chain]
    program.root = chain
    found = why(referent)
    assert found.path == f"{program.__name__}.root" + "[0]" * 5_000
    for _ in range(5_000):  # or dropping it would recurse as deeply
        chain = chain[0]


def test_a_path_contains_nested_arrays(program: Any) -> None:
    class Node:
        def __init__(self, child: Any) -> None:
            self.children = np.empty(1, dtype=object)
            self.children[0] = child

    tensor = torch.ones(3)
    program.tree = Node(Node(Node([tensor])))
    assert why(tensor).path == "forgetful_program.tree.children[...].children[...].children[...][0]"
