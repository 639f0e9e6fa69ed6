"""A watch survives errors of its callbacks and of the operating system, and checks its arguments."""

from __future__ import annotations

import threading
import warnings
import weakref
from typing import Any

import fastpurge
import psutil
import pytest
import torch
from fastpurge import is_purged, safe_point

from tests.unit.automatic.watch_helpers import MIB, is_due, mebibytes, until, watch_above

pytestmark = pytest.mark.usefixtures("main_thread_takes_part")


# Errors


def test_a_keep_that_raises_warns_once_sweeps_nothing_and_is_tried_again(program: Any) -> None:
    referent: list[weakref.ref[Any]] = []
    calls = []

    def keep() -> tuple[()]:
        calls.append(threading.current_thread())
        purged.append(is_purged(program.leak))
        if len(calls) < 3:
            batch = torch.ones(3)
            referent.append(weakref.ref(batch))
            raise KeyError("no model is loaded")
        return ()

    program.leak = mebibytes(100)
    purged: list[bool] = []
    expected = "nothing was swept: KeyError: 'no model is loaded'"
    with (
        pytest.warns(RuntimeWarning, match=expected) as recorded,
        watch_above(-50, keep) as watch,
        safe_point(),
    ):
        until(lambda: watch.sweeps)
    assert len(recorded) == 1
    assert purged == [False] * 3
    assert is_purged(program.leak)
    assert type(watch.last_error) is KeyError
    assert [reference() for reference in referent] == [None, None]  # the error keeps no local of `keep` alive


@pytest.mark.parametrize("kept", ["model", None, iter(())], ids=["a name", "nothing", "an iterator"])
def test_an_invalid_result_of_keep_warns_and_sweeps_nothing(kept: object, program: Any) -> None:
    program.leak = mebibytes(1)
    watch = watch_above(-50, lambda: kept)
    with pytest.warns(RuntimeWarning, match="nothing was swept: TypeError: keep must"), watch, safe_point():
        until(lambda: watch.last_error)
    assert watch.sweeps == 0
    assert not is_purged(program.leak)


def test_an_on_sweep_that_raises_warns_and_the_sweep_counts(program: Any) -> None:
    def fail(_: object) -> None:
        raise OSError("the log is full")

    program.leak = mebibytes(100)
    watch = watch_above(-50, on_sweep=fail)
    with pytest.warns(RuntimeWarning, match="on_sweep failed: OSError: the log is full"), watch, safe_point():
        until(lambda: watch.last_error)
    assert watch.sweeps == len(watch.reports) == 1


def test_a_warning_raised_as_an_error_does_not_stop_the_watch(program: Any) -> None:
    def keep() -> object:
        raise KeyError("no model is loaded")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch_above(50, keep) as watch:
            program.leak = mebibytes(100)
            until(lambda: is_due(watch))
            with safe_point():
                until(lambda: watch.last_error)
            assert "stopped" not in repr(watch)
    assert type(watch.last_error) is KeyError


def test_a_failing_memory_reading_warns_and_is_repeated(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.leak = mebibytes(100)
    read = psutil.Process.memory_info
    failures = [OSError("not now")]

    def memory_info(process: psutil.Process) -> Any:
        if failures and threading.current_thread().name == "fastpurge.watch":
            raise failures.pop()
        return read(process)

    monkeypatch.setattr(psutil.Process, "memory_info", memory_info)
    watch = watch_above(-50)
    with (
        pytest.warns(RuntimeWarning, match="memory could not be read: OSError: not now"),
        watch,
        safe_point(),
    ):
        until(lambda: watch.sweeps)
    assert is_purged(program.leak)


BAD: dict[str, list[Any]] = {
    "above": [None, 0, -1, 90, True, 1.5, "90", "0%", "100%", "-5%", "ninety", "", b"90%"],
    "below": [0, 1.5, "90%", "95%", "0%", 5 * MIB, "x"],
    "every": [0, -1, None, "5", True, float("nan"), float("inf")],
    "keep": [None, (), [1], torch.nn.ReLU()],
    "device": [3, "gpu", "cuda:99", "meta", ["cpu"]],
    "on_sweep": [3, "print"],
    "devices": ["gpu", []],
    "models": [1],
    "wipe": [None],
    "min_bytes": [-1],
    "guards": ["ALL"],
    "collect": ["yes"],
    "label": [3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_bad_input_names_the_argument_and_starts_nothing(name: str, value: object) -> None:
    before = threading.active_count()
    arguments: dict[str, Any] = {"above": "90%", "keep": tuple, name: value}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        fastpurge.watch(**arguments)
    assert threading.active_count() == before
