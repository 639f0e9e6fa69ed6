"""Threads compute correctly beside a sweep, sweeps run one after another, a forked child can sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import _core, is_purged
from fastpurge.torch_facts.tensors import OWNED_TENSORS_REFERENCE_THEMSELVES

from tests.memory_growth import growth

STRESS = Path(__file__).with_name("sweep_beside_threads.py")
SWEEPS = int(os.environ.get("FASTPURGE_STRESS_SWEEPS", "250"))


def _run(*arguments: str, interpreter: tuple[str, ...] = (), **env: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)  # tracing eight threads takes most of the time
    done = subprocess.run(
        [sys.executable, *interpreter, STRESS, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _least(sweeps: int) -> int:
    """The share of sweeps that release everything: before torch 2.10 not those beside a backward."""
    return sweeps if OWNED_TENSORS_REFERENCE_THEMSELVES else 1


def test_threads_compute_the_same_while_another_sweeps() -> None:
    result = _run(f"--sweeps={SWEEPS}")
    assert result["errors"] == []
    assert result["sweeps"] >= _least(SWEEPS)
    assert min(result["checked"]) > 0
    assert growth(result["series"]) == {}


def test_an_added_leak_is_detected() -> None:
    result = _run("--sweeps=60", "--samples=20", "--pause=0.02", "--leak")
    assert set(growth(result["series"])) == {"rss", "objects", "handles"}


@pytest.mark.filterwarnings("ignore")
def test_threads_under_the_debug_allocator_and_dev_mode() -> None:
    # Freed memory is overwritten and bounds are checked, so that a use after free is detected.
    options = ("-X", "dev", "-W", "ignore")
    result = _run("--sweeps=20", interpreter=options, PYTHONMALLOC="debug", MALLOC_PERTURB_="165")
    assert result["errors"] == []
    assert result["sweeps"] >= _least(20)


@pytest.mark.filterwarnings("ignore:Deallocating Tensor")
def test_a_tensor_owned_again_by_cpp_does_not_end_a_sweep(program: Any) -> None:
    # As if another thread drops an object that a snapshot refers to. Before torch 2.10 the Python object
    # then has no tensor (`decref` in torch/csrc/PyInterpreter.cpp), and most attributes raise.
    base = torch.ones(3)
    view = base.view(3)
    gone = weakref.ref(base)
    del base
    program.taken = gone()
    del view
    program.forgotten = torch.ones(4)
    fastpurge.census()
    fastpurge.why(program.forgotten)
    fastpurge.sweep(keep=[program.taken])
    assert is_purged(program.forgotten)
    program.forgotten = torch.ones(4)
    assert fastpurge.sweep(keep=()).skipped == ()
    assert is_purged(program.forgotten)


def test_a_tensor_taken_from_cpp_by_another_thread_after_the_scan_stays(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before torch 2.10, reading a gradient that only C++ owns takes over the reference of C++.
    program.weight = torch.ones(3, requires_grad=True)
    program.weight.sum().backward()
    assert program.weight.grad is not None  # from now on C++ owns its Python object
    program.forgotten = torch.ones(4)
    taken: list[float] = []

    def exchange_late(*args: Any, **kwargs: Any) -> Any:
        def take() -> None:
            gradient = program.weight.grad
            has_it.set()
            let_go.wait()
            taken.append(gradient.sum().item())

        has_it, let_go = threading.Event(), threading.Event()
        thread = threading.Thread(target=take)
        if not taken:
            thread.start()
            has_it.wait()
        refused = exchange(*args, **kwargs)
        let_go.set()
        if thread.ident:
            thread.join()
        return refused

    exchange = _core.exchange
    monkeypatch.setattr(_core, "exchange", exchange_late)
    fastpurge.sweep(keep=())
    assert taken == [3.0]
    assert is_purged(program.forgotten)


class Samples(list[Any]):
    """A list class of the program."""


@pytest.mark.parametrize("of", [list, Samples])
@pytest.mark.parametrize("at", ["survey", "release"])
def test_tensors_in_a_list_being_sorted_stay(
    at: str, of: type[list[Any]], program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sample:
        def __init__(self, number: float) -> None:
            self.number, self.value = number, torch.full((4,), number)

    started, stop = threading.Event(), threading.Event()

    def wait_and_record(sample: Sample) -> float:
        started.set()
        stop.wait()
        return -sample.number

    program.samples = of(Sample(number) for number in range(3))
    program.forgotten = torch.ones(4)
    thread = threading.Thread(target=lambda: program.samples.sort(key=wait_and_record))
    exchange = _core.exchange

    def sort_first(*args: Any, **named: Any) -> Any:
        if not thread.ident:
            thread.start()
            started.wait()
        return exchange(*args, **named)

    if at == "survey":
        thread.start()
        started.wait()
        assert fastpurge.plan(keep=[program.samples]).items == ()
    else:
        monkeypatch.setattr(_core, "exchange", sort_first)
    report = fastpurge.sweep(keep=[program.samples])
    stop.set()
    thread.join()
    assert [sample.value.sum().item() for sample in program.samples] == [8.0, 4.0, 0.0]
    assert report.released == ()
    assert not is_purged(program.forgotten)


def test_a_sweep_within_a_sweep_is_an_error(program: Any) -> None:
    errors = []

    class Sweeper:
        def __del__(self) -> None:
            try:
                fastpurge.sweep(keep=())
            except RuntimeError as error:
                errors.append(str(error))

    program.model = torch.nn.ReLU()
    program.model.referent = Sweeper()
    fastpurge.sweep(keep=())
    assert len(errors) == 1
    assert "sweep is under way" in errors[0]
    assert is_purged(program.model)
    fastpurge.sweep(keep=())  # and the next sweep runs


def test_sweeps_of_several_threads_wait_for_each_other(program: Any) -> None:
    kept = torch.arange(100.0)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                fastpurge.sweep(keep=[kept])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert kept.tolist() == list(range(100))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_sweep_while_the_parent_was_sweeping() -> None:
    program = """
        import os, threading, torch, fastpurge
        from fastpurge.engine import sweep as sweeping
        inside, leave = threading.Event(), threading.Event()
        def hold():
            with sweeping._sweep_lock.acquired():
                inside.set(); leave.wait()
        thread = threading.Thread(target=hold); thread.start(); inside.wait()
        if os.fork() == 0:
            fastpurge.sweep(keep=())
            os._exit(7)
        status = os.wait()[1]
        leave.set(); thread.join()
        print(os.waitstatus_to_exitcode(status))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "7\n"
