"""An error of torch or of a device during a release: the rest is released, and the report says so.

No device is needed: the test makes the call of torch fail that would fail on a lost device.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, cast

import fastpurge
import pytest
import torch
from fastpurge import is_purged
from fastpurge.allocators import memory
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

LOST = [torch.OutOfMemoryError, getattr(torch, "AcceleratorError", RuntimeError)]


class Raising(TorchDispatchMode):
    """A dispatch mode that raises at every operator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError("not in my mode")


class RaisingFunctions(TorchFunctionMode):
    """A function mode that raises at every torch function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError("not in my mode")


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the overwritten storages, in bytes."""
    sizes: list[int] = []
    fill: Any = cast(Any, torch.UntypedStorage).fill_

    def note(storage: Any, value: int) -> None:
        fill(storage, value)
        assert not any(storage.tolist())
        sizes.append(storage.nbytes())

    monkeypatch.setattr(torch.UntypedStorage, "fill_", note)
    return sizes


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("wipe", [False, True])
def test_an_object_that_refuses_is_unchanged_and_the_rest_is_released(
    program: Any, at: int, wipe: bool
) -> None:
    program.all = [torch.full((3,), float(number)) for number in range(5)]
    program.all[at].attribute = torch.ones(2)
    # torch swaps no tensor that C++ refers to weakly (THPModule_swap_tensor_impl).
    weak = torch._C._WeakTensorRef(program.all[at])  # type: ignore[attr-defined]
    report = fastpurge.sweep(keep=(), wipe=wipe)
    assert [is_purged(one) for one in program.all] == [number != at for number in range(5)]
    assert program.all[at].tolist() == [at] * 3
    assert program.all[at].attribute.tolist() == [1, 1]
    assert len(report.released) == 4
    assert {item.shape for item in report.skipped} == {(3,), (2,)}
    assert all(item.reason for item in report.skipped)
    del weak


@pytest.mark.parametrize("error", LOST)
def test_a_failed_overwrite_is_reported_and_the_rest_is_overwritten(
    program: Any, filled: list[int], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    note = cast(Any, torch.UntypedStorage).fill_

    def fail(storage: Any, value: int) -> None:
        if storage.nbytes() == 80:
            raise error("the device is lost")
        note(storage, value)

    monkeypatch.setattr(torch.UntypedStorage, "fill_", fail)
    program.all = [torch.ones(10), torch.ones(20), torch.ones(30)]
    report = fastpurge.sweep(keep=(), wipe=True)
    assert all(map(is_purged, program.all))
    assert {40, 120} <= {*filled}
    [item] = [item for item in report.released if item.reason is not None]
    assert item.shape == (20,)
    assert item.reason == f"not overwritten: {error.__name__}: the device is lost"
    assert "not overwritten" in str(report)


@pytest.mark.parametrize(
    "mode",
    [
        Raising,
        RaisingFunctions,
        pytest.param(FakeTensorMode, marks=pytest.mark.imports_much),
        lambda: torch.device("meta"),
    ],
)
def test_a_torch_mode_of_the_caller_does_not_affect_a_sweep(
    program: Any, filled: list[int], mode: Any
) -> None:
    kept = torch.ones(5, requires_grad=True) * 3
    program.all = [torch.ones(10), torch.ones(20, requires_grad=True) * 2]
    program.model = torch.nn.Linear(2, 2)
    with mode():
        report = fastpurge.sweep(keep=[kept], wipe=True)
    assert kept.tolist() == [3] * 5
    assert all(map(is_purged, [*program.all, program.model]))
    assert {40, 80} <= {*filled}
    assert not any(item.reason for item in report.released)


def test_finalizers_that_raise_do_not_end_a_sweep(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mortal(torch.Tensor):
        def __del__(self) -> None:
            raise ValueError("at the end")

    class MortalModule(torch.nn.Module):
        def __del__(self) -> None:
            raise KeyboardInterrupt

    recorded: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: recorded.append(unraisable.exc_type))
    program.all = [torch.ones(3), torch.ones(3).as_subclass(Mortal), MortalModule(), torch.ones(3)]
    program.all[0].attribute = referent = type("Held", (), {})()
    finalizer = weakref.ref(referent, lambda _: 1 / 0)
    del referent
    report = fastpurge.sweep(keep=())
    assert all(map(is_purged, program.all))
    assert {item.type_name for item in report.released} == {
        "Tensor",
        Mortal.__qualname__,
        MortalModule.__qualname__,
    }
    assert {ValueError, KeyboardInterrupt, ZeroDivisionError} <= {*recorded}
    assert finalizer() is None


@pytest.mark.parametrize("error", LOST)
@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_device_that_is_lost_is_left_out_of_the_report(
    program: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception], lost: str
) -> None:
    program.tensor = torch.ones(3)

    def read(_: object) -> int:
        if lost == "before" or is_purged(program.tensor):
            raise error("the device is lost")
        return 7

    def fail() -> None:
        raise error("the device is lost")

    monkeypatch.setattr(memory, "_in_use", lambda backend: backend is torch.cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "memory_allocated", read)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 9)
    for name in ("ipc_collect", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, fail)
    report = fastpurge.sweep(keep=())
    assert is_purged(program.tensor)
    assert [item.shape for item in report.released] == [(3,)]
    assert ("cuda:0" in report.before.devices) == (lost == "after")
    assert "cuda:0" not in report.after.devices
    assert {*report.freed_by_device} == {"cpu"}
