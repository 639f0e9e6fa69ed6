"""Objects in globals of libraries are spared, in containers of every kind."""

from __future__ import annotations

import contextvars
import importlib
import itertools
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import is_purged

from tests.unit.installed_packages import package


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An imported package in a folder of libraries."""
    folder = tmp_path / "installed"
    folder.mkdir()
    name = package(folder)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module(name)
    del sys.modules[name]


def _generator() -> Iterator[torch.Tensor]:
    kept = torch.ones(4)
    while True:
        yield kept


def _suspended() -> Iterator[torch.Tensor]:
    generator = _generator()
    next(generator)
    return generator


def _context(x: torch.Tensor) -> contextvars.Context:
    context = contextvars.Context()
    context.run(contextvars.ContextVar[torch.Tensor]("x").set, x)
    return context


def _weakly(x: torch.Tensor) -> object:
    return weakref.ref(Path, lambda _: x)


PLACES: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[Any], Any]]] = {
    "namespace": (lambda x: types.SimpleNamespace(x=x), lambda of: of.x),
    "proxy of a dict": (lambda x: types.MappingProxyType({"x": x}), lambda of: of["x"]),
    "default of a context variable": (lambda x: contextvars.ContextVar("x", default=x), lambda of: of.get()),
    "context": (_context, lambda of: next(iter(of.values()))),
    "callback of a weak reference": (_weakly, lambda of: of.__callback__.__closure__[0].cell_contents),
    "cycle": (lambda x: itertools.cycle([x]), next),
    "iterator": (lambda x: iter([x]), next),
    "enumeration": (lambda x: enumerate([x]), lambda of: next(of)[1]),
    "values": (lambda x: {"x": x}.values(), lambda of: next(iter(of))),
}


@pytest.mark.parametrize("place", PLACES)
def test_containers_in_globals_of_libraries_are_traversed(place: str, library: Any, program: Any) -> None:
    make, take = PLACES[place]
    library.kept = make(torch.ones(4))
    program.leak = torch.ones(5)
    fastpurge.sweep(keep=())
    assert is_purged(program.leak)
    assert not is_purged(take(library.kept))


def test_a_suspended_generator_of_a_library_can_resume(library: Any) -> None:
    library.kept = _suspended()
    fastpurge.sweep(keep=())
    assert not is_purged(next(library.kept))


@pytest.mark.parametrize("place", ["class", "dict"])
def test_class_attributes_of_libraries_are_spared_wherever_the_class_is(place: str, library: Any) -> None:
    def body(namespace: dict[str, Any]) -> None:
        namespace.update(__module__=library.__name__, cache={"x": torch.ones(4)})

    inner = types.new_class("Inner", exec_body=body)
    if place == "class":
        outer = {"__module__": library.__name__, "Inner": inner}
        library.Outer = types.new_class("Outer", exec_body=lambda namespace: namespace.update(outer))
    else:
        library.registry = {"inner": inner}
    fastpurge.sweep(keep=())
    assert not is_purged(inner.cache["x"])  # type: ignore[attr-defined]


def test_attributes_of_a_class_replaced_by_a_decorator_are_spared(library: Any) -> None:
    def body(namespace: dict[str, Any]) -> None:
        namespace.update(__module__=library.__name__, cache={"x": torch.ones(4)})

    replaced = types.new_class("Replaced", exec_body=body)
    library.Replaced = lambda: replaced
    fastpurge.sweep(keep=())
    assert not is_purged(replaced.cache["x"])  # type: ignore[attr-defined]


def test_references_of_a_c_module_outside_its_namespace_are_spared() -> None:
    readline = pytest.importorskip("readline")
    before = readline.get_completer()

    def complete() -> Callable[..., bool]:
        needed = torch.ones(4)
        return lambda *_: is_purged(needed)

    readline.set_completer(complete())
    try:
        fastpurge.sweep(keep=())
        assert readline.get_completer()() is False
    finally:
        readline.set_completer(before)


def test_a_module_created_by_a_library_belongs_to_it(library: Any, tmp_path: Path) -> None:
    made: Any = types.ModuleType(f"{library.__name__}.made")
    made.__file__ = str(tmp_path / "cache" / "made.py")
    made.constant = torch.ones(4)
    alone: Any = types.ModuleType("made_alone")
    alone.__file__ = made.__file__
    alone.constant = torch.ones(4)
    sys.modules[made.__name__], sys.modules[alone.__name__] = made, alone
    try:
        fastpurge.sweep(keep=())
        assert not is_purged(made.constant)
        assert is_purged(alone.constant)
    finally:
        del sys.modules[made.__name__], sys.modules[alone.__name__]


def test_a_module_whose_name_is_no_text_ends_no_sweep(program: Any) -> None:
    # A custom node's module is named after its folder, which may be in another encoding.
    module: Any = types.ModuleType("custom_nodes/caf\udce9")
    module.latent = torch.ones(4)
    sys.modules[module.__name__] = module
    try:
        assert fastpurge.census().count
        assert fastpurge.why(module.latent).path
        fastpurge.sweep(keep=())
        assert is_purged(module.latent)
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize("is_library", [False, True])
def test_a_module_belongs_to_the_folder_on_its_package_path(
    is_library: bool, library: Any, tmp_path: Path
) -> None:
    # As added by `pkgutil.extend_path`.
    folder = tmp_path / ("site-packages" if is_library else "program")
    folder.mkdir()
    library.__path__.append(str(folder))
    sys.path.append(str(folder))
    (folder / "mine.py").write_text("import torch\nkept = torch.ones(4)\n")
    mine = importlib.import_module(f"{library.__name__}.mine")
    try:
        fastpurge.sweep(keep=())
        assert is_purged(mine.kept) is not is_library
    finally:
        sys.path.remove(str(folder))
        del sys.modules[mine.__name__]
