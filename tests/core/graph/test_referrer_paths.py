"""The shortest path from a root to an object, and the owners of objects that no root reaches."""

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
    """An object with attributes that supports weak references."""

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


def paths(targets: tuple[Any, ...], roots: list[Any], **options: Any) -> list[tuple[str, list[str]]]:
    found = _core.referrer_paths(targets, roots, **options)
    return [(how, [type(one).__name__ for one in path]) for how, path in found]


def test_a_path_leads_from_a_root_through_owners_to_the_target() -> None:
    thing, target = Thing(), Thing()
    thing.held = {"k": [(target,)]}
    [(how, path)] = _core.referrer_paths((target,), [[], [thing]])
    assert how == "root"
    assert path[0] == [thing]
    assert path[-1] is target
    assert all(any(held is two for held in gc.get_referents(one)) for one, two in pairwise(path))


@pytest.mark.parametrize("target", ["abc" * 9, 10**30, b"x" * 50, 1.5, object()])
def test_a_target_may_be_something_the_collector_does_not_track(target: Any) -> None:
    [(how, path)] = _core.referrer_paths((target,), [[[target]]])
    assert how == "root"
    assert [type(one) for one in path[:-1]] == [list, list]
    assert path[-1] is target


def test_the_path_to_a_root_is_the_root() -> None:
    root: list[Any] = []
    [(how, path)] = _core.referrer_paths((root,), [root])
    assert how == "root"
    assert len(path) == 1
    assert path[0] is root


def test_several_targets_are_found_in_one_walk() -> None:
    first, second, lost = Thing(), Thing(), Thing()
    found = _core.referrer_paths((first, lost, second, first), [[first], {"k": second}])
    assert [how for how, _ in found] == ["root", "unreferenced", "root", "root"]
    assert [type(path[0]) if path else None for _, path in found] == [list, None, dict, list]


def test_a_library_is_no_boundary() -> None:
    assert paths((sys.path,), [sys.modules]) == [("root", ["dict", "module", "dict", "list"])]


def test_references_from_ignored_owners_do_not_count() -> None:
    target = Thing()
    names = {"t": target}
    assert paths((target,), [names], ignored_owners=[names]) == [("unreferenced", [])]
    names["more"] = [target]  # type: ignore[assignment]
    assert paths((target,), [names], ignored_owners=[names]) == [("root", ["dict", "list", "Thing"])]


def test_hidden_references_are_followed() -> None:
    target = [Thing()]
    leaf = "some" * 5  # which has no references that `tp_traverse` shows
    assert paths((target[0],), [[leaf]], hidden=[(leaf, target)]) == [
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
    """The length of the shortest path to each object, by `gc.get_referents`."""
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
def test_a_path_is_a_shortest_one(graph: Any) -> None:
    size, edges, random = graph
    nodes = [_node(random.randrange(6)) for _ in range(size)]
    for at, (holder, held) in enumerate(edges):
        if holder < size and held < size:
            _put(nodes[holder], nodes[held], at)
    found = _core.referrer_paths((*nodes,), [nodes[0]])
    distances = _distances(nodes[0])
    for node, (how, path) in zip(nodes, found, strict=True):
        if how == "root":
            assert len(path) == distances[id(node)] + 1
        else:
            assert id(node) not in distances


def _forgotten_cycle() -> weakref.ref[Thing]:
    thing, target = Thing(), Thing()
    thing.held = [thing, (target,)]
    return weakref.ref(target)


def test_cyclic_garbage_and_externally_referenced_objects_are_distinguished() -> None:
    [(how, path)] = _core.referrer_paths((_forgotten_cycle()(),), [], search_unreachable=True)
    assert how == "cycle"
    assert [type(one) for one in path[-3:]] == [list, tuple, Thing]
    assert path[0] in gc.get_referents(
        *gc.get_referents(path[0]), path[0], *gc.get_referents(*gc.get_referents(path[0]))
    )
    del path
    holder = [Thing()]  # a local, which no frame shows
    assert paths((holder[0],), [], search_unreachable=True)[0][1][-2:] == ["list", "Thing"]
    assert paths((holder[0],), [], search_unreachable=True)[0][0] == "external"


def test_an_unreferenced_object_is_neither() -> None:
    allowance = (
        [("unreferenced", [])]
        if sys.version_info >= (3, 11)
        else [("external", ["Thing"]), ("unreferenced", [])]
    )
    assert paths((Thing(),), [], search_unreachable=True)[0] in allowance


def test_a_search_leaves_no_references_behind() -> None:
    thing = Thing()
    thing.held = Thing()
    gone = weakref.ref(thing.held)
    assert paths((thing.held,), [thing], search_unreachable=True)[0][0] == "root"
    del thing
    assert gone() is None


def test_every_instance_is_found_with_its_root_and_the_type_of_its_owner() -> None:
    thing, slotted = Thing(), Slotted()
    thing.held = {"k": [Slotted()]}
    slotted.held = Slotted()
    other = {"direct": slotted, "text": ["text"]}
    found = _core.nearest_owners((Slotted,), [vars(thing), other], through=(list, dict))
    assert {(root, of) for _, root, of, _ in found if root is not None} == {
        (0, None),
        (1, None),
        (1, Slotted),
    }
    found = _core.nearest_owners((Slotted,), [[thing], other], through=(list, dict))
    assert [(root, of) for _, root, of, _ in found if root == 0] == [(0, Thing)]


def test_untracked_instances_are_found_through_their_owners() -> None:
    class Text(str):
        __slots__ = ()

    text = Text("abc")
    root = [(text,)]
    assert [(one, at) for one, at, _, _ in _core.nearest_owners((Text,), [root], through=())] == [(text, 0)]


def test_garbage_and_externally_referenced_objects_are_distinguished() -> None:
    target = _forgotten_cycle()
    kept = [Thing()]
    found = _core.nearest_owners((Thing,), [], through=(list, tuple, dict))
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


def test_reading_the_locals_of_a_frame_leaves_an_f_locals_dict_in_use_alone() -> None:
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
    [(how, path)] = _core.referrer_paths((leaves.pop(),), [], search_unreachable=True)
    assert how == "cycle"
    assert [type(one) for one in path[-2:]] == [list, str]


def test_garbage_with_a_materialized_dict_is_garbage() -> None:
    class Fresh:  # from 3.13 on instances with few attributes embed the values of their dict
        pass

    def forget() -> None:
        fresh: Any = Fresh()
        fresh.held, fresh.names = fresh, vars(fresh)

    forget()
    [(_, _, _, garbage)] = _core.nearest_owners((Fresh,), [], through=())
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


def test_objects_that_an_audit_hook_frees_are_not_found() -> None:
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
found = _core.nearest_owners((Thing,), [[box]], through=())
assert len(found) == (0 if box_is_listed else 10_000), len(found)
assert all(type(one) is Thing for one, *_ in found)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
