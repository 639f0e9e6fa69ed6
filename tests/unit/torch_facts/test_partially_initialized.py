"""Partially initialized or unknown modules of libraries and of torch do not end a sweep."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import is_purged
from fastpurge.python_facts import imported_modules
from fastpurge.torch_facts import hidden_references
from torch.jit._script import RecursiveScriptModule
from torch.nn.parallel import DistributedDataParallel

READ = [
    "asyncio",
    "concurrent.futures",
    "concurrent.futures.thread",
    "cupy.cuda.memory",
    "numba.cuda.cudadrv.driver",
    "numpy",
    "queue",
    "torch._dynamo.convert_frame",
    "torch._inductor.cudagraph_trees",
    "torch.amp.grad_scaler",
    "torch.optim.optimizer",
    "torch.utils.data",
    "transformers.cache_utils",
    "warp",
]


class Raising(types.ModuleType):
    """A module whose attributes are computed and raise, as those of a lazy module during its import."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def _lazy(name: str) -> Any:
    module = types.ModuleType(name)
    module.__class__ = Raising
    return module


def _raising(name: str) -> Any:
    module = types.ModuleType(name)
    vars(module)["__getattr__"] = pytest.fail
    return module


class NoModule:
    def __getattribute__(self, name: str) -> Any:
        raise ValueError(name)


@pytest.mark.parametrize(
    "make",
    [
        types.ModuleType,
        lambda _: types.ModuleType.__new__(types.ModuleType),
        _lazy,
        _raising,
        lambda _: NoModule(),
        lambda _: None,
    ],
    ids=["empty", "not initialised", "lazy", "with __getattr__", "no module", "None"],
)
def test_modules_under_import_in_another_thread_end_no_sweep(
    make: Any, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.kept, program.leak = torch.ones(4), [torch.ones(100)]
    fastpurge.plan(keep=())  # imports the modules that are imported on demand
    with monkeypatch.context() as patched:
        for name in READ:
            patched.setitem(sys.modules, name, make(name))
        planned = fastpurge.plan(keep=program.kept)
        counted = fastpurge.census(top=1)
        explained = fastpurge.why(program.leak[0])
        report = fastpurge.sweep(keep=program.kept)
    assert planned.nbytes >= 400
    assert counted.count > 0
    assert explained.path == "forgetful_program.leak[0]"
    assert is_purged(program.leak[0])
    assert report.released
    assert program.kept.sum() == 4


# Each library is imported in a process of its own, by a thread beside plans.
BESIDE = """
import importlib, sys, threading, torch, fastpurge
referent, errors, plans = [torch.ones(9)], [], 0
fastpurge.plan(keep=())
thread = threading.Thread(target=importlib.import_module, args=sys.argv[1:2])
thread.start()
while thread.is_alive():
    plans += 1
    try:
        fastpurge.plan(keep=(), collect=False)
        fastpurge.census() if plans % 3 else None
    except Exception as error:
        errors.append(repr(error))
    thread.join(0.02)
assert sys.argv[1] in sys.modules
assert not errors, errors
fastpurge.sweep(keep=())
assert fastpurge.is_purged(referent[0])
"""


@pytest.mark.imports_much
@pytest.mark.parametrize("name", ["torch._dynamo", "transformers.models.bert"])
def test_a_library_can_be_imported_beside_plans(name: str) -> None:
    if name.startswith("transformers"):
        pytest.importorskip("transformers")
    command = [sys.executable, "-W", "ignore", "-c", BESIDE, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("kind", [RecursiveScriptModule, DistributedDataParallel, torch.nn.Module])
def test_a_module_under_construction_in_another_thread_ends_no_sweep(kind: Any, program: Any) -> None:
    program.leak = torch.ones(100)
    program.half_made = [kind.__new__(kind), kind.__new__(kind)]
    fastpurge.plan(keep=program.half_made[0])
    fastpurge.census()
    fastpurge.why(program.half_made[0], program.leak)
    fastpurge.sweep(keep=program.half_made[0])
    assert is_purged(program.leak)
    assert not is_purged(program.half_made[0])


def test_an_object_that_cannot_be_read_is_spared_with_a_reason(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in an unknown version of torch.
    def contents(*_: object) -> Any:
        raise AttributeError("no such accessor")

    program.leak = torch.ones(100)
    with monkeypatch.context() as patched:
        patched.setattr(hidden_references, "contents", contents)
        planned = fastpurge.plan(keep=())
        report = fastpurge.sweep(keep=())
    assert planned.items == report.released == ()
    assert "what is in use cannot be read (AttributeError: no such accessor)" in {
        item.reason for item in report.skipped
    }
    assert program.leak.sum() == 100
    fastpurge.sweep(keep=())
    assert is_purged(program.leak)


def test_a_module_without_a_namespace_has_no_globals() -> None:
    assert imported_modules.namespace(types.ModuleType.__new__(types.ModuleType)) == {}
    assert imported_modules.attribute("no.such.module", "anything") is None
    assert imported_modules.types_in({"torch": ("Tensor", "ones", "no_such_type")}) == (torch.Tensor,)


MODULES_COME_AND_GO = """
import gc, sys, threading, time
from types import ModuleType
import fastpurge

over = threading.Event()

def importing():
    at = 0
    while not over.is_set():
        sys.modules[f"imported_{at}"] = ModuleType(f"imported_{at}")
        sys.modules.pop(f"imported_{at - 50}", None)
        at += 1
        time.sleep(0)

sys.modules |= {f"more_{at}": ModuleType(f"more_{at}") for at in range(3000)}  # CPython keeps 2,000
fastpurge.plan(keep=())
gc.callbacks.append(lambda *_: time.sleep(0.0005))  # as a finalizer may give the GIL away
gc.set_threshold(50, 1000, 1000)
thread = threading.Thread(target=importing)
thread.start()
try:
    for at in range(5):
        sys.path.append(f"/nowhere/{at}")  # so that libraries are looked for again
        fastpurge.plan(keep=())
finally:
    over.set()
    thread.join()
print("looked")
"""


def test_modules_may_be_added_and_removed_during_the_search_for_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MODULES_COME_AND_GO], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "looked", done.stderr
