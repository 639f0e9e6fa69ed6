"""The closure: everything reachable from keep, by the interpreter's own traversal, and its boundary."""

from __future__ import annotations

import collections
import functools
import gc
import json
import os
import subprocess
import sys
import textwrap
import types
import weakref
from typing import Any

import pytest
from fastpurge._core import IdSet, Libraries, closure, reachable_targets
from hypothesis import given, settings
from hypothesis import strategies as st

GRAPHS = int(os.environ.get("FASTPURGE_GRAPHS", "300"))


class Thing:
    """An object to refer to."""


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: object) -> None:
        self.held = held

    def method(self) -> None: ...


class Dicted:
    def __init__(self, held: object) -> None:
        self.held = held

    def method(self) -> None: ...


GLOBAL = Thing()


def _in_closure_cell(held: object) -> Any:
    return lambda: held


def _in_default(held: object) -> Any:
    return lambda x=held: x


def _in_generator(held: object) -> Any:
    def generator() -> Any:
        local = held
        yield
        yield local

    suspended = generator()
    next(suspended)
    return suspended


def _in_coroutine(held: object) -> Any:
    @types.coroutine
    def pause() -> Any:
        yield

    async def coroutine() -> object:
        local = held
        await pause()
        return local

    suspended = coroutine()
    suspended.send(None)
    return suspended


def _in_traceback(held: object) -> Any:
    def fail() -> None:
        local = held  # noqa: F841
        raise ValueError

    try:
        fail()
    except ValueError as error:
        return error


def _in_cache(held: object) -> Any:
    @functools.lru_cache
    def cached(_: int) -> object:
        return held

    cached(1)
    return cached


def _in_cycle(held: object) -> Any:
    a: list[Any] = []
    a.append([a, held])
    return a


OWNERS = {
    "list": lambda x: [x],
    "tuple": lambda x: (1, x),
    "dict value": lambda x: {"k": x},
    "dict key": lambda x: {x: 1},
    "set": lambda x: {x},
    "frozenset": lambda x: frozenset([x]),
    "deque": lambda x: collections.deque([x]),
    "defaultdict": lambda x: collections.defaultdict(list, k=x),
    "ordered dict": lambda x: collections.OrderedDict(k=x),
    "mapping proxy": lambda x: types.MappingProxyType({"k": x}),
    "namespace": lambda x: types.SimpleNamespace(k=x),
    "instance dict": Dicted,
    "slots": Slotted,
    "bound method": lambda x: Slotted(x).method,
    "closure cell": _in_closure_cell,
    "default": _in_default,
    "partial": lambda x: functools.partial(print, x),
    "partial keyword": lambda x: functools.partial(print, end=x),
    "partial method": lambda x: functools.partialmethod(print, x),
    "generator": _in_generator,
    "coroutine": _in_coroutine,
    "iterator": lambda x: iter([x]),
    "map": lambda x: map(x, [1]),
    "dict view": lambda x: {"k": x}.values(),
    "exception": lambda x: ValueError(x),
    "traceback": _in_traceback,
    "cache": _in_cache,
    "cycle": _in_cycle,
    "own class": lambda x: type("Own", (), {"held": x}),
    "instance of own class": lambda x: type("Own", (), {"held": x})(),
    "instance of own subclass": lambda x: type("Sub", (type("Own", (), {"held": x}),), {})(),
    "property": lambda x: property(_in_closure_cell(x)),
    "weak value's callback": lambda x: weakref.ref(GLOBAL, _in_closure_cell(x)),
    "static method": lambda x: staticmethod(_in_closure_cell(x)),
    "slice": lambda x: slice(x),
    "memory of a chain": lambda x: collections.ChainMap({"k": x}),
}


@pytest.mark.parametrize("make_owner", OWNERS.values(), ids=OWNERS)
def test_kept_owners_keep_what_they_refer_to(make_owner: Any, libraries: Libraries) -> None:
    held = Thing()
    root = make_owner(held)
    assert held in closure((root,), libraries=libraries)
    assert GLOBAL not in closure((root,), libraries=libraries)
    if isinstance(root, types.CoroutineType):
        root.close()


def test_a_weak_reference_keeps_nothing(libraries: Libraries) -> None:
    held = Thing()
    assert held not in closure((weakref.ref(held),), libraries=libraries)


def test_depth_of_a_million_overflows_nothing() -> None:
    # In a process of its own: a stack overflow would take the test runner with it.
    program = """
        import sys
        from fastpurge._core import Libraries, closure
        class Thing: pass
        thing = Thing()
        nested = [thing]
        for _ in range(1_000_000):
            nested = [nested]
        found = closure((nested,), libraries=Libraries((), ()))
        assert thing in found
        assert len(found) > 1_000_000, len(found)
        chain = None
        class Link:
            __slots__ = ("next",)
        for _ in range(1_000_000):
            link = Link(); link.next = chain; chain = link
        first = closure((chain,), libraries=Libraries((), ()))
        assert len(first) > 1_000_000
        while chain is not None:
            chain = chain.next
        print("ok")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def _make_module(name: str) -> Any:
    module: Any = types.ModuleType(name)
    source = """
        def function(): return HIDDEN
        def generator(): yield HIDDEN
        class Class:
            def method(self): return HIDDEN
    """
    exec(textwrap.dedent(source), module.__dict__)
    module.HIDDEN = Thing()
    return module


@pytest.mark.parametrize("registered", [True, False], ids=["in sys.modules", "not in sys.modules"])
@pytest.mark.parametrize(
    "reach",
    [
        lambda m: m.function,
        lambda m: m.generator(),
        lambda m: m.Class,
        lambda m: m.Class(),
        lambda m: m.Class().method,
        lambda m: functools.partial(m.function),
        lambda m: [{"module": m}],
    ],
    ids=["function", "generator", "class", "instance", "method", "partial", "module"],
)
def test_modules_and_their_namespaces_are_a_boundary(
    reach: Any, registered: bool, libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _make_module("boundary_module")
    if registered:
        monkeypatch.setitem(sys.modules, "boundary_module", module)
    root = reach(module)
    assert module.HIDDEN not in closure((root,), libraries=libraries)


def test_a_suspended_generator_reaches_its_locals_and_not_its_globals(libraries: Libraries) -> None:
    local = Thing()
    suspended = _in_generator(local)
    found = closure((suspended,), libraries=libraries)
    assert local in found
    assert GLOBAL not in found


def test_a_named_module_is_traversed(libraries: Libraries) -> None:
    module = _make_module("named")
    assert module.HIDDEN in closure((module,), libraries=libraries)
    assert module.HIDDEN in closure((module.__dict__,), libraries=libraries)


def test_a_named_module_is_traversed_even_if_reached_before(libraries: Libraries) -> None:
    module = _make_module("named")
    assert module.HIDDEN in closure(([module], module), libraries=libraries)
    assert module.HIDDEN in closure((module.function, module.__dict__), libraries=libraries)


def test_types_of_libraries_are_a_boundary(libraries: Libraries) -> None:
    held = Thing()
    json.JSONDecoder.fastpurge_test = held  # type: ignore[attr-defined]
    try:
        assert held not in closure((json.JSONDecoder(),), libraries=libraries)
        assert held in closure((json.JSONDecoder(),), libraries=Libraries((), ()))
        assert held in closure((json.JSONDecoder,), libraries=libraries)
    finally:
        del json.JSONDecoder.fastpurge_test  # type: ignore[attr-defined]


def test_static_types_are_not_traversed(libraries: Libraries) -> None:
    # Their traverse function aborts the process when it is called on them.
    assert int in closure((int, [dict, object, type]), libraries=libraries)


def test_which_modules_are_libraries(libraries: Libraries) -> None:
    assert libraries.is_library("json")
    assert libraries.is_library("json.decoder")
    assert libraries.is_library("sys")
    assert libraries.is_library("pytest")
    assert not libraries.is_library("__main__")
    assert not libraries.is_library(__name__)
    assert not libraries.is_library("no_such_module_anywhere")


def test_a_type_with_a_wrong_module_name_is_the_programs(libraries: Libraries) -> None:
    held = Thing()
    for module in (None, 3, "", "no.such", "\ud800"):
        liar = type("Liar", (), {"held": held, "__module__": module})
        assert held in closure((liar(),), libraries=libraries)


def test_wrong_arguments_are_refused(libraries: Libraries) -> None:
    with pytest.raises(TypeError):
        closure([1], libraries=libraries)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        closure((1,), libraries=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        closure((1,))  # type: ignore[call-arg]


# Steps that build a graph: each makes a node that refers to earlier nodes, by index.
KINDS = ("list", "tuple", "dict", "set", "slots", "instance", "closure", "partial", "method")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 10**6), max_size=4)), max_size=40)


def _build(steps: list[tuple[str, list[int]]]) -> list[Any]:  # noqa: C901
    nodes: list[Any] = [Thing()]
    for kind, indices in steps:
        held = [nodes[i % len(nodes)] for i in indices]
        node: Any
        if kind == "list":
            node = held
        elif kind == "tuple":
            node = (*held, Thing())
        elif kind == "dict":
            node = dict(enumerate(held))
        elif kind == "set":
            node = {IdHash(x) for x in held}
        elif kind == "slots":
            node = Slotted(held)
        elif kind == "instance":
            node = Dicted(held)
        elif kind == "closure":
            node = _in_closure_cell(held)
        elif kind == "partial":
            node = functools.partial(print, *held)
        else:
            node = Slotted(held).method
        # A back reference, so that there are cycles.
        if indices and isinstance(nodes[-1], list):
            nodes[-1].append(node)
        nodes.append(node)
    return nodes


class IdHash:
    """Wraps an object so that it can be in a set."""

    def __init__(self, held: object) -> None:
        self.held = held


def _reference(root: object) -> set[int]:
    """The same closure in plain Python, by `gc.get_referents`."""
    seen = {id(root)}
    pending = [root]
    namespaces = {id(vars(m)) for m in sys.modules.values() if isinstance(m, types.ModuleType)}
    while pending:
        at = pending.pop()
        if isinstance(at, types.ModuleType) or id(at) in namespaces:
            continue
        for referent in gc.get_referents(at):
            if id(referent) not in seen:
                seen.add(id(referent))
                pending.append(referent)
    return seen


@settings(deadline=None, max_examples=GRAPHS)
@given(steps=STEPS, root=st.integers(0, 10**6))
def test_agrees_with_plain_python_on_random_graphs(steps: list[tuple[str, list[int]]], root: int) -> None:
    nodes = _build(steps)
    found = closure((nodes[root % len(nodes)],), libraries=Libraries((), ()))
    expected = _reference(nodes[root % len(nodes)])
    assert [node in found for node in nodes] == [id(node) in expected for node in nodes]


def test_the_closure_is_an_idset(libraries: Libraries) -> None:
    assert type(closure((), libraries=libraries)) is IdSet
    assert len(closure((), libraries=libraries)) == 0


@settings(deadline=None, max_examples=GRAPHS // 5)
@given(steps=STEPS)
def test_the_targets_of_each_root_are_those_in_its_closure(
    steps: list[tuple[str, list[int]]],
) -> None:
    nodes, none = _build(steps), Libraries((), ())
    closures = [closure((root,), libraries=none) for root in nodes]
    expected = [[at for at, node in enumerate(nodes) if node in found] for found in closures]
    assert reachable_targets((*nodes,), (*nodes,), libraries=none) == expected


def test_a_target_that_no_root_reaches_is_not_returned(libraries: Libraries) -> None:
    held = Thing()
    assert reachable_targets(([held], held, 1, ()), (held, GLOBAL), libraries=libraries) == [[0], [0], [], []]
    assert reachable_targets((), (held,), libraries=libraries) == []
    with pytest.raises(TypeError):
        reachable_targets([held], (held,), libraries=libraries)  # type: ignore[arg-type]
