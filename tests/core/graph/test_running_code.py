"""What running code holds, told from what containers hold: by exact counts, asking nobody."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastpurge import _core
from fastpurge._core import Libraries, RunningCode


class Base:
    """What is scanned for."""


class Holder:
    """What a program keeps things in; not a plain container."""


class Whole:
    """What is kept whole when it is held."""


FORGOTTEN = Holder()
PLAIN = (list, tuple, dict, set, types.CellType, types.FunctionType, types.MethodType)
LOOKED_THROUGH: tuple[type, ...] = (
    *(*PLAIN, type(iter([])), type(iter(()))),
    *(types.GeneratorType, types.TracebackType, types.FrameType),
)
EXECUTING = (
    (types.GeneratorType, "gi_running"),
    (types.CoroutineType, "cr_running"),
    (types.AsyncGeneratorType, "ag_running"),
)


def _capture(held: object) -> Callable[[], object]:
    return lambda: held


def _running(
    containers: tuple[type, ...] = LOOKED_THROUGH, *, roots: tuple[Any, Any] | None = None
) -> RunningCode:
    return RunningCode(
        containers=containers,
        container_bases=(BaseException,),
        whole=(Whole,),
        executing=EXECUTING,
        roots=roots,
    )


@pytest.fixture
def is_held(libraries: Libraries) -> Iterator[Callable[..., bool]]:
    """Whether the one Base that there is is held by running code or C code."""

    def ask(running: RunningCode | None = None) -> bool:
        found = _core.snapshot(
            (),
            [],
            scan_for=(Base,),
            report=(Base,),
            libraries=libraries,
            running_code=running or _running(),
        )
        assert len(found.candidates) + len(found.running) == 1
        return len(found.running) == 1

    gc.collect()
    yield ask
    vars(FORGOTTEN).clear()


def test_a_forgotten_object_is_not_held(is_held: Callable[..., bool]) -> None:
    FORGOTTEN.held = Base()  # type: ignore[attr-defined]
    assert not is_held()


@pytest.mark.parametrize(
    "forget",
    [lambda: [Base()], lambda: {"k": [Base()]}, lambda: ({1: (Base(),)},), lambda: {Base()}],
    ids=["list", "dict", "nested", "set"],
)
def test_containers_that_are_forgotten_do_not_hold(forget: Any, is_held: Callable[..., bool]) -> None:
    FORGOTTEN.held = forget()  # type: ignore[attr-defined]
    assert not is_held()


def test_a_module_level_variable_is_not_running_code(is_held: Callable[..., bool]) -> None:
    globals()["LEFT"] = [Base()]
    try:
        assert not is_held()
    finally:
        del globals()["LEFT"]


def test_a_module_that_nobody_imported_is_a_module(is_held: Callable[..., bool]) -> None:
    module = types.ModuleType("not_imported")
    exec("def run(ask): return ask()", vars(module))
    module.held = Base()  # type: ignore[attr-defined]
    apart: list[object] = [[] for _ in range(100)]
    run, later = module.run, [module, *apart]
    del module, apart
    gc.collect()  # what nothing but `later` reaches comes after what `run` reaches
    places = {id(x): place for place, x in enumerate(gc.get_objects())}
    assert places[id(run.__globals__)] + 100 <= places[id(later[0])]
    FORGOTTEN.held = later  # type: ignore[attr-defined]
    del later
    # A frame holds its globals, and no object shows it.
    assert not run(is_held)


def test_a_local_variable_holds(is_held: Callable[..., bool]) -> None:
    local = Base()
    assert is_held()
    FORGOTTEN.held = local  # type: ignore[attr-defined]
    del local
    assert not is_held()


def test_a_local_variable_of_a_caller_holds(is_held: Callable[..., bool]) -> None:
    def callee() -> bool:
        return is_held()

    local = Base()
    assert callee()
    del local


@pytest.mark.parametrize(
    "make",
    [
        lambda: [Base()],
        lambda: ("x", {"k": [Base()]}),
        lambda: {Base()},
        lambda: iter([Base()]),
        lambda: _capture(Base()),
    ],
    ids=["list", "nested", "set", "iterator", "closure"],
)
def test_a_plain_container_in_a_local_variable_holds(make: Any, is_held: Callable[..., bool]) -> None:
    local = make()
    assert is_held()
    del local


def test_an_object_in_a_local_variable_is_not_looked_into(is_held: Callable[..., bool]) -> None:
    local = Holder()
    local.held = [Base()]  # type: ignore[attr-defined]
    assert not is_held()
    del local


def test_what_is_kept_whole_is_looked_into_if_held(is_held: Callable[..., bool]) -> None:
    FORGOTTEN.whole = Whole()  # type: ignore[attr-defined]
    FORGOTTEN.whole.deep = Holder()  # type: ignore[attr-defined]
    FORGOTTEN.whole.deep.held = [Base()]  # type: ignore[attr-defined]
    assert not is_held()
    local = FORGOTTEN.whole  # type: ignore[attr-defined]
    snapshot = _core.snapshot(
        (), [], scan_for=(Base,), report=(), libraries=Libraries((), ()), running_code=_running()
    )
    assert snapshot.candidates == []
    assert any(one is local for one in snapshot.held)


def test_a_captured_local_variable_holds(is_held: Callable[..., bool]) -> None:
    local = Base()

    def inner() -> object:
        return local

    assert is_held()
    assert inner() is not None


def test_a_value_on_the_stack_of_an_expression_holds(is_held: Callable[..., bool]) -> None:
    # No variable has it: it waits on the stack while the second operand is computed.
    result = (Base(), is_held())
    assert result[1]


def test_a_list_under_construction_holds(is_held: Callable[..., bool]) -> None:
    assert [[Base(), 1], is_held()][1]


def test_the_items_of_a_loop_hold(is_held: Callable[..., bool]) -> None:
    for last in ([None], [Base()]):
        if last[0] is None:
            assert is_held()


def test_arguments_on_their_way_hold(is_held: Callable[..., bool]) -> None:
    def callee(*args: object, **kwargs: object) -> bool:
        return is_held()

    assert callee(Base())
    assert callee(key=Base())
    assert functools.partial(callee, Base())()


def test_a_bound_method_that_runs_holds(libraries: Libraries) -> None:
    class Runner(Base):
        def run(self) -> _core.Snapshot:
            return _core.snapshot(
                (), [], scan_for=(Runner,), report=(), libraries=libraries, running_code=_running()
            )

    assert len(Runner().run().held) == 1


def test_a_running_generator_holds_and_a_forgotten_one_does_not(is_held: Callable[..., bool]) -> None:
    answers = []

    def nested() -> None:
        answers.append(is_held())

    def generator() -> Iterator[None]:
        local = [Base()]
        nested()
        yield
        nested()
        del local

    FORGOTTEN.generator = generator()  # type: ignore[attr-defined]
    next(FORGOTTEN.generator)  # type: ignore[attr-defined]
    answers.append(is_held())
    next(FORGOTTEN.generator, None)  # type: ignore[attr-defined]
    assert answers == [True, False, True]


def test_a_generator_that_a_loop_waits_for_holds(is_held: Callable[..., bool]) -> None:
    def generator() -> Iterator[int]:
        local = Base()
        yield 1
        del local

    for _ in generator():
        assert is_held()


def test_coroutines_that_wait_for_a_running_one_hold(is_held: Callable[..., bool]) -> None:
    async def inner() -> bool:
        return is_held()

    async def outer() -> bool:
        local = Base()
        answer = await inner()
        del local
        return answer

    assert asyncio.run(outer())


def test_an_exception_being_handled_holds_and_a_finished_one_does_not(
    is_held: Callable[..., bool],
) -> None:
    def fail() -> None:
        local = Base()  # noqa: F841
        raise ValueError

    try:
        fail()
    except ValueError as error:
        assert is_held()
        FORGOTTEN.error = error  # type: ignore[attr-defined]
    assert not is_held()


@pytest.mark.parametrize("name", ["last_value", "last_traceback"])
def test_a_finished_exception_of_sys_does_not_hold(name: str, is_held: Callable[..., bool]) -> None:
    def fail() -> None:
        local = Base()  # noqa: F841
        raise ValueError

    try:
        fail()
    except ValueError as error:
        setattr(sys, name, error if name == "last_value" else error.__traceback__)
    try:
        assert not is_held()
    finally:
        delattr(sys, name)


def test_local_variables_of_other_threads_hold(is_held: Callable[..., bool]) -> None:
    ready, leave = threading.Event(), threading.Event()

    def work() -> None:
        local = [Base()]
        ready.set()
        leave.wait()
        del local

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        assert is_held()
    finally:
        leave.set()
        thread.join()


def test_c_code_holds(is_held: Callable[..., bool]) -> None:
    FORGOTTEN.held = Base()  # type: ignore[attr-defined]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(FORGOTTEN.held))  # type: ignore[attr-defined]
    try:
        assert is_held()
    finally:
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(FORGOTTEN.held))  # type: ignore[attr-defined]
    assert not is_held()


def test_what_the_held_reach_is_no_candidate(libraries: Libraries) -> None:
    local = Base()
    local.deep = Holder()  # type: ignore[attr-defined]
    local.deep.held = Base()  # type: ignore[attr-defined]
    snapshot = _core.snapshot(
        (), [], scan_for=(Base,), report=(Base,), libraries=libraries, running_code=_running()
    )
    assert len(snapshot.held) == 1
    assert snapshot.candidates == []
    assert snapshot.kept == []
    assert len(snapshot.running) == 2


def test_a_reference_that_an_object_holds_to_itself_is_not_counted(libraries: Libraries) -> None:
    FORGOTTEN.held = Base()  # type: ignore[attr-defined]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(FORGOTTEN.held))  # type: ignore[attr-defined]
    try:
        known = _core.IdSet([FORGOTTEN.held])  # type: ignore[attr-defined]
        for self_held, expected in ((None, 1), (known, 0)):
            snapshot = _core.snapshot(
                (),
                [],
                scan_for=(Base,),
                report=(),
                libraries=libraries,
                running_code=_running(),
                self_held=self_held,
            )
            assert len(snapshot.held) == expected
    finally:
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(FORGOTTEN.held))  # type: ignore[attr-defined]
        vars(FORGOTTEN).clear()


def test_snapshots_that_are_kept_do_not_hold(is_held: Callable[..., bool], libraries: Libraries) -> None:
    FORGOTTEN.held = Base()  # type: ignore[attr-defined]
    earlier = _core.snapshot((), [], scan_for=(Base,), report=(), libraries=libraries)
    assert not is_held()
    assert len(earlier.candidates) == 1
