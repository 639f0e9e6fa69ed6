"""Sweeps by themselves: when memory is too full, and never over and over for nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import fastpurge
import psutil
import pytest
import torch
from fastpurge import Watch, is_purged, safe_point
from fastpurge.allocators import pressure
from fastpurge.allocators.pressure import Threshold
from fastpurge.automatic import safe_points
from fastpurge.automatic import watch as watch_module

from tests.unit.automatic.watched import (
    MIB,
    SOON,
    is_due,
    leak_elsewhere,
    mebibytes,
    readings,
    resident,
    start,
    until,
    watch_above,
)

pytestmark = pytest.mark.usefixtures("main_thread_takes_part")


# When


def test_what_is_not_kept_goes_while_a_thread_waits_at_a_safe_point(program: Any) -> None:
    program.model = torch.arange(10.0)
    with watch_above(50, lambda: [program.model], label="the service") as watch:
        program.leak = mebibytes(100)
        with safe_point():
            until(lambda: watch.sweeps)
    (report,) = watch.reports
    assert report.label == "the service"
    assert report.freed_by_device["cpu"] > 75 * MIB
    assert is_purged(program.leak)
    assert program.model.tolist() == list(range(10))
    assert watch.last_error is None


def test_what_is_due_is_swept_by_the_thread_that_comes_to_a_safe_point(program: Any) -> None:
    threads = []

    def keep() -> tuple[()]:
        threads.append(threading.current_thread())
        return ()

    with watch_above(50, keep) as watch:
        program.leak = mebibytes(100)
        until(lambda: is_due(watch))
        readings(watch, 5)
        assert watch.sweeps == 0
        assert "waits for MainThread" in repr(watch)
        with safe_point():
            assert watch.sweeps == 1
        assert threads == [threading.current_thread()]
    assert is_purged(program.leak)


def test_nothing_is_swept_below_the_mark(program: Any) -> None:
    with watch_above(300) as watch:
        program.leak = mebibytes(100)
        with safe_point():
            readings(watch, 10)
        assert repr(watch) == f"<fastpurge.watch above {watch._threshold.above}: watching, 0 sweeps>"
    assert not is_purged(program.leak)


def test_what_has_gone_by_itself_meanwhile_is_no_reason_to_sweep(program: Any) -> None:
    program.small = mebibytes(1)
    with watch_above(50) as watch:
        passing = mebibytes(100)
        until(lambda: is_due(watch))
        watch._every = 3600  # it does not see for itself
        readings(watch, 1)
        del passing
        with safe_point():
            assert not is_due(watch)
    assert watch.sweeps == 0
    assert not is_purged(program.small)


def test_a_program_without_safe_points_is_never_swept_and_told_so_once(program: Any) -> None:
    vars(safe_points._here).clear()
    program.leak = mebibytes(100)
    line = sys._getframe().f_lineno + 1
    watch = fastpurge.watch(above=MIB, keep=tuple, every=SOON)
    with pytest.warns(RuntimeWarning, match="no safe point") as told, watch:
        readings(watch, 10)
    assert watch.sweeps == 0
    assert not is_purged(program.leak)
    assert [(one.filename, one.lineno) for one in told] == [(__file__, line)]


def test_a_share_is_that_of_the_machine(program: Any) -> None:
    memory = psutil.virtual_memory()
    assert abs(pressure.ram_share() - 100 * (1 - memory.available / memory.total)) < 20
    for above, due in (("0.01%", True), ("99.99%", False)):
        program.leak = mebibytes(1)
        with fastpurge.watch(above=above, keep=tuple, every=SOON) as watch, safe_point():
            readings(watch, 5)
        assert is_purged(program.leak) is due


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_a_device_is_watched(program: Any) -> None:
    program.leak = torch.ones(256 * MIB, dtype=torch.uint8, device="cuda")
    for above in (128 * MIB, "0.01%"):
        program.leak = torch.ones(256 * MIB, dtype=torch.uint8, device="cuda")
        with fastpurge.watch(above=above, keep=tuple, every=SOON, device="cuda") as watch, safe_point():
            readings(watch, 5)
        assert is_purged(program.leak)


def test_a_share_is_that_of_the_container_if_it_is_closer_to_its_limit(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/elsewhere\n0::/pods/one\n")
    inner = tmp_path / "root" / "pods" / "one"
    inner.mkdir(parents=True)

    def limit(folder: Path, most: object) -> None:
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("900\n")
        (folder / "memory.stat").write_text("anon 500\ninactive_file 300\nactive_file 100\n")

    def shares() -> list[float]:
        return [*pressure.cgroup_shares(tmp_path / "root", membership)]

    assert shares() == [0]
    limit(inner, "max")
    assert shares() == [0]
    limit(inner, 1000)
    assert shares() == [0, 60]
    limit(inner.parent, 800)
    assert shares() == [0, 60, 75]
    (inner / "memory.max").write_text("0\n")
    assert shares() == [0, 75]
    assert [*pressure.cgroup_shares(tmp_path, tmp_path / "no such file")] == [0]
    membership.write_text("4:memory:/elsewhere\n")
    assert shares() == [0]


# Hysteresis


def test_a_sweep_that_frees_nothing_is_not_repeated_until_there_is_more(program: Any) -> None:
    program.kept = None
    mark = resident() + 300 * MIB
    watch = fastpurge.watch(above=mark, below=mark - 100 * MIB, keep=lambda: [program.kept], every=SOON)

    def sweeps_after(**of: int) -> int:
        for name, count in of.items():
            setattr(program, name, mebibytes(count) if count else None)
        readings(watch, 3)
        with safe_point():
            readings(watch, 10)
        return watch.sweeps

    with watch:
        assert sweeps_after() == 0
        assert sweeps_after(kept=400) == 1
        assert sweeps_after() == 1
        assert sweeps_after(leak=50) == 1
        assert sweeps_after(more=100) == 2
        assert is_purged(program.leak)
        assert sweeps_after(kept=0) == 2  # far below: from here on the mark counts again
        assert sweeps_after(leak=350) == 3
        assert sweeps_after(leak=350) == 4
    assert [type(one) for one in watch.reports] == [fastpurge.SweepReport] * 4


def test_the_mark_moves_as_it_says() -> None:
    mark = Threshold(90, 80, most=100)
    assert [mark.is_passed(reading) for reading in (79, 90, 91)] == [False, False, True]
    mark.note_swept(79)
    assert mark.is_passed(91)
    mark.note_swept(85)
    assert [mark.is_passed(reading) for reading in (91, 92.5, 92.6)] == [False, False, True]
    mark.note_swept(96)
    assert [mark.is_passed(reading) for reading in (85, 97.9, 98.1)] == [False, False, True]
    assert [mark.is_passed(reading) for reading in (79, 91)] == [False, True]
    mark.note_swept(81)
    assert [mark.is_passed(reading) for reading in (90.5, 91)] == [False, True]
    endless = Threshold(90, 80)
    endless.note_swept(1000)
    assert [endless.is_passed(reading) for reading in (1010, 1011)] == [False, True]


def test_below_is_nine_tenths_of_above_by_default() -> None:
    assert pressure.parse("90%", None, None)[1].below == 81
    assert pressure.parse(1000 * MIB, None, "cpu")[1].below == 900 * MIB
    assert pressure.parse("90 %", "85.5%", None)[1].below == 85.5


# What can go wrong


def test_a_keep_that_raises_is_told_and_nothing_is_swept_and_the_watch_goes_on(program: Any) -> None:
    held: list[weakref.ref[Any]] = []
    calls = []

    def keep() -> tuple[()]:
        calls.append(threading.current_thread())
        purged.append(is_purged(program.leak))
        if len(calls) < 3:
            batch = torch.ones(3)
            held.append(weakref.ref(batch))
            raise KeyError("no model is loaded")
        return ()

    program.leak = mebibytes(100)
    purged: list[bool] = []
    expected = "nothing was swept: KeyError: 'no model is loaded'"
    with pytest.warns(RuntimeWarning, match=expected) as told, watch_above(-50, keep) as watch, safe_point():
        until(lambda: watch.sweeps)
    assert len(told) == 1
    assert purged == [False] * 3
    assert is_purged(program.leak)
    assert type(watch.last_error) is KeyError
    assert [reference() for reference in held] == [None, None]  # the error does not hold what keep had


@pytest.mark.parametrize("kept", ["model", None, iter(())], ids=["a name", "nothing", "an iterator"])
def test_a_keep_that_names_nothing_is_told_and_nothing_is_swept(kept: object, program: Any) -> None:
    program.leak = mebibytes(1)
    watch = watch_above(-50, lambda: kept)
    with pytest.warns(RuntimeWarning, match="nothing was swept: TypeError: keep must"), watch, safe_point():
        until(lambda: watch.last_error)
    assert watch.sweeps == 0
    assert not is_purged(program.leak)


def test_an_on_sweep_that_raises_is_told_and_the_sweep_counts(program: Any) -> None:
    def fail(_: object) -> None:
        raise OSError("the log is full")

    program.leak = mebibytes(100)
    watch = watch_above(-50, on_sweep=fail)
    with pytest.warns(RuntimeWarning, match="on_sweep failed: OSError: the log is full"), watch, safe_point():
        until(lambda: watch.last_error)
    assert watch.sweeps == len(watch.reports) == 1


def test_a_warning_that_is_an_error_harms_nobody(program: Any) -> None:
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


def test_memory_that_cannot_be_read_for_a_moment_is_told_and_read_again(
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


# Stopping


def test_stop_waits_for_a_sweep_that_is_under_way_and_none_comes_after_it(program: Any) -> None:
    begun, go = threading.Event(), threading.Event()
    order = []

    def keep() -> tuple[()]:
        begun.set()
        go.wait()
        return ()

    def stop() -> None:
        watch.stop()
        order.append("stopped")

    watch = watch_above(50, keep, on_sweep=lambda _: order.append("swept"))
    with safe_point():
        leak_elsewhere(program)
        begun.wait()
        thread = start(stop)
        time.sleep(0.1)
        go.set()
        thread.join()
        assert order == ["swept", "stopped"]
        assert "stopped, 1 sweeps" in repr(watch)
        assert not watch._thread.is_alive()
        program.leak = mebibytes(100)
        watch.stop()
        time.sleep(5 * SOON)
    assert watch.sweeps == 1
    assert not is_purged(program.leak)


def test_no_thread_of_a_watch_is_left_when_stop_returns() -> None:
    for _ in range(20):
        watch = watch_above(50)
        watch.stop()
        assert not watch._thread.is_alive()


@pytest.mark.parametrize("by", ["the watch's thread", "the program's"])
def test_a_watch_can_be_stopped_by_what_it_calls(program: Any, by: str) -> None:
    watch: Watch = watch_above(50, on_sweep=lambda _: watch.stop())
    program.leak = mebibytes(100)
    if by == "the program's":
        until(lambda: is_due(watch))
    with safe_point():
        until(lambda: "stopped" in repr(watch))
    watch.stop()
    assert watch.sweeps == 1


def test_the_reports_of_the_last_sweeps_are_there_and_no_more(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_REPORTS", 2)
    held = resident()
    # A default tenth below, of a gigabyte held, moves the mark up by more than what is leaked.
    above, below = held + 20 * MIB, held + 10 * MIB
    with fastpurge.watch(above=above, below=below, keep=tuple, every=SOON) as watch:
        for sweeps in range(1, 4):
            program.leak = mebibytes(100)
            with safe_point():
                until(lambda sweeps=sweeps: watch.sweeps >= sweeps)  # type: ignore[misc]
    assert watch.sweeps == 3
    assert len(watch.reports) == 2


def test_several_watches_sweep_each_in_its_own_way(program: Any) -> None:
    program.small = torch.ones(7)
    program.leak = mebibytes(300)
    with (
        watch_above(-250, label="one", min_bytes=MIB) as one,
        watch_above(-200, lambda: [program.small, program.leak], label="other") as other,
        safe_point(),
    ):
        until(lambda: one.sweeps)
        readings(one, 5)
        readings(other, 5)
    assert one.reports[0].label == "one"
    assert {report.label for report in other.reports} <= {"other"}
    assert is_purged(program.leak)
    assert program.small.tolist() == [1] * 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_not_watched_and_can_be_and_no_watch_keeps_a_process_alive() -> None:
    program = """
        import os, threading, time, torch, fastpurge
        begun = threading.Event()
        def keep():
            begun.set()
            time.sleep(0.5)
            return ()
        def until(condition):
            while not condition():
                time.sleep(0.01)
        leak = [torch.ones(1 << 20)]
        watch = fastpurge.watch(above=1 << 20, keep=keep, every=0.01)
        def wait():
            with fastpurge.safe_point():
                begun.wait()
        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()  # and the gate is held
        if os.fork() == 0:
            assert "stopped" in repr(watch), watch
            watch.stop()
            with fastpurge.safe_point():
                with fastpurge.watch(above=1 << 20, keep=tuple, every=0.01) as mine:
                    until(lambda: mine.sweeps)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        thread.join()
        fastpurge.watch(above=1 << 20, keep=tuple, every=0.01)
        point = fastpurge.safe_point()
        point.__enter__()
    """
    assert _run(program) == "7\n"


def test_the_interpreter_ends_after_the_sweep_that_is_under_way_however_long_it_takes() -> None:
    # Torch aborts the process if a thread is ended in it.
    program = """
        import threading, time, torch, fastpurge, fastpurge.automatic.watch
        fastpurge.automatic.watch._SECONDS_AT_EXIT = 0.01
        begun = threading.Event()
        class TakesLong:
            def __del__(self):
                begun.set()
                time.sleep(1)
                print("done")
        model = torch.nn.ReLU()
        model.held = TakesLong()
        watch = fastpurge.watch(above=1 << 20, keep=tuple, every=0.01)
        point = fastpurge.safe_point()
        point.__enter__()
        begun.wait()
    """
    assert _run(program) == "done\n"


def _run(program: str) -> str:
    """What a program prints that ends well and complains of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
