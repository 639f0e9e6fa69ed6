"""Values survive a sweep that a finalizer, a signal, an import or the collector calls, and in C memory."""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import importlib.abc
import importlib.machinery
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import is_purged

from tests.unit.engine.values_in_use import four, reads, sweep, through, total


class TestWhoSweeps:
    """The code that was interrupted, and the code that sweeps, have their values afterwards."""

    def test_a_callback_of_the_collector_can_sweep(self) -> None:
        totals: list[float] = []

        def callback(phase: str, _: object) -> None:
            if not totals:
                local = [four()]
                totals.append(0)
                sweep()
                totals.append(total(local[0]))

        gc.callbacks.append(callback)
        try:
            parts = [four(), [gc.collect(0)]]
        finally:
            gc.callbacks.remove(callback)
        assert [*totals, total(parts[0])] == [0, 4, 4]

    def test_a_finalizer_can_sweep(self) -> None:
        totals: list[float] = []

        class Resource:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                local = [four()]
                sweep()
                totals.append(total(local[0]))

        Resource()
        assert total(_given(four(), gc.collect())[0]) == 4
        assert totals == [4]

    def test_callbacks_of_weak_references_can_sweep(self) -> None:
        class Resource: ...

        totals: list[float] = []

        def after(read: Callable[[], float]) -> Callable[..., None]:
            return lambda *_: totals.append(through(read)())

        resource = Resource()
        reference = weakref.ref(resource, after(reads(four())))
        weakref.finalize(resource, lambda value: totals.append(total(through(value))), four())
        del resource
        assert reference() is None
        assert totals == [4, 4]

    @pytest.mark.skipif(sys.platform == "win32", reason="a timer of signals is needed")
    def test_a_signal_handler_can_sweep_while_a_program_computes(self) -> None:
        totals: list[float] = []

        def handle(*_: object) -> None:
            local = [four()]
            sweep()
            totals.append(total(local[0]))

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            deadline = time.monotonic() + 60
            while not totals and time.monotonic() < deadline:
                parts = [torch.ones(8) * at for at in range(5)]
                assert sum(total(one) for one in parts) == 80
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert totals == [4]

    def test_an_import_hook_can_sweep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def find_spec(self, fullname: str, path: object, target: object = None) -> Any:
                if fullname == "module_of_a_hook":
                    return importlib.machinery.ModuleSpec(fullname, self)
                return None

            def exec_module(self, module: Any) -> None:
                local = [four()]
                sweep()
                module.total = total(local[0])

        monkeypatch.setattr(sys, "meta_path", [Hook(), *sys.meta_path])
        try:
            values = [four(), importlib.import_module("module_of_a_hook").total]
        finally:
            sys.modules.pop("module_of_a_hook", None)
        assert (total(values[0]), values[1]) == (4, 4)

    def test_code_that_runs_when_python_exits_can_sweep(self) -> None:
        program = """
        import atexit, fastpurge, gc, sys, threading, torch, weakref

        def go(name, *values):
            local = [torch.ones(4)]
            fastpurge.sweep(keep=())
            print(name, *(float(one.sum()) for one in (*local, *values)), flush=True)

        class Resource:
            pass

        resource = Resource()
        threading._register_atexit(go, "thread", torch.ones(4))
        atexit.register(go, "atexit", torch.ones(4))
        weakref.finalize(resource, go, "finalizer", torch.ones(4))
        threading.Thread(target=lambda value: go("non-daemon", value), args=(torch.ones(4),)).start()
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        said = sorted(done.stdout.split("\n"))
        assert said == ["", *(f"{name} 4.0 4.0" for name in ("atexit", "finalizer", "non-daemon", "thread"))]


class TestTheCollector:
    def test_values_are_kept_while_the_collector_saves_all_garbage(self) -> None:
        class Cycle: ...

        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            cycle: Any = Cycle()
            cycle.itself, cycle.value = cycle, four()
            del cycle
            gc.collect()
            parts = [four()]
            sweep()
            assert total(parts[0]) == 4
        finally:
            gc.set_debug(0)
            gc.garbage.clear()

    def test_a_value_below_many_lists_is_kept(self) -> None:
        def nested(depth: int) -> list[Any]:
            one: list[Any] = [four()]
            for _ in range(depth):
                one = [one]
            return one

        def innermost(one: Any) -> Any:
            while isinstance(one, list):
                one = one[0]
            return one

        referent = nested(200_000)
        sweep()
        assert total(innermost(referent)) == 4


class TestMemory:
    """Memory of a tensor that C code has."""

    def test_functions_over_arrays_keep_their_values(self) -> None:
        universal, vectorized = np.frompyfunc(reads(four()), 1, 1), np.vectorize(reads(four()))
        objects = np.empty(2, dtype=object)
        objects[:] = [four(), four()]
        sweep()
        assert [*universal(np.arange(2)), *vectorized(np.arange(2))] == [4] * 4
        doubled = np.frompyfunc(lambda one: through(one) * 2, 1, 1)(objects)
        assert [total(one) for one in doubled] == [8, 8]

    @pytest.mark.parametrize(
        ("export", "read"),
        [
            (lambda x: memoryview(x.numpy()).cast("B"), lambda x: np.frombuffer(x, dtype=np.float32)),
            (lambda x: x.__dlpack__(), torch.utils.dlpack.from_dlpack),
            (np.from_dlpack, np.asarray),
            (lambda x: x.detach(), lambda x: x),
            (lambda x: x.untyped_storage(), lambda x: torch.tensor([]).set_(x)),
        ],
        ids=["memoryview", "capsule", "array of a capsule", "detached", "storage"],
    )
    def test_memory_that_was_exported_is_not_wiped(self, export: Any, read: Any, program: Any) -> None:
        program.tensor = torch.full((4,), 3.0)
        exported = export(program.tensor)
        fastpurge.sweep(keep=(), wipe=True)
        assert total(read(exported)) == 12

    def test_memory_of_an_array_is_not_wiped_with_a_tensor_on_it(self, program: Any) -> None:
        memory = array.array("f", [1, 2, 3])
        program.tensor = torch.frombuffer(memory, dtype=torch.float32)
        fastpurge.sweep(keep=(), wipe=True)
        assert is_purged(program.tensor)
        assert sum(memory) == 6

    def test_a_c_structure_keeps_the_value_of_its_callback(self) -> None:
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int)

        class Structure(ctypes.Structure):
            _fields_ = [("callback", callback_type)]

        def made(value: torch.Tensor) -> Structure:
            return Structure(callback_type(lambda: int(total(value))))

        structure = made(four())
        sweep()
        assert structure.callback() == 4

    def test_a_thread_local_of_a_library_keeps_the_values_of_each_thread(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library: Any = importlib.import_module("decimal")
        monkeypatch.setattr(library, "of_test", threading.local(), raising=False)
        library.of_test.value = four()
        ready, go, totals = threading.Event(), threading.Event(), []

        def work() -> None:
            library.of_test.value = four()
            ready.set()
            go.wait(60)
            totals.append(total(library.of_test.value))

        thread = threading.Thread(target=work)
        thread.start()
        ready.wait(60)
        sweep()
        go.set()
        thread.join()
        assert [*totals, total(library.of_test.value)] == [4, 4]


def _given(*arguments: Any) -> tuple[Any, ...]:
    return arguments
