"""`Guard.LIBRARY` spares the state of libraries."""

from __future__ import annotations

import functools
import gc
import itertools
import threading
import types
import typing
from collections.abc import Callable, Iterator
from multiprocessing import util
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard, is_purged
from fastpurge.python_facts import library_globals
from torch.nn.modules import module
from torch.optim import optimizer


class Callback:
    """A callable object of the program."""

    def __init__(self, read: Any, table: Any) -> None:
        self.read, self.table = read, table

    def __call__(self, *_: Any) -> None:
        self.read(self.table)

    def method(self, *_: Any) -> None:
        self.read(self.table)


class Removable:
    def __init__(self, remove: Callable[[], object]) -> None:
        self.remove = remove


nodes: list[type] = []


def _register_pytree(flatten: Any) -> Removable:
    node = type("Node", (), {"__module__": "torch.fastpurge"})
    torch.utils._pytree.register_pytree_node(
        node,
        lambda one: flatten(one) or ([], None),
        lambda *_: node(),
        serialized_type_name=f"fastpurge.Node{id(node)}",
    )
    nodes.append(node)

    def remove() -> None:
        torch.utils._pytree._deregister_pytree_node(node)
        nodes.remove(node)

    return Removable(remove)


def _flatten_each() -> None:
    for node in nodes:
        torch.utils._pytree.tree_flatten(node())


def _register_finalizer(function: Any) -> Removable:
    return Removable(util.Finalize(None, print, args=(function,), exitpriority=0).cancel)


def _call_each_finalizer() -> None:
    registry: Any = vars(util)["_finalizer_registry"]
    for one in [*registry.values()]:
        if one._callback is print:
            one._args[0]()


def _step() -> None:
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]).step()


HOOKS: dict[str, tuple[Callable[[Any], Any], Callable[[], object]]] = {
    "forward hook": (module.register_module_forward_hook, lambda: torch.nn.Identity()(torch.ones(1))),
    "forward pre-hook": (module.register_module_forward_pre_hook, lambda: torch.nn.Identity()(torch.ones(1))),
    "registration hook": (
        module.register_module_parameter_registration_hook,
        lambda: torch.nn.Identity().register_parameter("parameter", torch.nn.Parameter(torch.ones(1))),
    ),
    "optimizer hook": (optimizer.register_optimizer_step_pre_hook, _step),
    "pytree node": (_register_pytree, _flatten_each),
    "finalizer": (_register_finalizer, _call_each_finalizer),
}


def _hook(read: Callable[[], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *_: read()


def _suspended(value: torch.Tensor) -> Iterator[torch.Tensor]:
    yield value
    while True:
        yield value


def _started(value: torch.Tensor) -> Iterator[torch.Tensor]:
    generator = _suspended(value)
    next(generator)
    return generator


def _in_namespace(value: torch.Tensor) -> Any:
    state = types.SimpleNamespace(value=value)
    return _hook(lambda: state.value)


def _in_iterator(value: torch.Tensor) -> Any:
    iterator = itertools.cycle([value])
    return _hook(lambda: next(iterator))


def _in_generator(value: torch.Tensor) -> Any:
    return _hook(_started(value).__next__)


def _in_proxy(value: torch.Tensor) -> Any:
    proxy = types.MappingProxyType({"value": value})
    return _hook(lambda: proxy["value"])


def _in_class(value: torch.Tensor) -> Any:
    class Base:
        referent = value

    class Derived(Base):
        @classmethod
        def hook(cls, *_: Any) -> torch.Tensor:
            return cls.referent

    return Derived.hook


class Stats:
    """A module-level class of the program."""

    referent: torch.Tensor

    @classmethod
    def hook(cls, *_: Any) -> torch.Tensor:
        return cls.referent


def _in_own_class(value: torch.Tensor) -> Any:
    Stats.referent = value
    return Stats.hook


CLOSURES = {
    "namespace": _in_namespace,
    "iterator": _in_iterator,
    "generator": _in_generator,
    "proxy": _in_proxy,
    "class of a function": _in_class,
    "class of the program": _in_own_class,
}


class TestLibrary:
    """The state of a library is spared."""

    @pytest.fixture
    def library(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        # Beside torch, in a folder of libraries.
        import torch.utils.hooks as library

        class Class:
            pass

        Class.__module__ = library.__name__
        monkeypatch.setattr(library, "fastpurge_value", torch.ones(10), raising=False)
        monkeypatch.setattr(library, "fastpurge_table", {"k": [torch.ones(10)]}, raising=False)
        monkeypatch.setattr(library, "fastpurge_model", torch.nn.Linear(4, 4), raising=False)
        monkeypatch.setattr(library, "FastpurgeClass", Class, raising=False)
        Class.value = torch.ones(10)  # type: ignore[attr-defined]
        yield library
        # Clear the rest, so that no other test finds it.
        del Class.value  # type: ignore[attr-defined]

    def test_globals_and_class_attributes_of_libraries_are_spared_with_their_contents(
        self, library: Any
    ) -> None:
        report = fastpurge.sweep(keep=())
        assert library.fastpurge_value.sum() == 10
        assert library.fastpurge_table["k"][0].sum() == 10
        assert library.fastpurge_model(torch.ones(4)).shape == (4,)
        assert library.FastpurgeClass.value.sum() == 10
        assert report.spared["library"] >= 120

    def test_library_state_of_the_last_sweep_is_checked_first(
        self, library: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = fastpurge.sweep(keep=())
        library_state = library_globals.library_state

        def where_known(scan_for: tuple[type, ...], *, where_known: bool = False) -> list[Any]:
            assert where_known, "asked everywhere"
            return library_state(scan_for, where_known=True)

        monkeypatch.setattr(library_globals, "library_state", where_known)
        second = fastpurge.sweep(keep=())
        assert second.spared["library"] == first.spared["library"]
        assert library.fastpurge_value.sum() == library.FastpurgeClass.value.sum() == 10

    def test_former_library_state_is_released(
        self, library: Any, program: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fastpurge.sweep(keep=())
        program.referent = library.fastpurge_value
        library.fastpurge_value = None  # `monkeypatch` restores it
        monkeypatch.setattr(library, "fastpurge_other", torch.ones(5), raising=False)
        fastpurge.sweep(keep=())
        assert is_purged(program.referent)
        assert library.fastpurge_other.sum() == 5

    def test_without_the_guard_library_state_is_released(self, library: Any) -> None:
        fastpurge.sweep(keep=())  # the second search knows its globals
        fastpurge.sweep(keep=(), guards=Guard.RUNNING)
        assert is_purged(library.fastpurge_value)
        assert is_purged(library.fastpurge_model)

    def test_results_that_a_library_caches_are_state_and_arguments_are_not(
        self, library: Any, program: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @functools.lru_cache
        def cached(_: object) -> torch.Tensor:
            return torch.ones(10)

        program.argument = torch.ones(3)
        monkeypatch.setattr(library, "fastpurge_cached", cached, raising=False)
        del cached
        library.fastpurge_cached(program.argument)
        library.fastpurge_cached(None)
        fastpurge.sweep(keep=())
        assert library.fastpurge_cached(None).sum() == 10
        assert is_purged(program.argument)

    @pytest.mark.imports_much
    def test_jagged_tensors_can_be_made_after_a_sweep(self) -> None:
        # torch.nested has a dummy tensor in its globals; without it no jagged tensor can be made.
        make = "torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)"
        eval(make)
        fastpurge.sweep(keep=())
        assert eval(make).is_nested

    def test_globals_of_the_program_are_no_library_state(self, program: Any) -> None:
        program.tensor = torch.ones(3)
        program.Class = type("Class", (), {"value": torch.ones(3), "__module__": program.__name__})
        fastpurge.sweep(keep=())
        assert is_purged(program.tensor)
        assert is_purged(program.Class.value)

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[pytest.mark.imports_much] if name == "optimizer hook" else [])
            for name in HOOKS
        ],
    )
    @pytest.mark.parametrize("deep", [False, True])
    def test_callbacks_registered_with_a_library_keep_their_values(self, name: str, deep: bool) -> None:
        results: list[float] = []
        table: Any = {"layer": [(torch.ones(3),)]} if deep else torch.ones(3)

        def read(table: Any, *_: Any) -> None:
            results.append((table["layer"][0][0] if deep else table).sum().item())

        register, call = HOOKS[name]
        handles = [
            register(lambda *_, table=table: read(table)),
            register(functools.partial(read, table)),
            register(Callback(read, table)),
            register(Callback(read, table).method),
        ]
        del table
        try:
            fastpurge.sweep(keep=(), guards=Guard.ALL & ~Guard.RUNNING)
            call()
            assert {*results} == {3.0}
            assert len(results) >= len(handles)
        finally:
            for handle in handles:
                handle.remove()

    @pytest.mark.parametrize("name", CLOSURES)
    def test_hooks_of_every_kind_keep_their_values(self, name: str) -> None:
        hook = CLOSURES[name](torch.ones(3))
        handle = module.register_module_forward_hook(hook)
        try:
            del hook
            fastpurge.sweep(keep=(), guards=Guard.ALL & ~Guard.RUNNING)
            assert torch.nn.Identity()(torch.ones(1)).sum() == 3
        finally:
            handle.remove()

    def test_a_call_in_a_running_thread_is_no_registered_callback(self, program: Any) -> None:
        class Server:
            def __init__(self) -> None:
                self.cache, self.stop = torch.ones(3), threading.Event()

            def loop(self, _: Any) -> None:
                self.stop.wait()

        server = Server()
        callback = Callback(print, torch.ones(3))
        program.cache, program.table = server.cache, callback.table
        thread = threading.Thread(target=server.loop, args=(callback,))
        thread.start()
        stop = server.stop
        del server, callback
        try:
            fastpurge.sweep(keep=[stop])
            assert is_purged(program.cache)
            assert is_purged(program.table)
        finally:
            stop.set()
            thread.join()

    def test_entries_of_typing_caches_are_no_callbacks(self, program: Any) -> None:
        def annotate() -> None:
            class Row:
                table = program.table = torch.ones(3)

            service = Callback(print, torch.ones(4))
            program.value = service.table
            typing.List[Row]  # noqa: UP006
            typing.Annotated[int, service.method]

        annotate()
        gc.collect()
        fastpurge.sweep(keep=())
        assert is_purged(program.table)
        assert is_purged(program.value)

    def test_functions_and_coroutines_of_cython_belong_to_a_library(self) -> None:
        extension = pytest.importorskip("yaml._yaml")
        # typing's wrapper copies `__module__` to each function; it is no callback of a library.
        assert not isinstance(
            type.__dict__["__dict__"].__get__(type(extension.get_version))["__module__"], str
        )
        found = library_globals.library_state((torch.Tensor,))
        assert not any(type(one) is type(extension.get_version) for one in found)

    @pytest.mark.parametrize("how", ["a tensor", "an object", "a method"])
    def test_a_global_module_hook_keeps_everything_reachable_from_it(self, program: Any, how: str) -> None:
        class Scale:
            def __init__(self) -> None:
                self.factor = torch.full((3,), 2.0)

            def hook(self, _: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
                return out * self.factor

        def capture(referent: Any) -> Any:
            return lambda _, __, out: out * (referent.factor if how == "an object" else referent)

        register: Any = torch.nn.modules.module.register_module_forward_hook
        handle = register(
            Scale().hook
            if how == "a method"
            else capture(Scale() if how == "an object" else torch.full((3,), 2.0))
        )
        program.model = torch.nn.Identity()
        try:
            fastpurge.sweep(keep=[program.model], guards=Guard.ALL & ~Guard.RUNNING)
            assert program.model(torch.ones(3)).tolist() == [2, 2, 2]
        finally:
            handle.remove()
