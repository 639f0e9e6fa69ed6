"""Objects are exchanged with replacements: all of them or none, and none that is in use."""

from __future__ import annotations

import copy
import functools
import importlib.util
import operator
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from fastpurge import _core
from fastpurge._core import IdSet, Libraries, RunningCode

_set_class = cast(Any, object.__dict__["__class__"]).__set__


class Base:
    """The type of the objects that are exchanged."""


class Replacement:
    """The type of the replacements."""


_one_owner = vars(object)["__sizeof__"]  # any C function that returns a number


class Slotted(Base):
    __slots__ = ("extra",)


class Holder:
    """An object of the program that refers to others; not a plain container."""


def exchange(
    objects: list[Any], *, keep: tuple[object, ...] = (), spare_external: bool = True
) -> list[tuple[int, BaseException | None]]:
    return exchanging(objects, keep=keep, spare_external=spare_external)()


def exchanging(
    objects: list[Any], *, keep: tuple[object, ...] = (), spare_external: bool = True
) -> Callable[[], list[tuple[int, BaseException | None]]]:
    return functools.partial(
        _core.exchange,
        keep,
        [],
        objects,
        [Replacement() for _ in objects],
        scan_for=(Base,),
        libraries=Libraries((), ()),
        running_code=RunningCode(containers=(list, dict)),
        self_referenced=IdSet(),
        count_owners=_one_owner,
        spare_external=spare_external,
        set_class=_set_class,
        implementation=(bytes, max),
    )


@pytest.fixture
def holder() -> Holder:
    return Holder()


def _output(program: str) -> str:
    """The standard output of a program in a new process."""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder
    )
    return done.stdout


def test_an_object_takes_the_class_and_the_attributes_of_its_replacement(holder: Any) -> None:
    holder.one = Base()
    holder.one.value = 1
    attributes = vars(holder.one)
    assert exchange([holder.one]) == []
    assert type(holder.one) is Replacement
    assert vars(holder.one) == {}
    assert attributes == {"value": 1}  # a dict with another reference is not emptied


def test_attributes_shared_with_another_object_stay(holder: Any) -> None:
    holder.one = Base()
    holder.one.table = {"k": 1}
    other = copy.copy(holder.one)
    shared = Holder()
    shared.__dict__ = vars(holder.one)
    assert exchange([holder.one]) == []
    assert other.table == {"k": 1}
    assert shared.table == {"k": 1}  # type: ignore[attr-defined]


def test_an_object_that_is_kept_by_now_is_refused(holder: Any) -> None:
    holder.one, holder.two = Base(), Base()
    kept = Holder()
    kept.two = holder.two  # type: ignore[attr-defined]
    assert exchange([holder.one, holder.two], keep=(kept,)) == [(1, None)]
    assert type(holder.one) is type(holder.two) is Base


def test_an_object_that_running_code_references_is_refused(holder: Any) -> None:
    holder.one, holder.two = Base(), Base()
    local = holder.two
    assert exchange([holder.one, holder.two]) == [(1, None)]
    inner = [holder.one]
    assert exchange([holder.one, holder.two]) == [(0, None), (1, None)]
    assert type(inner[0]) is type(local) is Base


@pytest.mark.parametrize("alone", [True, False])
def test_without_spare_external_it_is_refused_only_if_another_thread_runs(
    holder: Any, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Test runners have threads of their own.
    threads = [threading.get_ident(), *([] if alone else [0])]
    monkeypatch.setattr(sys, "_current_frames", lambda: dict.fromkeys(threads))
    holder.one = local = Base()
    assert exchange([holder.one], spare_external=False) == ([] if alone else [(0, None)])
    assert type(local) is (Replacement if alone else Base)


def test_one_that_cannot_be_exchanged_leaves_all_as_they_were(holder: Any) -> None:
    holder.one, holder.two, holder.three = Base(), Slotted(), Base()
    holder.one.value = holder.two.value = holder.three.value = 1
    [(index, error)] = exchange([holder.one, holder.two, holder.three])
    assert index == 1
    assert "layout" in str(error)
    assert [type(x) for x in vars(holder).values()] == [Base, Slotted, Base]
    assert holder.one.value == holder.two.value == holder.three.value == 1


@pytest.mark.skipif(not importlib.util.find_spec("_testcapi"), reason="needs the tests of the interpreter")
@pytest.mark.parametrize("length", [1, 100])
def test_one_without_memory_leaves_all_as_they_were(length: int) -> None:
    program = f"""
import gc, sys, _testcapi
sys.path.insert(0, {sys.path[0]!r})
from test_exchange import Base, Replacement, Holder, exchanging
last = 0
for number in range(400):
    holder = Holder()
    holder.all = [Base() for _ in range(5)]
    for one in holder.all:
        one.value = [number]
        vars(one)  # from 3.13 on a dict whose values are embedded in the object
    del one
    call = exchanging(holder.all)
    _testcapi.set_nomemory(number, number + {length})
    try:
        refused = call()
    except MemoryError:
        refused = True
    finally:
        _testcapi.remove_mem_hooks()
    del call
    gc.collect()
    last = number if refused else last
    for one in holder.all:
        assert type(one) is (Base if refused else Replacement), (number, refused)
        assert vars(one) == ({{"value": [number]}} if refused else {{}}), (number, refused)
        one.value = 2  # it can be written as it can be read
        assert (one.value, vars(one)) == (2, {{"value": 2}})
    del one
print(0 < last < 399)
"""
    assert _output(program) == "True\n"


def test_an_object_that_an_audit_hook_references_is_refused() -> None:
    program = f"""
import sys
sys.path.insert(0, {sys.path[0]!r})
from test_exchange import Base, Holder, exchange
holder, taken = Holder(), []
def hook(event, args):
    if event == "object.__setattr__" and args[1] == "__class__" and type(args[0]) is Base:
        taken.append(args[0])
sys.addaudithook(hook)
holder.one, holder.two = Base(), Base()
print(exchange([holder.one, holder.two]), type(holder.one) is type(holder.two) is Base)
"""
    assert _output(program) == "[(0, None), (1, None)] True\n"


def test_the_finalizer_of_the_old_class_runs(holder: Any) -> None:
    ends = []

    class Mortal(Base):
        def __del__(self) -> None:
            ends.append(self.name)  # type: ignore[attr-defined]

    holder.one = Mortal()
    holder.one.name = "one"
    assert exchange([holder.one]) == []
    assert ends == ["one"]
    assert type(holder.one) is Replacement


LIBRARIES = Libraries((("/nowhere", True),), ())
FORGOTTEN = Holder()
FORGOTTEN.list = [Base()]  # type: ignore[attr-defined]
OPTIONS: dict[str, Any] = {
    "scan_for": (Base,),
    "libraries": LIBRARIES,
    "running_code": RunningCode(containers=(list,)),
}
CALLS: dict[str, Callable[[], object]] = {
    "snapshot": functools.partial(_core.snapshot, (Holder(),), [], report=(Base,), **OPTIONS),
    "closure": functools.partial(_core.closure, (Holder(),), libraries=LIBRARIES),
    "scan": functools.partial(_core.scan, (Base,)),
    "library_globals": functools.partial(
        _core.library_globals, (Base,), libraries=LIBRARIES, containers=(), depth=1
    ),
    "exchange": functools.partial(
        _core.exchange,
        (Holder(),),
        [],
        FORGOTTEN.list,  # type: ignore[attr-defined]
        [Replacement()],
        self_referenced=IdSet(),
        count_owners=_one_owner,
        spare_external=True,
        set_class=_set_class,
        implementation=(bytes, max),
        **OPTIONS,
    ),
}


def count_switches(call: str) -> int:
    """How often another thread runs during the first call in this process."""
    sys.setswitchinterval(1e-6)  # a thread that releases the GIL loses it
    turns = [0]
    started, stop = threading.Event(), threading.Event()

    def other() -> None:
        started.set()
        while not stop.is_set():
            turns[0] += 1

    thread = threading.Thread(target=other)
    thread.start()
    started.wait()
    # Iterated in C: between these calls no byte code is run, and so no thread is switched.
    read: Callable[[], Any] = functools.partial(list, turns)
    invoke = operator.methodcaller("__call__")
    [before], _, [after] = list(map(invoke, (read, CALLS[call], read)))
    stop.set()
    thread.join()
    return int(after - before)


@pytest.mark.parametrize("call", CALLS)
def test_no_other_thread_runs_during_the_first_call_of_a_process(call: str) -> None:
    program = f"import test_exchange; print(test_exchange.count_switches({call!r}))"
    assert _output(program) == "0\n"
