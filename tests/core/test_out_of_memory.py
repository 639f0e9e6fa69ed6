"""An allocation that fails inside the core raises `MemoryError`: no crash, no other error."""

from __future__ import annotations

import functools
import gc
import importlib.util
import json
import operator
import subprocess
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastpurge import _core
from fastpurge._core import IdSet, Libraries, RunningCode


class Base:
    """The scanned type."""

    held: Any


class Holder:
    """An object of the program that refers to others."""

    held: Any


LIBRARIES = Libraries((("/nowhere", True),), (*sys.stdlib_module_names,))
GENERATOR_TYPES = ((types.GeneratorType, "gi_running"),)
CONTAINERS = (list, tuple, dict, types.FunctionType, types.CellType, types.GeneratorType)
HOW = RunningCode(
    containers=CONTAINERS,
    kept_whole=(Holder,),
    generator_types=GENERATOR_TYPES,
    root_objects=((threading.Thread,), ("pytest",)),
)
KEPT, FORGOTTEN = Holder(), Holder()
KEPT.held = [Base()]
FORGOTTEN.held = {"k": (Base(), [Base()])}
FORGOTTEN.held["loop"] = FORGOTTEN.held


def generator() -> Any:
    local = Base()
    yield local


RUNNING = generator()
next(RUNNING)
LOOK: dict[str, Any] = {"scan_for": (Base,), "libraries": LIBRARIES, "running_code": HOW}
READS: list[tuple[Callable[[Any], Any], Any]] = [(operator.neg, 300), (operator.attrgetter("held"), KEPT)]
CALLS: dict[str, Callable[[], object]] = {
    "snapshot": functools.partial(_core.snapshot, (KEPT, json), [RUNNING], report=(Base,), **LOOK),
    "closure": functools.partial(_core.closure, (KEPT, json), libraries=LIBRARIES),
    "reachable_targets": functools.partial(
        _core.reachable_targets, (KEPT, RUNNING), (KEPT.held,), libraries=LIBRARIES
    ),
    "scan": functools.partial(_core.scan, (Base,)),
    "library_globals": functools.partial(
        _core.library_globals,
        (Base, json.JSONEncoder),
        libraries=LIBRARIES,
        containers=CONTAINERS,
        depth=3,
        caches=(functools._lru_cache_wrapper,),
        modules={"json", "functools", "collections.abc"},
    ),
    "c_callbacks": functools.partial(
        _core.c_callbacks,
        function_type=types.FunctionType,
        method_type=types.MethodType,
        other_types=(functools.partial,),
        generator_types=GENERATOR_TYPES,
    ),
    "referrer_paths": functools.partial(
        _core.referrer_paths,
        (KEPT.held, RUNNING),
        [KEPT],
        ignored_owners=[FORGOTTEN],
        hidden=[(KEPT, LOOK)],
        search_unreachable=True,
    ),
    "nearest_owners": functools.partial(
        _core.nearest_owners, (Base,), [KEPT], through=(list,), hidden=[(KEPT, LOOK)]
    ),
    "frame_locals": functools.partial(_core.frame_locals, RUNNING.gi_frame),
    "frame_locals of a module": functools.partial(_core.frame_locals, sys._getframe()),
    "read": functools.partial(_core.read_unless_inside, READS, unless_inside=generator.__code__, then=[id]),
    "IdSet": functools.partial(IdSet, [KEPT]),
    "repr of an IdSet": functools.partial(repr, IdSet([KEPT])),
    "Libraries": functools.partial(Libraries, (("/some", True), ("/where", False)), ("os", "sys")),
    "is_library": functools.partial(LIBRARIES.is_library, "collections.abc"),
    "RunningCode": functools.partial(
        RunningCode,
        containers=CONTAINERS,
        generator_types=GENERATOR_TYPES,
        scheduled=((Holder, None),),
        root_objects=((), ("pytest",)),
    ),
    "object_stream": _core.object_stream,
    "trim_heap": _core.trim_heap,
}
ENOUGH = 10


def deeper(call: Callable[[], object], levels: int = 3) -> object:
    """Calls from nested frames that have no frame objects yet."""
    return deeper(call, levels - 1) if levels else call()


def outcomes(call: Callable[[], object], length: int) -> Counter[str]:
    """The outcomes of a call if `length` allocations in a row fail, from the first, the second, ... on."""
    import _testcapi  # type: ignore[import-not-found]

    found, done = Counter[str](), 0
    for number in range(2000):
        outcome: BaseException | None = None
        _testcapi.set_nomemory(number, number + length)
        try:
            deeper(call)
        except BaseException as error:
            outcome = error
        finally:
            _testcapi.remove_mem_hooks()
        found[type(outcome).__name__ if outcome else "done"] += 1
        done = 0 if outcome else done + 1
        outcome = None
        if done == ENOUGH:  # the failures start after the last allocation of the call
            gc.collect()
            return found
    raise AssertionError("no end")


@pytest.mark.skipif(not importlib.util.find_spec("_testcapi"), reason="needs the tests of the interpreter")
@pytest.mark.parametrize("length", [1, 2, 100])
def test_a_failing_allocation_is_a_memory_error(length: int) -> None:
    program = f"""
import json
from test_out_of_memory import CALLS, outcomes
for name, call in CALLS.items():
    print(json.dumps([name, outcomes(call, {length})]), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    found = dict(map(json.loads, done.stdout.splitlines()))
    # Python prints errors that it ignores to stderr, and Rust prints panics.
    assert (done.returncode, done.stderr) == (0, ""), f"after {[*found][-1:]}"
    assert {name: {*outcomes} - {"MemoryError", "done"} for name, outcomes in found.items()} == {
        name: set() for name in CALLS
    }
