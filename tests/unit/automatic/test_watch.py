"""Automatic sweeps run above a threshold of memory, and are not repeated without effect."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import fastpurge
import psutil
import pytest
import torch
from fastpurge import Watch, is_purged, safe_point
from fastpurge.allocators import pressure
from fastpurge.automatic import safe_points
from fastpurge.automatic import watch as watch_module

from tests.unit.automatic.watch_helpers import (
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


# Conditions


def test_unkept_tensors_are_released_while_a_thread_waits_at_a_safe_point(program: Any) -> None:
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


def test_a_thread_that_enters_a_safe_point_runs_the_due_sweep(program: Any) -> None:
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


def test_nothing_is_swept_below_the_threshold(program: Any) -> None:
    with watch_above(300) as watch:
        program.leak = mebibytes(100)
        with safe_point():
            readings(watch, 10)
        assert repr(watch) == f"<fastpurge.watch above {watch._threshold.above}: watching, 0 sweeps>"
    assert not is_purged(program.leak)


def test_a_temporary_peak_triggers_no_sweep(program: Any) -> None:
    program.small = mebibytes(1)
    with watch_above(50) as watch:
        passing = mebibytes(100)
        until(lambda: is_due(watch))
        watch._every = 3600  # no reading of its own follows
        readings(watch, 1)
        del passing
        with safe_point():
            assert not is_due(watch)
    assert watch.sweeps == 0
    assert not is_purged(program.small)


def test_a_program_without_safe_points_is_never_swept_and_warned_once(program: Any) -> None:
    vars(safe_points._here).clear()
    program.leak = mebibytes(100)
    line = sys._getframe().f_lineno + 1
    watch = fastpurge.watch(above=MIB, keep=tuple, every=SOON)
    with pytest.warns(RuntimeWarning, match="no safe point") as recorded, watch:
        readings(watch, 10)
    assert watch.sweeps == 0
    assert not is_purged(program.leak)
    assert [(one.filename, one.lineno) for one in recorded] == [(__file__, line)]


def test_a_percentage_is_of_the_memory_of_the_machine(program: Any) -> None:
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
        assert sweeps_after(kept=0) == 2  # far below: the threshold is back at its first value
        assert sweeps_after(leak=350) == 3
        assert sweeps_after(leak=350) == 4
    assert [type(one) for one in watch.reports] == [fastpurge.SweepReport] * 4


# Stopping


def test_stop_waits_for_the_running_sweep_and_no_other_follows(program: Any) -> None:
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


def test_only_the_reports_of_the_last_sweeps_are_stored(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_REPORTS", 2)
    referent = resident()
    # The default for `below`, nine tenths, would raise the threshold by more than the leak.
    above, below = referent + 20 * MIB, referent + 10 * MIB
    with fastpurge.watch(above=above, below=below, keep=tuple, every=SOON) as watch:
        for sweeps in range(1, 4):
            program.leak = mebibytes(100)
            with safe_point():
                until(lambda sweeps=sweeps: watch.sweeps >= sweeps)  # type: ignore[misc]
    assert watch.sweeps == 3
    assert len(watch.reports) == 2


def test_several_watches_sweep_with_their_own_options(program: Any) -> None:
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
def test_a_forked_child_starts_unwatched_and_no_watch_keeps_a_process_alive() -> None:
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
        begun.wait()  # and the gate is referent
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


def test_the_interpreter_exits_after_the_running_sweep_however_long_it_takes() -> None:
    # torch aborts the process if a thread ends while it runs code of torch.
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
        model.referent = TakesLong()
        watch = fastpurge.watch(above=1 << 20, keep=tuple, every=0.01)
        point = fastpurge.safe_point()
        point.__enter__()
        begun.wait()
    """
    assert _run(program) == "done\n"


def _run(program: str) -> str:
    """Run a program that must exit with status 0 and an empty stderr; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
