"""Safe points: a sweep starts only between computations, and never waits forever."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Watch, is_purged, safe_point
from fastpurge.automatic import safe_points

from tests.unit.automatic.watch_helpers import (
    SOON,
    is_due,
    leak_elsewhere,
    mebibytes,
    readings,
    start,
    until,
    watch_above,
)

pytestmark = pytest.mark.usefixtures("main_thread_takes_part")


class Job:
    """The objects of a thread, which the guard of running code does not protect."""


def _compute(program: Any, at: int) -> str:
    """A computation in steps. Only a global refers to the object with the intermediate results."""
    job = program.jobs[at] = Job()
    job.state = torch.full((256, 64), float(at))  # type: ignore[attr-defined]
    for step in range(20):
        job.state = (job.state @ program.model) + step  # type: ignore[attr-defined]
    digest = str(job.state.double().sum().item())  # type: ignore[attr-defined]
    del program.jobs[at]
    return digest


def test_no_sweep_interrupts_a_computation(program: Any) -> None:
    program.model = torch.eye(64)
    program.jobs = {}
    expected = [_compute(program, at) for at in range(8)]
    errors: list[BaseException] = []
    done = [0] * 8
    enough = threading.Event()

    def work(at: int) -> None:
        try:
            while not enough.is_set():
                with safe_point(wait=30 if at % 2 else 0):
                    time.sleep(0.01 * (at % 4))  # until the next job arrives
                assert _compute(program, at) == expected[at]
                program.leak = mebibytes(4)
                program.leaks.append(program.leak)
                done[at] += 1
        except BaseException as error:
            errors.append(error)

    program.leaks = []
    with watch_above(60, lambda: [program.model]) as watch:
        threads = [start(lambda at=at: work(at)) for at in range(8)]  # type: ignore[misc]
        with safe_point():
            until(lambda: watch.sweeps >= 5 or errors)
        enough.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert watch.last_error is None
    assert min(done) > 0
    assert sum(map(is_purged, program.leaks)) > 50


def test_a_computing_thread_delays_the_sweep_until_it_ends(program: Any) -> None:
    end = threading.Event()

    def compute() -> None:
        with safe_point():
            pass
        program.job = mebibytes(100)
        end.wait()

    with watch_above(50) as watch:
        thread = start(compute, "computes")
        with safe_point():
            until(lambda: is_due(watch))
            readings(watch, 10)
            assert watch.sweeps == 0
            assert "waits for computes" in repr(watch)
            end.set()
            until(lambda: watch.sweeps)
        thread.join()


def test_a_thread_that_ends_at_a_safe_point_is_not_waited_for(program: Any) -> None:
    own = threading.local()  # its thread ends with it

    def enter() -> None:
        own.here = safe_point()
        own.here.__enter__()

    with watch_above(50) as watch:
        thread = start(enter)
        thread.join()
        program.leak = mebibytes(100)
        with safe_point():
            until(lambda: watch.sweeps)
    assert safe_points.outside() == ["MainThread"]
    assert len(safe_points.taking_part()) == 1


def test_leaving_a_safe_point_waits_for_the_sweep(program: Any) -> None:
    begun, leaving, go = threading.Event(), threading.Event(), threading.Event()
    order = []

    def keep() -> tuple[()]:
        begun.set()
        go.wait()
        return ()

    def wait_for_work() -> None:
        with safe_point():
            begun.wait()
            leaving.set()
        order.append("left")

    with watch_above(50, keep, on_sweep=lambda _: order.append("swept")) as watch:
        thread = start(wait_for_work)
        with safe_point():
            leak_elsewhere(program)
            leaving.wait()
            time.sleep(0.1)
            go.set()
            thread.join()
    assert order == ["swept", "left"]
    assert watch.sweeps == 1


def test_threads_that_pass_a_safe_point_wait_for_each_other_on_request(program: Any) -> None:
    swept = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not swept.is_set():
                with safe_point(wait=60):
                    pass
                time.sleep(0.001)
        except BaseException as error:
            errors.append(error)

    with watch_above(50, on_sweep=lambda _: swept.set()) as watch:
        threads = [start(work) for _ in range(4)]
        program.leak = mebibytes(100)
        with safe_point():
            for thread in threads:
                thread.join()
    assert errors == []
    assert watch.sweeps == 1


def test_after_an_exception_a_thread_is_no_longer_at_a_safe_point() -> None:
    with pytest.raises(ZeroDivisionError), safe_point():
        raise ZeroDivisionError
    assert safe_points.outside() == ["MainThread"]


def test_a_thread_is_not_at_a_deleted_safe_point() -> None:
    here = safe_point()  # Ctrl-C can arrive between the last line of the block and the first of `__exit__`
    here.__enter__()
    assert safe_points.outside() == []
    del here
    assert safe_points.outside() == ["MainThread"]


def test_a_safe_point_within_another_leaves_that_one_as_it_is() -> None:
    with safe_point():
        with safe_point():
            pass
        assert safe_points.outside() == []
    assert safe_points.outside() == ["MainThread"]


def test_a_safe_point_is_entered_once_at_a_time() -> None:
    here = safe_point()
    with here:
        with pytest.raises(RuntimeError, match=r"call safe_point\(\)"):
            here.__enter__()
        assert safe_points.outside() == []
    assert safe_points.outside() == ["MainThread"]
    with here:
        assert safe_points.outside() == []


def test_in_asyncio_every_task_that_takes_part_must_be_at_a_safe_point(program: Any) -> None:
    async def compute(go: asyncio.Event, at: asyncio.Event) -> float:
        with safe_point():
            pass
        job = program.job = Job()
        job.state = torch.ones(5)  # type: ignore[attr-defined]
        await go.wait()
        total = float(job.state.sum())  # type: ignore[attr-defined]
        del program.job
        with safe_point():
            await at.wait()
        return total

    async def main(watch: Watch) -> float:
        go, at = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(compute(go, at), name="computes")
        await asyncio.sleep(0)
        program.leak = mebibytes(100)
        with safe_point():
            while not is_due(watch):
                await asyncio.sleep(SOON)
            await asyncio.sleep(5 * SOON)
            assert watch.sweeps == 0
            assert "waits for computes" in repr(watch)
            go.set()
            while not watch.sweeps:
                await asyncio.sleep(SOON)
            at.set()
            total = await task
            assert len(safe_points.taking_part()) == 1
        return total

    vars(safe_points._here).clear()
    with watch_above(50) as watch:
        assert asyncio.run(main(watch)) == 5
    assert is_purged(program.leak)


@pytest.mark.parametrize("wait", [-1, "1", None, True, float("inf"), float("nan")])
def test_bad_seconds_to_wait_are_refused(wait: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="wait"):
        safe_point(wait=wait)


def test_a_finalizer_in_a_sweep_can_pass_a_safe_point_while_another_sweep_is_due(program: Any) -> None:
    asked = threading.Event()
    at_the_time: list[int] = []

    class PassesOne:
        def __del__(self) -> None:
            program.leak = mebibytes(100)
            asked.wait(60)
            with safe_point():
                pass
            at_the_time.append(watch.sweeps)

    def sweep() -> None:
        with safe_point():
            fastpurge.sweep(keep=())

    program.model = torch.nn.ReLU()
    program.model.referent = PassesOne()
    with watch_above(50, lambda: asked.set() or ()) as watch, safe_point():  # type: ignore[func-returns-value]
        thread = threading.Thread(target=sweep, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        until(lambda: watch.sweeps)
    assert at_the_time == [0]
    assert is_purged(program.leak)
    assert watch.last_error is None


def test_a_safe_point_inside_a_sweep_starts_no_other_sweep(program: Any) -> None:
    class PassesOne:
        def __del__(self) -> None:
            program.leak = mebibytes(100)
            until(lambda: is_due(watch))
            with safe_point():
                pass

    program.model = torch.nn.ReLU()
    program.model.referent = PassesOne()
    with watch_above(50) as watch:
        fastpurge.sweep(keep=())
        assert watch.sweeps == 0
        until(lambda: is_due(watch))
        with safe_point():
            assert watch.sweeps == 1
    assert is_purged(program.leak)
    assert watch.last_error is None
