"""Ratios of fastpurge to plain Python and to the interpreter's own floor, on the same heap, in one run.

Run it with ``make bench``, or ``python benches/ratios.py --objects 2000000`` for another size of heap.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import warnings
from collections.abc import Callable
from time import perf_counter

import fastpurge
import torch
from fastpurge import _core, keep
from rich.console import Console
from rich.table import Table

TYPES = (torch.Tensor, torch.nn.Module)


class Record:
    """An ordinary instance, of which heaps are full."""

    def __init__(self, number: int) -> None:
        self.values = [number]


def build_heap(objects: int) -> list[object]:
    """Fill the heap up to a number of tracked objects: instances, tuples, dicts and lists."""
    heap: list[object] = []
    while (missing := objects - len(gc.get_objects())) > 0:
        heap += [(Record(i), {"k": [i]}, [i, i + 1]) for i in range(max(1, missing // 7))]
    return heap


def build_model() -> torch.nn.Module:
    """A model of 20,001 modules, as the closure benchmark of the design asks."""
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
    """The shortest of several runs, in milliseconds: what is longer was disturbed."""
    times = []
    for _ in range(repeat):
        started = perf_counter()
        result = action()
        times.append(perf_counter() - started)
        del result
    return min(times) * 1e3


def measure(objects: int) -> dict[str, float]:
    """Milliseconds of each thing on one heap. The collector is off, so that it disturbs none of them."""
    gc.collect()
    gc.disable()
    heap = build_heap(objects)
    libraries = keep.libraries()
    fastpurge.sweep(keep=[heap])
    times = {
        "gc.get_objects()": best(gc.get_objects),
        "scan": best(lambda: _core.scan(TYPES)),
        "idle plan": best(lambda: fastpurge.plan(keep=())),
        "idle sweep": best(lambda: fastpurge.sweep(keep=())),
        "plain scan": best(plain_scan, 3),
        "gc.collect()": best(gc.collect, 3),
    }
    sys.setrecursionlimit(100_000)
    model = build_model()
    whole = best(lambda: _core.closure((model,), libraries=libraries))
    nothing = best(lambda: _core.closure((), libraries=libraries))
    times["closure of 20,001 modules"] = whole - nothing
    times["plain closure"] = best(lambda: plain_closure(model, set()), 3)
    gc.enable()
    return times


def ratios(times: dict[str, float]) -> dict[str, float]:
    """The ratios that count."""
    return {
        "plain scan + gc.collect() / idle sweep": (times["plain scan"] + times["gc.collect()"])
        / times["idle sweep"],
        "plain scan / scan": times["plain scan"] / times["scan"],
        "idle plan / gc.get_objects()": times["idle plan"] / times["gc.get_objects()"],
        "plain closure / closure": times["plain closure"] / times["closure of 20,001 modules"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000, help="size of the heap")
    objects = parser.parse_args().objects
    times = measure(objects)
    console = Console()
    console.print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {objects:,} objects, "
        f"stream: {_core.object_stream()}"
    )
    table = Table("what", "ms", "ratio")
    for what, milliseconds in times.items():
        table.add_row(what, f"{milliseconds:.1f}", "")
    for what, ratio in ratios(times).items():
        table.add_row(what, "", f"{ratio:.2f}x")
    console.print(table)


if __name__ == "__main__":
    main()
