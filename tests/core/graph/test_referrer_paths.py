"""The shortest way from a root to an object, and what holds what no root leads to."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from fastpurge import _core
from hypothesis import given, settings
from hypothesis import strategies as st


class Thing:
    """Something that can hold anything, and be held weakly."""

    held: Any


class Slotted:
    __slots__ = ("held",)

    held: Any


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def ways(targets: tuple[Any, ...], roots: list[Any], **options: Any) -> list[tuple[str, list[str]]]:
    found = _core.paths(targets, roots, **options)
    return [(how, [type(one).__name__ for one in way]) for how, way in found]


def test_a_way_leads_from_a_root_through_what_holds_the_target() -> None:
    thing, target = Thing(), Thing()
    thing.held = {"k": [(target,)]}
    [(how, way)] = _core.paths((target,), [[], [thing]])
    assert how == "root"
    assert way[0] == [thing]
    assert way[-1] is target
    assert all(any(held is two for held in gc.get_referents(one)) for one, two in pairwise(way))


@pytest.mark.parametrize("target", ["abc" * 9, 10**30, b"x" * 50, 1.5, object()])
def test_a_target_may_be_something_the_collector_does_not_track(target: Any) -> None:
    [(how, way)] = _core.paths((target,), [[[target]]])
    assert how == "root"
    assert [type(one) for one in way[:-1]] == [list, list]
    assert way[-1] is target


def test_a_root_is_its_own_way() -> None:
    root: list[Any] = []
    [(how, way)] = _core.paths((root,), [root])
    assert how == "root"
    assert len(way) == 1
    assert way[0] is root


def test_several_targets_are_found_in_one_walk() -> None:
    first, second, lost = Thing(), Thing(), Thing()
    found = _core.paths((first, lost, second, first), [[first], {"k": second}])
    assert [how for how, _ in found] == ["root", "nothing", "root", "root"]
    assert [type(way[0]) if way else None for _, way in found] == [list, None, dict, list]


def test_a_library_is_no_boundary() -> None:
    assert ways((sys.path,), [sys.modules]) == [("root", ["dict", "module", "dict", "list"])]


def test_references_of_a_holder_left_out_do_not_count() -> None:
    target = Thing()
    names = {"t": target}
    assert ways((target,), [names], besides=[names]) == [("nothing", [])]
    names["more"] = [target]  # type: ignore[assignment]
    assert ways((target,), [names], besides=[names]) == [("root", ["dict", "list", "Thing"])]


def test_what_is_hidden_is_looked_at_as_if_it_were_shown() -> None:
    target = [Thing()]
    leaf = "some" * 5  # which holds nothing that anybody can see
    assert ways((target[0],), [[leaf]], hidden=[(leaf, target)]) == [
        ("root", ["list", "str", "list", "Thing"])
    ]


# A tree of containers, and edges between any two of its nodes.
graphs = st.tuples(
    st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=80), st.randoms()
)


def _node(kind: int) -> Any:
    return [list, dict, Thing, Slotted, deque, set][kind]()


def _put(holder: Any, held: Any, at: int) -> None:
    if isinstance(holder, dict):
        holder[at] = held
    elif isinstance(holder, set):
        holder.add((held,) if isinstance(held, (Thing, Slotted)) else at)
    elif isinstance(holder, (list, deque)):
        holder.append(held)
    elif isinstance(holder, Thing):
        setattr(holder, f"a{at}", held)
    else:
        holder.held = held


def _distances(root: Any) -> dict[int, int]:
    """By the interpreter's own word for what refers to what."""
    met, pending = {id(root): 0}, deque([root])
    while pending:
        one = pending.popleft()
        for held in gc.get_referents(one):
            if id(held) not in met and not isinstance(held, type):
                met[id(held)] = met[id(one)] + 1
                pending.append(held)
    return met


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_a_way_is_the_shortest_there_is(graph: Any) -> None:
    size, edges, random = graph
    nodes = [_node(random.randrange(6)) for _ in range(size)]
    for at, (holder, held) in enumerate(edges):
        if holder < size and held < size:
            _put(nodes[holder], nodes[held], at)
    found = _core.paths((*nodes,), [nodes[0]])
    distances = _distances(nodes[0])
    for node, (how, way) in zip(nodes, found, strict=True):
        if how == "root":
            assert len(way) == distances[id(node)] + 1
        else:
            assert id(node) not in distances


def _forgotten_cycle() -> weakref.ref[Thing]:
    thing, target = Thing(), Thing()
    thing.held = [thing, (target,)]
    return weakref.ref(target)


def test_what_only_a_cycle_holds_is_told_from_what_is_held_from_outside() -> None:
    [(how, way)] = _core.paths((_forgotten_cycle()(),), [], strays=True)
    assert how == "cycle"
    assert [type(one) for one in way[-3:]] == [list, tuple, Thing]
    assert way[0] in gc.get_referents(
        *gc.get_referents(way[0]), way[0], *gc.get_referents(*gc.get_referents(way[0]))
    )
    del way
    holder = [Thing()]  # a local, which no frame shows
    assert ways((holder[0],), [], strays=True)[0][1][-2:] == ["list", "Thing"]
    assert ways((holder[0],), [], strays=True)[0][0] == "outside"


def test_what_nothing_holds_is_told_from_both() -> None:
    allowance = (
        [("nothing", [])] if sys.version_info >= (3, 11) else [("outside", ["Thing"]), ("nothing", [])]
    )
    assert ways((Thing(),), [], strays=True)[0] in allowance


def test_what_is_found_holds_nothing_afterwards() -> None:
    thing = Thing()
    thing.held = Thing()
    gone = weakref.ref(thing.held)
    assert ways((thing.held,), [thing], strays=True)[0][0] == "root"
    del thing
    assert gone() is None


def test_every_instance_is_found_with_the_root_and_the_type_that_hold_it() -> None:
    thing, slotted = Thing(), Slotted()
    thing.held = {"k": [Slotted()]}
    slotted.held = Slotted()
    other = {"direct": slotted, "text": ["text"]}
    found = _core.holdings((Slotted,), [vars(thing), other], through=(list, dict))
    assert {(root, of) for _, root, of, _ in found if root is not None} == {
        (0, None),
        (1, None),
        (1, Slotted),
    }
    found = _core.holdings((Slotted,), [[thing], other], through=(list, dict))
    assert [(root, of) for _, root, of, _ in found if root == 0] == [(0, Thing)]


def test_instances_that_the_collector_does_not_track_are_found_by_their_holders() -> None:
    class Text(str):
        __slots__ = ()

    text = Text("abc")
    root = [(text,)]
    assert [(one, at) for one, at, _, _ in _core.holdings((Text,), [root], through=())] == [(text, 0)]


def test_garbage_is_told_from_what_is_held_from_outside() -> None:
    target = _forgotten_cycle()
    kept = [Thing()]
    found = _core.holdings((Thing,), [], through=(list, tuple, dict))
    state = {id(one): (root, of, garbage) for one, root, of, garbage in found}
    assert state[id(target())] == (None, Thing, True)
    assert state[id(kept[0])][0] is None
    assert state[id(kept[0])][2] is False


def test_reading_the_locals_of_a_frame_leaves_no_reference_behind() -> None:
    def function() -> weakref.ref[Thing]:
        thing = Thing()
        gone = weakref.ref(thing)
        assert _core.frame_locals(sys._getframe())["thing"] is thing
        del thing
        return gone  # the frame still runs

    def caller() -> None:
        gone = function()
        assert gone() is None

    def outer() -> bool:
        thing = Thing()
        gone = weakref.ref(thing)
        _core.frame_locals(sys._getframe())
        del thing
        return gone() is None

    caller()
    assert outer()


def test_reading_the_locals_of_a_frame_takes_nothing_from_who_has_asked_for_them() -> None:
    def function() -> tuple[Any, Any]:
        one = 1
        mine = sys._getframe().f_locals
        theirs = _core.frame_locals(sys._getframe())
        return mine["one"], theirs["one"] + one - 1

    assert function() == (1, 1)


def test_the_locals_of_a_frame_include_what_closures_share() -> None:
    def function() -> dict[str, Any]:
        shared = "s"

        def inner() -> dict[str, Any]:
            assert shared
            return _core.frame_locals(sys._getframe())

        return {**_core.frame_locals(sys._getframe()), "inner": inner()}

    found = function()
    assert found["shared"] == "s"
    assert found["inner"]["shared"] == "s"


def test_garbage_may_be_something_the_collector_does_not_track() -> None:
    def forget(leaf: str) -> None:
        thing = Thing()
        thing.held = [thing, leaf]

    leaves = ["".join(["a", "leaf"])]
    forget(leaves[0])
    [(how, way)] = _core.paths((leaves.pop(),), [], strays=True)
    assert how == "cycle"
    assert [type(one) for one in way[-2:]] == [list, str]


def test_garbage_whose_dict_somebody_has_asked_for_is_garbage_all_the_same() -> None:
    class Fresh:  # one whose instances have had few names keeps their values in themselves, from 3.13 on
        pass

    def forget() -> None:
        fresh: Any = Fresh()
        fresh.held, fresh.names = fresh, vars(fresh)

    forget()
    [(_, _, _, garbage)] = _core.holdings((Fresh,), [], through=())
    assert garbage


def test_a_function_that_is_traced_keeps_its_locals() -> None:
    def look(*_: Any) -> Any:
        at: Any = sys._getframe(1)
        while at is not None:
            _core.frame_locals(at)
            at = at.f_back
        return look

    def traced(a: int, b: int) -> int:
        c = a + b
        return sum([a, b, c])

    before = sys.gettrace()
    sys.settrace(look)
    try:
        total = traced(1, 2)
    finally:
        sys.settrace(before)
    assert total == 6


def test_what_an_audit_hook_lets_go_of_is_not_found() -> None:
    script = """
import sys
from fastpurge import _core

class Thing: ...

box, rest = [Thing() for _ in range(10_000)], []

def hook(event, _):
    if event == "gc.get_objects" and box:
        box.clear()
        rest.extend(bytes(48) for _ in range(20_000))

sys.addaudithook(hook)
box_is_listed = _core.object_stream() == "list"
found = _core.holdings((Thing,), [[box]], through=())
assert len(found) == (0 if box_is_listed else 10_000), len(found)
assert all(type(one) is Thing for one, *_ in found)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
