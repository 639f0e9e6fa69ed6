"""References from running code are told from references of containers, by exact reference counts."""

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
    """The scanned type."""


class Holder:
    """An object of the program that refers to others; not a plain container."""


class Whole:
    """A type in `kept_whole`."""


FORGOTTEN = Holder()
PLAIN = (list, tuple, dict, set, types.CellType, types.FunctionType, types.MethodType)
FOLLOWED: tuple[type, ...] = (
    *(*PLAIN, type(iter([])), type(iter(()))),
    *(types.GeneratorType, types.TracebackType, types.FrameType),
)
GENERATOR_TYPES = (
    (types.GeneratorType, "gi_running"),
    (types.CoroutineType, "cr_running"),
    (types.AsyncGeneratorType, "ag_running"),
)


def _capture(held: object) -> Callable[[], object]:
    return lambda: held


def _running(
    containers: tuple[type, ...] = FOLLOWED, *, root_objects: tuple[Any, Any] | None = None
) -> RunningCode:
    return RunningCode(
        containers=containers,
        container_bases=(BaseException,),
        kept_whole=(Whole,),
        generator_types=GENERATOR_TYPES,
        root_objects=root_objects,
    )


@pytest.fixture
def is_in_use(libraries: Libraries) -> Iterator[Callable[..., bool]]:
    """Whether running code or C code uses the only instance of Base."""

    def ask(running: RunningCode | None = None) -> bool:
        found = _core.snapshot(
            (),
            [],
            scan_for=(Base,),
            report=(Base,),
            libraries=libraries,
            running_code=running or _running(),
        )
        assert len(found.candidates) + len(found.kept_by_running_code) == 1
        return len(found.kept_by_running_code) == 1

    gc.collect()
    yield ask
    vars(FORGOTTEN).clear()


def test_a_forgotten_object_is_not_in_use(is_in_use: Callable[..., bool]) -> None:
    FORGOTTEN.held = Base()  # type: ignore[attr-defined]
    assert not is_in_use()


@pytest.mark.parametrize(
    "forget",
    [lambda: [Base()], lambda: {"k": [Base()]}, lambda: ({1: (Base(),)},), lambda: {Base()}],
    ids=["list", "dict", "nested", "set"],
)
def test_forgotten_containers_keep_nothing_in_use(forget: Any, is_in_use: Callable[..., bool]) -> None:
    FORGOTTEN.held = forget()  # type: ignore[attr-defined]
    assert not is_in_use()


def test_a_module_level_variable_is_not_running_code(is_in_use: Callable[..., bool]) -> None:
    globals()["LEFT"] = [Base()]
    try:
        assert not is_in_use()
    finally:
        del globals()["LEFT"]


def test_a_module_outside_sys_modules_is_a_module(is_in_use: Callable[..., bool]) -> None:
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
    # A frame refers to its globals, and no tp_traverse shows it.
    assert not run(is_in_use)


def test_a_local_variable_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    local = Base()
    assert is_in_use()
    FORGOTTEN.held = local  # type: ignore[attr-defined]
    del local
    assert not is_in_use()


def test_a_local_variable_of_a_caller_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    def callee() -> bool:
        return is_in_use()

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
def test_a_plain_container_in_a_local_variable_keeps_in_use(
    make: Any, is_in_use: Callable[..., bool]
) -> None:
    local = make()
    assert is_in_use()
    del local


def test_an_object_in_a_local_variable_is_not_followed(is_in_use: Callable[..., bool]) -> None:
    local = Holder()
    local.held = [Base()]  # type: ignore[attr-defined]
    assert not is_in_use()
    del local


def test_an_externally_referenced_instance_of_kept_whole_is_followed(is_in_use: Callable[..., bool]) -> None:
    FORGOTTEN.whole = Whole()  # type: ignore[attr-defined]
    FORGOTTEN.whole.deep = Holder()  # type: ignore[attr-defined]
    FORGOTTEN.whole.deep.held = [Base()]  # type: ignore[attr-defined]
    assert not is_in_use()
    local = FORGOTTEN.whole  # type: ignore[attr-defined]
    snapshot = _core.snapshot(
        (), [], scan_for=(Base,), report=(), libraries=Libraries((), ()), running_code=_running()
    )
    assert snapshot.candidates == []
    assert any(one is local for one in snapshot.externally_referenced)


def test_a_captured_local_variable_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    local = Base()

    def inner() -> object:
        return local

    assert is_in_use()
    assert inner() is not None


def test_a_value_on_the_stack_of_an_expression_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    # The object is on the stack while the second operand is computed, and in no variable.
    result = (Base(), is_in_use())
    assert result[1]


def test_a_list_under_construction_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    assert [[Base(), 1], is_in_use()][1]


def test_the_items_of_a_loop_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    for last in ([None], [Base()]):
        if last[0] is None:
            assert is_in_use()


def test_arguments_of_running_calls_are_in_use(is_in_use: Callable[..., bool]) -> None:
    def callee(*args: object, **kwargs: object) -> bool:
        return is_in_use()

    assert callee(Base())
    assert callee(key=Base())
    assert functools.partial(callee, Base())()


def test_a_bound_method_that_runs_keeps_in_use(libraries: Libraries) -> None:
    class Runner(Base):
        def run(self) -> _core.Snapshot:
            return _core.snapshot(
                (), [], scan_for=(Runner,), report=(), libraries=libraries, running_code=_running()
            )

    assert len(Runner().run().externally_referenced) == 1


def test_a_running_generator_holds_and_a_forgotten_one_does_not(is_in_use: Callable[..., bool]) -> None:
    answers = []

    def nested() -> None:
        answers.append(is_in_use())

    def generator() -> Iterator[None]:
        local = [Base()]
        nested()
        yield
        nested()
        del local

    FORGOTTEN.generator = generator()  # type: ignore[attr-defined]
    next(FORGOTTEN.generator)  # type: ignore[attr-defined]
    answers.append(is_in_use())
    next(FORGOTTEN.generator, None)  # type: ignore[attr-defined]
    assert answers == [True, False, True]


def test_a_generator_that_a_loop_waits_for_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    def generator() -> Iterator[int]:
        local = Base()
        yield 1
        del local

    for _ in generator():
        assert is_in_use()


def test_coroutines_that_wait_for_a_running_one_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    async def inner() -> bool:
        return is_in_use()

    async def outer() -> bool:
        local = Base()
        answer = await inner()
        del local
        return answer

    assert asyncio.run(outer())


def test_an_exception_being_handled_holds_and_a_finished_one_does_not(
    is_in_use: Callable[..., bool],
) -> None:
    def fail() -> None:
        local = Base()  # noqa: F841
        raise ValueError

    try:
        fail()
    except ValueError as error:
        assert is_in_use()
        FORGOTTEN.error = error  # type: ignore[attr-defined]
    assert not is_in_use()


@pytest.mark.parametrize("name", ["last_value", "last_traceback"])
def test_a_finished_exception_of_sys_is_not_in_use(name: str, is_in_use: Callable[..., bool]) -> None:
    def fail() -> None:
        local = Base()  # noqa: F841
        raise ValueError

    try:
        fail()
    except ValueError as error:
        setattr(sys, name, error if name == "last_value" else error.__traceback__)
    try:
        assert not is_in_use()
    finally:
        delattr(sys, name)


def test_local_variables_of_other_threads_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
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
        assert is_in_use()
    finally:
        leave.set()
        thread.join()


def test_c_code_keeps_in_use(is_in_use: Callable[..., bool]) -> None:
    FORGOTTEN.held = Base()  # type: ignore[attr-defined]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(FORGOTTEN.held))  # type: ignore[attr-defined]
    try:
        assert is_in_use()
    finally:
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(FORGOTTEN.held))  # type: ignore[attr-defined]
    assert not is_in_use()


def test_what_externally_referenced_objects_reach_is_no_candidate(libraries: Libraries) -> None:
    local = Base()
    local.deep = Holder()  # type: ignore[attr-defined]
    local.deep.held = Base()  # type: ignore[attr-defined]
    snapshot = _core.snapshot(
        (), [], scan_for=(Base,), report=(Base,), libraries=libraries, running_code=_running()
    )
    assert len(snapshot.externally_referenced) == 1
    assert snapshot.candidates == []
    assert snapshot.kept == []
    assert len(snapshot.kept_by_running_code) == 2


def test_a_reference_of_an_object_to_itself_is_not_external(libraries: Libraries) -> None:
    FORGOTTEN.held = Base()  # type: ignore[attr-defined]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(FORGOTTEN.held))  # type: ignore[attr-defined]
    try:
        known = _core.IdSet([FORGOTTEN.held])  # type: ignore[attr-defined]
        for self_referenced, expected in ((None, 1), (known, 0)):
            snapshot = _core.snapshot(
                (),
                [],
                scan_for=(Base,),
                report=(),
                libraries=libraries,
                running_code=_running(),
                self_referenced=self_referenced,
            )
            assert len(snapshot.externally_referenced) == expected
    finally:
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(FORGOTTEN.held))  # type: ignore[attr-defined]
        vars(FORGOTTEN).clear()


def test_references_from_an_earlier_snapshot_are_not_external(
    is_in_use: Callable[..., bool], libraries: Libraries
) -> None:
    FORGOTTEN.held = Base()  # type: ignore[attr-defined]
    earlier = _core.snapshot((), [], scan_for=(Base,), report=(), libraries=libraries)
    assert not is_in_use()
    assert len(earlier.candidates) == 1
