"""Ratios of fastpurge to plain Python and to `gc.get_objects`, on the same heap, in one run.

``make bench`` runs it on heaps of several sizes, and ``python -m benches.ratios --objects 2000000``
on one. Times are processor time, which a busy machine disturbs less than the clock.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Literal

import fastpurge
import torch
from fastpurge import Guard, _core
from fastpurge.python_facts import library_globals
from fastpurge.python_facts.library_folders import libraries

from benches.figures import run

TYPES = (torch.Tensor, torch.nn.Module)


class Record:
    """An ordinary instance, as most heaps contain."""

    def __init__(self, number: int) -> None:
        self.values = [number]


def build_heap(objects: int) -> list[object]:
    """Fill the heap up to a number of tracked objects: instances, tuples, dicts and lists."""
    heap: list[object] = []
    while (missing := objects - len(gc.get_objects())) > 0:
        heap += [(Record(i), {"k": [i]}, [i, i + 1]) for i in range(max(1, missing // 7))]
    return heap


def build_model() -> torch.nn.Module:
    """A model of 20,001 modules, for the benchmark of the closure."""
    block = (torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Linear)
    sizes = ((4, 4), (4,), (4, 4))
    return torch.nn.Sequential(
        *(torch.nn.Sequential(*(m(*s) for m, s in zip(block, sizes, strict=True))) for _ in range(5000))
    )


def plain_scan() -> None:
    """Two passes over all objects, as a purge in plain Python makes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        [x for x in gc.get_objects() if torch.is_tensor(x)]
        [x for x in gc.get_objects() if isinstance(x, torch.nn.Module)]


def plain_closure(obj: object, seen: set[int]) -> None:
    """A recursive collector of ids over modules, dicts and lists."""
    if id(obj) in seen:
        return
    seen.add(id(obj))
    if isinstance(obj, torch.nn.Module):
        plain_closure(vars(obj), seen)
    elif isinstance(obj, dict):
        for value in obj.values():
            plain_closure(value, seen)
    elif isinstance(obj, list | tuple | set):
        for value in obj:
            plain_closure(value, seen)


def best(action: Callable[[], object], repeat: int = 7) -> float:
    """The shortest of several runs, in milliseconds: the others were disturbed."""
    times = []
    for _ in range(repeat):
        started = process_time()
        result = action()
        times.append(process_time() - started)
        del result
    return min(times) * 1e3


class Owner:
    """An object of a program that refers to tensors."""

    referent: list[torch.Tensor]


def forget(count: int) -> Owner:
    """Unused tensors, and the object that refers to them."""
    owner = Owner()
    owner.referent = [torch.ones(1000) for _ in range(count)]
    return owner


def release(kept: list[torch.Tensor], count: int, *, collect: Literal["auto", False]) -> float:
    """Seconds of a sweep that releases ``count`` tensors."""
    owner = forget(count)
    started = process_time()
    report = fastpurge.sweep(keep=[kept], collect=collect)
    seconds = process_time() - started
    del owner
    if len(report.released) != count:
        raise RuntimeError(f"{len(report.released)} of {count} were released: {report}")
    return seconds


def collecting(action: Callable[[], object]) -> float:
    """Seconds that the garbage collector takes during an action."""
    times: list[float] = []

    def note(phase: str, _: object) -> None:
        times.append(process_time() if phase == "stop" else -process_time())

    gc.callbacks.append(note)
    action()
    gc.callbacks.remove(note)
    return sum(times)


def guard_times(kept: list[torch.Tensor]) -> dict[str, float]:
    """Milliseconds that each guard adds to a plan that would release 2,000 tensors."""
    owner = forget(2000)

    def plan(asked: Guard) -> float:
        return best(lambda: fastpurge.plan(keep=[kept], guards=asked), 3)

    none = plan(Guard.NONE)
    times = {f"guard {guard.name}": plan(guard) - none for guard in Guard}
    del owner
    return {"plan of those without a guard": none, **times}


def swap(count: int) -> float:
    """Seconds of torch for the same: create an empty tensor for each, swap, and drop."""
    tensors = [torch.ones(1000) for _ in range(count)]
    started = process_time()
    for tensor in tensors:
        torch.utils.swap_tensors(tensor, torch.empty(0))
    del tensor, tensors
    return process_time() - started


def peak_of_a_sweep() -> float:
    """Growth of the resident set during an idle sweep, in MiB; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    fastpurge.sweep(keep=())
    return (_resident("VmHWM") - before) / 1024


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def milliseconds_to_import() -> float:
    """Time of `import fastpurge`, less that of a bare interpreter."""

    def run(code: str) -> float:
        times = f"import time; t = time.process_time(); {code}; print(time.process_time() - t)"
        runs = (
            subprocess.run([sys.executable, "-c", times], capture_output=True, check=True) for _ in range(9)
        )
        return min(float(run.stdout) for run in runs)

    return (run("import fastpurge") - run("pass")) * 1e3


def measure(objects: int) -> dict[str, float]:
    """Milliseconds of each call on one heap. The garbage collector is off, so that it disturbs none."""
    gc.collect()
    gc.disable()
    heap = build_heap(objects)
    known = libraries()
    fastpurge.sweep(keep=())
    times = {
        "gc.get_objects()": best(gc.get_objects),
        "scan": best(lambda: _core.scan(TYPES)),
        "idle plan": best(lambda: fastpurge.plan(keep=())),
        "idle sweep": best(lambda: fastpurge.sweep(keep=())),
        "plain scan": best(plain_scan, 3),
        "gc.collect()": best(gc.collect, 3),
    }
    kept = [torch.ones(1000) for _ in range(5000)]
    runs = [release(kept, 2000, collect=False) for _ in range(3)]
    times["sweep that releases 2,000 of 7,000 tensors"] = min(runs) * 1e3
    runs = [release(kept, 2000, collect="auto") for _ in range(3)]
    times["the same with a collection"] = min(runs) * 1e3
    times["gc.collect() in that"] = collecting(lambda: release(kept, 2000, collect="auto")) * 1e3
    times["idle sweep beside them"] = best(lambda: fastpurge.sweep(keep=[kept]))
    times["torch's own cost of those"] = min(swap(2000) for _ in range(3)) * 1e3
    times |= guard_times(kept)
    times["library state"] = best(lambda: library_globals.library_state(TYPES), 3)
    where_known = best(lambda: library_globals.library_state(TYPES, where_known=True), 3)
    times["library state where it is known to be"] = where_known
    if sys.platform == "linux":
        times["peak of an idle sweep (MiB)"] = peak_of_a_sweep()
    heap.clear()
    kept.clear()
    sys.setrecursionlimit(100_000)
    model = build_model()
    whole = best(lambda: _core.closure((model,), libraries=known))
    nothing = best(lambda: _core.closure((), libraries=known))
    times["closure of 20,001 modules"] = whole - nothing
    times["plain closure"] = best(lambda: plain_closure(model, set()), 3)
    gc.enable()
    return times


def ratios(times: dict[str, float]) -> dict[str, float]:
    """The ratios to report."""
    return {
        "plain scan + gc.collect() / idle sweep": (times["plain scan"] + times["gc.collect()"])
        / times["idle sweep"],
        "plain scan / scan": times["plain scan"] / times["scan"],
        "idle plan / gc.get_objects()": times["idle plan"] / times["gc.get_objects()"],
        "plain closure / closure": times["plain closure"] / times["closure of 20,001 modules"],
        "gc.collect() / sweep with a collection": times["gc.collect() in that"]
        / times["the same with a collection"],
        "release / (idle sweep + torch's own cost)": times["sweep that releases 2,000 of 7,000 tensors"]
        / (times["idle sweep beside them"] + times["torch's own cost of those"]),
    }


def measure_all(objects: int) -> dict[str, float]:
    return {**measure(objects), "import fastpurge": milliseconds_to_import()}


if __name__ == "__main__":
    run(__doc__, measure_all, ratios)
