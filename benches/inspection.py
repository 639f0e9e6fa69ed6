"""`why` and `census` compared with objgraph, Pympler and Guppy, on one heap, in one run.

``python -m benches.inspection --objects 1000000``. Times are processor time. The other tools do not know
storages: they count what `sys.getsizeof` reports. The benchmark compares the walks over the heap.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from time import process_time
from typing import Any

import fastpurge
import guppy
import objgraph
import torch
from pympler import muppy
from pympler.summary import summarize
from rich.console import Console

from benches.figures import run
from benches.ratios import best, build_heap

LIMIT = 20  # the default depth of `find_backref_chain`
CACHE: dict[str, Any] = {}


class Entry:
    """An object of a program that refers to a model."""

    model: torch.nn.Module


def fill() -> None:
    """Put a model into a cache, and an object at the end of 40 nested lists."""
    CACHE["sdxl"] = [Entry()]
    CACHE["sdxl"][0].model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    far: Any = torch.ones(3)
    for _ in range(2 * LIMIT):
        far = [far]
    CACHE["far"] = far


def far_end() -> torch.Tensor:
    """The object in the innermost list."""
    at: Any = CACHE["far"]
    while isinstance(at, list):
        at = at[0]
    found: torch.Tensor = at
    return found


def put_far_away(heap: list[object], depth: int) -> weakref.ref[torch.Tensor]:
    """Put an object into the heap that is farther from every root than all others."""
    tensor = torch.ones(5)
    at: Any = tensor
    for _ in range(depth):
        at = [at]
    heap.append(at)
    return weakref.ref(tensor)


def once(action: Any) -> float:
    """Milliseconds of one run, for calls that take seconds."""
    started = process_time()
    action()
    return (process_time() - started) * 1e3


def measure(objects: int) -> dict[str, float]:
    """Milliseconds of each call, on a heap of ``objects`` objects."""
    warnings.simplefilter("ignore")  # of deprecated attributes of torch
    fill()
    heap = build_heap(objects)
    gc.collect()
    gc.disable()
    # Weak, or the benchmark itself would be the owner.
    weight, far = weakref.ref(CACHE["sdxl"][0].model[1].weight), weakref.ref(far_end())
    last = put_far_away(heap, depth=12)
    times = {
        "gc.get_objects()": best(gc.get_objects),
        "why(a weight in a cache)": best(lambda: fastpurge.why(weight())),
        "why(what is 40 lists down)": best(lambda: fastpurge.why(far())),
        "why(what is farthest from every root)": best(lambda: fastpurge.why(last())),
        "why(what nothing holds)": best(lambda: fastpurge.why(torch.ones(1))),
        "census()": best(fastpurge.census),
    }
    expect(fastpurge.why(weight()).path, "__main__.CACHE['sdxl'][0].model[1].weight")
    expect(fastpurge.why(far()).path, f"__main__.CACHE['far']{'[0]' * 2 * LIMIT}")
    chains: dict[str, list[Any]] = {}

    def chain(what: str, obj: object) -> None:
        chains[what] = objgraph.find_backref_chain(obj, objgraph.is_proper_module)

    times["objgraph.find_backref_chain(the weight)"] = once(lambda: chain("weight", weight()))
    times["objgraph.find_backref_chain(40 lists down)"] = once(lambda: chain("far", far()))
    times["objgraph.find_backref_chain(the farthest)"] = once(lambda: chain("farthest", last()))
    for what, found in chains.items():
        ends = "reaches a module" if objgraph.is_proper_module(found[0]) else "does not reach a module"
        Console().print(f"objgraph's chain of {len(found)} to the {what} {ends}")
    times["pympler: summary of muppy.get_objects()"] = once(lambda: summarize(muppy.get_objects()))
    times["guppy: hpy().heap()"] = once(lambda: guppy.hpy().heap())
    gc.enable()
    del heap
    return times


def expect(found: object, expected: object) -> None:
    if found != expected:
        raise RuntimeError(f"{found}, not {expected}")


def ratios(times: dict[str, float]) -> dict[str, float]:
    """The ratios to report."""
    return {
        "objgraph / why, a weight in a cache": times["objgraph.find_backref_chain(the weight)"]
        / times["why(a weight in a cache)"],
        "objgraph / why, 40 lists down": times["objgraph.find_backref_chain(40 lists down)"]
        / times["why(what is 40 lists down)"],
        "objgraph / why, the farthest": times["objgraph.find_backref_chain(the farthest)"]
        / times["why(what is farthest from every root)"],
        "pympler / census": times["pympler: summary of muppy.get_objects()"] / times["census()"],
        "guppy / census": times["guppy: hpy().heap()"] / times["census()"],
    }


if __name__ == "__main__":
    run(__doc__, measure, ratios)
