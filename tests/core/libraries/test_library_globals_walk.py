"""Library globals: objects that imported libraries reference at module and class level."""

from __future__ import annotations

import functools
import subprocess
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastpurge import _core
from fastpurge._core import Libraries


class Base:
    pass


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An imported module in a folder of libraries."""
    (tmp_path / "some_library.py").write_text("class Class:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import some_library  # type: ignore[import-not-found]

    yield some_library
    del sys.modules["some_library"]


@pytest.fixture
def state(tmp_path: Path) -> Callable[[], list[Any]]:
    libraries = Libraries(((str(tmp_path), True), (sysconfig.get_path("stdlib"), True)), ())

    def ask() -> list[Any]:
        standard = sys.stdlib_module_names
        found = _core.library_globals(
            (Base,),
            libraries=libraries,
            modules={name for name in sys.modules if name.partition(".")[0] not in standard},
            containers=(list, tuple, dict),
            wrappers=(types.FunctionType, types.CellType, staticmethod, functools.partial),
            caches=(functools._lru_cache_wrapper,),
            depth=3,
        )
        return [obj for obj, _ in found]

    return ask


def test_module_level_values_are_state(package: Any, state: Callable[[], list[Any]]) -> None:
    package.value = Base()
    package.table = {"k": [(Base(),)]}
    assert {id(x) for x in state()} == {id(package.value), id(package.table["k"][0][0])}


def test_modules_can_be_named(package: Any, tmp_path: Path) -> None:
    package.value = Base()
    libraries = Libraries(((str(tmp_path), True),), ())

    def of(modules: set[str] | None) -> list[tuple[Any, str]]:
        return _core.library_globals((Base,), libraries=libraries, containers=(), depth=1, modules=modules)

    assert of(None) == of({"some_library", "never_imported"}) == [(package.value, "some_library")]
    assert of({"never_imported"}) == of(set()) == []
    # A module in `modules` that is no library is ignored.
    globals()["value"] = Base()
    try:
        assert of({__name__}) == []
    finally:
        del globals()["value"]


def test_class_level_values_are_state(package: Any, state: Callable[[], list[Any]]) -> None:
    package.Class.value = Base()
    package.Class.table = {"k": Base()}
    assert {id(x) for x in state()} == {id(package.Class.value), id(package.Class.table["k"])}


def test_deeper_values_and_values_of_nested_instances_are_not(
    package: Any, state: Callable[[], list[Any]]
) -> None:
    package.deep = [[[[Base()]]]]
    package.instance = package.Class()
    package.instance.other = package.Class()
    package.instance.other.value = Base()
    assert state() == []


def test_the_programs_own_modules_are_not(package: Any, state: Callable[[], list[Any]]) -> None:
    own: Any = types.ModuleType("own_program")
    own.value = Base()
    own.Class = type("Class", (), {"value": Base(), "__module__": "own_program"})
    sys.modules["own_program"] = own
    try:
        assert state() == []
        package.imported_class = own.Class  # a library that refers to the program's class
        assert state() == []
    finally:
        del sys.modules["own_program"]


def test_main_is_not_a_library_in_any_folder(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from fastpurge import _core\n"
        "class Base: pass\n"
        "value = Base()\n"
        f"libraries = _core.Libraries((({str(tmp_path)!r}, True),), ())\n"
        "print(_core.library_globals((Base,), libraries=libraries, containers=(), depth=1))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_entries_of_sys_modules_that_are_no_modules_are_ignored(
    state: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "a_none", None)
    monkeypatch.setitem(sys.modules, "an_object", Base())
    assert state() == []


def test_modules_hidden_by_gc_freeze_are_a_boundary() -> None:
    program = """
import gc, types, sys
from fastpurge import _core
class Base: pass
module = types.ModuleType("frozen")
exec("def function(): return hidden", module.__dict__)
module.hidden = Base()
sys.modules["frozen"] = module
gc.collect(); gc.freeze()
late = Base()
print(module.hidden in _core.closure((module.function,), libraries=_core.Libraries((), ())))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Key(Base):
    """A key of a cache."""


@pytest.mark.parametrize("maxsize", [None, 8])
def test_the_results_in_a_cache_are_state_and_its_keys_are_not(
    package: Any, state: Callable[[], list[Any]], maxsize: int | None
) -> None:
    result, key = Base(), Key()
    package.cached = functools.lru_cache(maxsize)(lambda *_: [result])
    package.cached(key)
    package.cached(key, 1)
    assert state() == [result]


def test_values_of_functions_and_decorators_are_state(package: Any, state: Callable[[], list[Any]]) -> None:
    captured, default, cached, attribute = (Base() for _ in range(4))

    def table() -> Base:
        return cached

    def wrapper(x: Base = default) -> object:
        return captured, remembered, x

    remembered = functools.cache(table)
    remembered()
    wrapper.attribute = attribute  # type: ignore[attr-defined]
    package.Class.method = staticmethod(wrapper)
    package.hooks = {1: functools.partial(wrapper)}
    found = {id(x) for x in state()}
    assert found == {id(x) for x in (captured, default, cached, attribute)}


def test_an_attribute_of_a_singleton_is_state(package: Any, state: Callable[[], list[Any]]) -> None:
    package.singleton = package.Class()
    package.singleton.value = Base()
    package.singleton.table = {"k": Base()}
    singleton = package.singleton
    assert {id(x) for x in state()} == {id(singleton.value), id(singleton.table["k"])}


def test_the_namespace_of_a_program_is_not_a_librarys(package: Any, state: Callable[[], list[Any]]) -> None:
    own: Any = types.ModuleType("own_program")
    own.value = Base()
    sys.modules["own_program"] = own
    package.user_ns = vars(own)
    try:
        assert state() == []
    finally:
        del sys.modules["own_program"]


def test_a_walk_ends_if_a_cycle_reaches_an_object_at_two_distances(
    package: Any, state: Callable[[], list[Any]]
) -> None:
    # The fillers evict all other objects from the table of recently visited objects.
    table: list[Any] = [object() for _ in range(100_000)]
    instance = package.Class()
    instance.table, instance.itself, instance.wrapper = table, instance, staticmethod(table)  # type: ignore[arg-type]
    table += [Base(), instance.wrapper, instance]
    package.function = lambda: table
    assert state() == [table[-3]]


@pytest.mark.parametrize("first", ["module", "function"])
def test_what_a_root_object_references_is_state_whatever_is_visited_first(
    first: str, package: Any, tmp_path: Path
) -> None:
    class Root:
        pass

    Root.__module__ = package.__name__
    root: Any = Root()
    root.history = [Base()]
    holder = [root]
    places = {"module": [[[holder]]], "function": lambda: holder}
    for place in dict.fromkeys((first, *places)):  # the order of a namespace
        setattr(package, place, places[place])
    found = _core.library_globals(
        (Base,),
        libraries=Libraries(((str(tmp_path), True),), ()),
        containers=(list, dict),
        wrappers=(types.FunctionType, types.CellType),
        root_objects=((Root,), ()),
        depth=9,
    )
    assert [obj for obj, _ in found] == root.history


@pytest.mark.parametrize("first", ["dict", "function"])
def test_a_class_made_by_a_function_is_found_whatever_is_visited_first(
    first: str, package: Any, state: Callable[[], list[Any]]
) -> None:
    made = type("made", (), {"__module__": package.__name__, "__qualname__": "make.<locals>.made"})
    places = {"dict": {"k": made}, "function": lambda: made}
    for place in dict.fromkeys((first, *places)):
        setattr(package, place, places[place])
    assert state() == [made]
