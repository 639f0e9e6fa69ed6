"""Inject faults into a sweep. A program, run by `test_fault_injection.py`.

    python tests/unit/engine/inject_faults.py memory 1 2 3

The first argument is the kind of fault, the others are places. For `interrupt` the second argument is
the number of lines between two interrupts. Prints one line of JSON: the count of each
outcome.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import types
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import fastpurge
import torch
from fastpurge import is_purged

PACKAGE = str(Path(fastpurge.__file__).parent)


class Program:
    """Kept and forgotten objects of a program, and a check that each is unchanged or a tombstone."""

    def __init__(self) -> None:
        module: Any = types.ModuleType("forgetful_program")
        self.module = module
        sys.modules[self.module.__name__] = self.module
        self.module.kept = [torch.arange(1000.0), torch.nn.Linear(8, 8)]
        self.expected = [self.module.kept[0].clone(), self.module.kept[1](torch.ones(8)).detach()]
        self.forget()

    def forget(self) -> None:
        self.module.cache = {"tensors": [torch.ones(100) for _ in range(5)], "model": torch.nn.Linear(4, 4)}

    def keep(self) -> list[Any]:
        return [self.module.kept, self.expected]

    def check(self) -> None:
        assert torch.equal(self.module.kept[0], self.expected[0])
        assert torch.equal(self.module.kept[1](torch.ones(8)), self.expected[1])
        for one in self.module.cache["tensors"]:
            assert is_purged(one) or one.tolist() == [1.0] * 100
        model = self.module.cache["model"]
        if not is_purged(model):
            parts = (model.weight, model.bias)
            assert all(map(is_purged, parts)) or model(torch.ones(4)).shape == (4,)
        assert gc.isenabled()

    def check_next(self) -> None:
        """The next sweep works and releases everything forgotten."""
        fastpurge.sweep(keep=self.keep(), collect=False)
        self.check()
        assert all(map(is_purged, [*self.module.cache["tensors"], self.module.cache["model"]]))


def calls(program: Program) -> dict[str, Callable[[], Any]]:
    return {
        "sweep": lambda: fastpurge.sweep(keep=program.keep(), collect=False),
        "plan": lambda: fastpurge.plan(keep=program.keep(), collect=False),
        "census": fastpurge.census,
        "why": lambda: fastpurge.why(program.module.cache["model"]),
    }


def nth_allocation(program: Program, number: int) -> str:
    """A hundred allocations of the interpreter fail, from the given one on."""
    import _testcapi  # type: ignore[import-not-found]

    call = list(calls(program).values())[number % 4]
    outcome = "done"
    _testcapi.set_nomemory(number, number + 100)
    try:
        call()
    except BaseException as error:  # inspected below, when allocations succeed again
        outcome = error  # type: ignore[assignment]
    finally:
        _testcapi.remove_mem_hooks()
    return outcome if isinstance(outcome, str) else type(outcome).__name__


def little_memory(program: Program, kib: int) -> str:
    """The limit of the address space is ``kib`` KiB above its present size."""
    import resource

    outcomes = set()
    for call in calls(program).values():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + kib * 1024, most))
        try:
            call()
        except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError
            outcomes.add(type(error).__name__)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return ", ".join(sorted(outcomes)) or "done"


def interrupt(program: Program, number: int) -> str:
    """KeyboardInterrupt before the n-th line of the package; "done" if the sweep runs fewer lines."""
    met = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal met
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            met += 1
            if met == number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        fastpurge.sweep(keep=program.keep(), collect=False)
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    finally:
        sys.settrace(None)
    assert 0 < met < number
    return "done"


def alarm(program: Program, microseconds: int) -> str:
    """A real signal, some microseconds after the start of the sweep."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
        fastpurge.sweep(keep=program.keep(), collect=False)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    return "done"


FAULTS = {"allocation": nth_allocation, "memory": little_memory, "interrupt": interrupt, "alarm": alarm}


def main() -> None:
    fault = FAULTS[sys.argv[1]]
    torch.set_num_threads(1)
    fastpurge.plan(keep=())  # imports the modules that are imported on demand
    # `gc.freeze` hides existing objects from the collector: a sweep takes milliseconds.
    gc.collect()
    gc.freeze()
    program = Program()
    outcomes: Counter[str] = Counter()
    where = map(int, sys.argv[2:])
    for number in count(1, next(where)) if fault is interrupt else where:
        program.forget()
        try:
            outcomes[fault(program, number)] += 1
            program.check()
            program.check_next()
            if fault is interrupt and outcomes["done"]:
                break
        except BaseException as error:
            error.add_note(f"{sys.argv[1]} {number}") if hasattr(error, "add_note") else None
            raise
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main()
