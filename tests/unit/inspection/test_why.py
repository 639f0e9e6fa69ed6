"""Why an object is alive: a path from a root that a person can read, and that leads there."""

from __future__ import annotations

import functools
import gc
import sys
import threading
import weakref
from collections import ChainMap, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from types import MappingProxyType, ModuleType
from typing import Any, cast

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import why


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Own:
    pass


class Slotted:
    __slots__ = ("inner",)


class Hostile:
    """Lets nobody ask it for anything."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)

    __eq__ = __hash__ = __repr__ = __bool__ = __iter__ = __len__ = None  # type: ignore[assignment]


Pair = namedtuple("Pair", "left right")


def _own(held: object) -> Own:
    own = Own()
    own.held = held  # type: ignore[attr-defined]
    return own


def _slotted(held: object) -> Slotted:
    slotted = Slotted()
    slotted.inner = held  # type: ignore[attr-defined]
    return slotted


def _hostile(held: object) -> Hostile:
    hostile = Hostile()
    object.__setattr__(hostile, "held", held)
    return hostile


def _class(held: object) -> type:
    return type("Klass", (), {"held": held})


def _closure(held: object) -> Callable[[], object]:
    return lambda: held


def _generator(held: object) -> Iterator[object]:
    def generator() -> Iterator[object]:
        local = [held]
        while True:
            yield local[0]

    running = generator()
    next(running)
    return running


def _error(held: object) -> BaseException:
    def fail(big: object) -> None:
        raise ValueError

    try:
        fail(held)
    except ValueError as error:
        return error
    raise AssertionError


def _defaults(held: object) -> Callable[[], object]:
    def function(a: object = held, *, b: object = None) -> object:
        return a

    return function


def _keyword(held: object) -> Callable[[], object]:
    def function(*, b: object = held) -> object:
        return b

    return function


def _model(held: object) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(OrderedDict(last=torch.nn.Linear(2, 2))))
    model[1].last.register_buffer("held", held)  # type: ignore[arg-type, union-attr]
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
    "attribute": (_own, ".held"),
    "nested attributes": (lambda x: _own(_own([x])), ".held.held[0]"),
    "slot": (_slotted, ".inner"),
    "class": (_class, ".held"),
    "closure": (_closure, ".__closure__[0].cell_contents"),
    "default": (_defaults, ".__defaults__[0]"),
    "keyword default": (_keyword, ".__kwdefaults__['b']"),
    "partial": (lambda x: functools.partial(print, x), ".args[0]"),
    "bound method": (lambda x: _own(x).__init__, ".__self__.held"),  # type: ignore[misc]
    "generator": (_generator, ".gi_frame.f_locals['local'][0]"),
    "exception": (_error, ".__traceback__.tb_frame.f_locals['held']"),
    "model": (_model, "[1].last.held"),
    "property": (lambda x: property(lambda _: x), ".fget.__closure__[0].cell_contents"),
    "static method": (lambda x: staticmethod(_closure(x)), ".__func__.__closure__[0].cell_contents"),
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_path_is_code_that_leads_there(name: str, program: Any) -> None:
    holder, code = SPELLED[name]
    held = torch.ones(3)
    program.root = holder(held)
    found = why(held)
    assert found.path == f"{program.__name__}.root{code}"
    assert eval(found.path, {program.__name__: program}) is held
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
def test_where_there_is_no_code_for_it_the_path_can_be_read(name: str, program: Any) -> None:
    holder, words = READ[name]
    held = torch.ones(3)
    program.root = holder(held)
    assert why(held).path == f"{program.__name__}.root{words}"


NAMED = {
    "a name that is code": (torch.nn.Module, "q4_k", ".q4_k"),
    "a number in a sequence": (torch.nn.Sequential, "0", "[0]"),
    "a number in a list": (torch.nn.ModuleList, "0", "[0]"),
    "a number in a dict": (torch.nn.ModuleDict, "0", "['0']"),
    "a number in a module of one's own": (torch.nn.Module, "0", "._modules['0']"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_part_of_a_module_is_called_what_code_can_call_it(name: str, program: Any) -> None:
    of, key, code = NAMED[name]
    program.root = of()
    program.root.add_module(key, torch.nn.Linear(2, 2))
    held = program.root._modules[key]
    found = why(held)
    assert found.path == f"{program.__name__}.root{code}"
    assert eval(found.path, {program.__name__: program}) is held


def test_a_namespace_is_held_by_its_module(program: Any) -> None:
    assert why(vars(program)).path == f"{program.__name__}.__dict__"


class _RudeModule(ModuleType):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise AssertionError("asked")


class _RudeThread(threading.Thread):
    @property
    def name(self) -> str:
        raise AssertionError("asked")

    @name.setter
    def name(self, _: str) -> None: ...


class _RudeMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise AssertionError("asked")


class _RudeError(Exception, metaclass=_RudeMeta):
    pass


class _RudeTensor(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise AssertionError("asked")


def _see_all(program: Any) -> fastpurge.SweepReport:
    """Everything that looks at roots, with something large to look for."""
    found = why(torch.ones(2))  # not in the assertion, which would give it a name
    assert found.path is None
    program.large = {10**5000: torch.ones(1000, 1000)}
    assert fastpurge.census().count > 0
    return fastpurge.sweep(keep=())


@pytest.mark.parametrize("what", ["module", "key", "thread", "error", "tensor", "nothing"])
def test_no_root_is_asked_anything_and_none_costs_a_sweep(
    what: str, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    thread = _RudeThread(target=done.wait) if what == "thread" else threading.Thread(target=done.wait)
    thread.start()
    if what == "module":
        monkeypatch.setitem(sys.modules, "rude", _RudeModule("rude"))
    if what == "key":
        monkeypatch.setitem(cast(Any, sys.modules), 5, program)
    if what == "tensor":
        program.rude = torch.ones(3).as_subclass(_RudeTensor)
    try:
        if what == "error":
            try:
                raise _RudeError
            except BaseException:
                report = _see_all(program)
        else:
            report = _see_all(program)
    finally:
        done.set()
        thread.join()
    held = [item.owner for item in report.released if item.owner is not None]
    assert held == [f"{program.__name__}.large[<int of 16610 bits>]"]


class _Mapping(dict[str, Any]):
    def items(self) -> Any:
        raise AssertionError("asked")


def test_a_caller_may_have_its_variables_anywhere(program: Any) -> None:
    program.make, program.why = (lambda: torch.ones(3)), why
    code = "held = make(); found = why(held)"
    exec(code, {"make": program.make, "why": why}, vars(program))
    assert program.found.path == f"{program.__name__}.held"
    names = _Mapping()
    exec(code, vars(program), names)
    assert names["found"].path == "held"
    chained: Any = ChainMap({})
    exec(code, vars(program), chained)
    assert "held" in str(chained["found"].path)


def test_no_object_is_asked_anything(program: Any) -> None:
    held = torch.ones(3)
    program.root = _hostile([held])
    assert why(held).path == f"{program.__name__}.root.held[0]"
    assert why(program.root).what == "Hostile"


def test_the_variable_of_the_caller_counts_last(program: Any) -> None:
    mine = torch.ones(3)
    found = why(mine)
    assert found.path == "mine"
    assert found.where.startswith("test_the_variable_of_the_caller_counts_last() at ")
    assert found.where.endswith("thread MainThread")
    assert found.reason == "nothing else that is reachable holds it"
    program.cache = [mine]
    assert why(mine).path == f"{program.__name__}.cache[0]"


def test_the_variable_of_a_module_that_asks_counts_last(program: Any) -> None:
    code = "held = make(); first = why(held); cache = {'k': held}; second = why(held)"
    program.make, program.why = (lambda: torch.ones(3)), why
    exec(code, vars(program))
    assert program.first.path == f"{program.__name__}.held"
    assert program.second.path == f"{program.__name__}.cache['k']"


def test_what_a_function_holds_in_a_container_is_found_in_its_frame() -> None:
    batch = {"images": [torch.ones(3)]}
    found = why(batch["images"][0])
    assert found.path == "batch['images'][0]"
    assert found.where.startswith("test_what_a_function_holds")


def test_what_another_thread_holds_is_found_in_its_frame() -> None:
    ready, done = threading.Event(), threading.Event()
    held: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        latent = torch.ones(3)
        held.append(weakref.ref(latent))
        ready.set()
        done.wait()

    thread = threading.Thread(target=work, name="sampler")
    thread.start()
    ready.wait()
    try:
        found = why(held[0]())
    finally:
        done.set()
        thread.join()
    assert found.path == "latent"
    assert found.where.startswith("work() at ")
    assert found.where.endswith("thread sampler")


def test_a_frame_holds_no_more_after_it_was_read() -> None:
    def function() -> bool:
        latent = torch.ones(3)
        gone = weakref.ref(latent)
        why([latent])
        del latent
        return gone() is None

    assert function()


def test_an_exception_being_handled_is_a_root() -> None:
    def fail() -> None:
        big = torch.ones(3)
        held.append(weakref.ref(big))
        raise ValueError

    held: list[weakref.ref[torch.Tensor]] = []
    try:
        fail()
    except ValueError:
        found = why(held[0]())
    assert found.path == "ValueError.__traceback__.tb_next.tb_frame.f_locals['big']"
    assert found.where == "an exception being handled, thread MainThread"


def test_several_objects_are_explained_at_once(program: Any) -> None:
    program.a, program.b = [torch.ones(1)], {"k": torch.ones(2)}
    first, second = why(program.a[0], program.b["k"])
    assert first.path == f"{program.__name__}.a[0]"
    assert second.path == f"{program.__name__}.b['k']"


def test_the_same_object_twice_is_explained_twice(program: Any) -> None:
    program.a = [torch.ones(1)]
    first, second = why(program.a[0], program.a[0])
    assert first == second


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
def test_what_torch_and_numpy_hide_is_found(name: str, program: Any) -> None:
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


def test_what_was_saved_for_backward_is_found(program: Any) -> None:
    saved = torch.ones(3)
    program.loss = (torch.ones(3, requires_grad=True) * saved).sum()
    gone = weakref.ref(saved)
    del saved
    found = why(gone())
    if not hasattr(torch._C._autograd.SavedTensor, "data"):  # docs/limits.md
        assert str(found.reason).startswith("an external reference keeps it alive")
        return
    assert found.path == f"{program.__name__}.loss.grad_fn.next_functions[0][0] (saved for backward)"


def test_the_graph_of_what_another_thread_computes_on_is_not_read() -> None:
    ready, done = threading.Event(), threading.Event()
    leaves: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        leaf = torch.ones(3, requires_grad=True)
        leaves.append(weakref.ref(leaf))
        loss = (leaf * 2).sum()
        del leaf
        ready.set()
        done.wait()
        assert loss.requires_grad

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    found = why(leaves[0]())
    done.set()
    thread.join()
    assert found.path is None
    assert str(found.reason).startswith("an external reference keeps it alive")


def _cycle() -> weakref.ref[torch.Tensor]:
    own, held = Own(), torch.ones(3)
    own.me, own.held = own, [held]  # type: ignore[attr-defined]
    return weakref.ref(held)


def test_garbage_in_a_cycle_has_no_path_and_says_so() -> None:
    found = why(_cycle()())
    assert found.path is None
    assert found.reason is not None
    if sys.version_info < (3, 11):  # the stack of the caller holds it as well, and is not shown
        assert found.reason.startswith("an external reference keeps it alive")
        return
    assert found.reason.startswith("it is garbage: only a reference cycle")
    assert found.reason.endswith("[0]")


def test_what_only_its_caller_hands_over_has_no_path_and_says_so() -> None:
    found = why(torch.ones(3))
    assert found.path is None
    expected = ["held only by this call's arguments"]
    if sys.version_info < (3, 11):
        expected.append("an external reference keeps it alive")
    assert any(found.reason is not None and found.reason.startswith(one) for one in expected)


def test_what_is_held_where_the_heap_does_not_show_it_says_so() -> None:
    on_the_stack = [torch.ones(4)]
    gone = weakref.ref(on_the_stack[0])

    def ask(_: object) -> fastpurge.Why:
        return why(gone())

    def handed_over() -> list[torch.Tensor]:
        return [on_the_stack.pop()]

    _, found = handed_over(), ask(None)
    assert found.path is None
    assert str(found.reason).startswith("an external reference keeps it alive")


def test_a_path_longer_than_any_limit_is_found(program: Any) -> None:
    held = torch.ones(3)
    chain: Any = held
    for _ in range(5_000):
        chain = [chain]
    program.root = chain
    found = why(held)
    assert found.path == f"{program.__name__}.root" + "[0]" * 5_000
    for _ in range(5_000):  # or to let go of it would recurse as deep
        chain = chain[0]


def test_anything_may_be_asked_about(program: Any) -> None:
    program.root = {"text": "a" * 60, "number": 10**40, "module": torch.nn.Linear, "function": print}
    for found in why(*program.root.values()):
        assert found.path is not None
    assert why(torch.nn.Linear).what == "class Linear"
    assert why(program.root["number"]).what == f"int {10**39}..."


def test_an_object_that_says_nothing_is_described_by_its_type(program: Any) -> None:
    program.root = [torch.ones(2).to_sparse()]
    assert why(program.root[0]).what.startswith("float32 Tensor of shape (2,)")
    assert why(program.root).what == "list"


def test_called_without_an_object_it_says_what_it_needs() -> None:
    with pytest.raises(TypeError, match="at least one object"):
        why()  # type: ignore[call-overload]


def test_it_can_be_printed_shown_and_stored(program: Any) -> None:
    program.root = {"k": torch.ones(3)}
    found = why(program.root["k"])
    assert str(found).splitlines() == [
        "float32 Tensor of shape (3,) on cpu, 12.0B",
        f"held by {program.__name__}.root['k']",
        "through dict > Tensor",
    ]
    assert "forgetful_program.root[" in found._repr_html_()
    assert found.to_dict()["path"] == found.path


def test_a_path_leads_through_arrays_in_each_other(program: Any) -> None:
    class Node:
        def __init__(self, child: Any) -> None:
            self.children = np.empty(1, dtype=object)
            self.children[0] = child

    tensor = torch.ones(3)
    program.tree = Node(Node(Node([tensor])))
    assert why(tensor).path == "forgetful_program.tree.children[...].children[...].children[...][0]"
