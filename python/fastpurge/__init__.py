"""Free the memory of a running PyTorch process, without touching what is in use.

>>> import fastpurge, torch
>>> model, latent, cache = torch.nn.Linear(8, 8), torch.ones(8), [torch.ones(1_000_000)]
>>> report = fastpurge.sweep(keep=[model, latent])
>>> report.released[0].describe()
'float32 Tensor of shape (1000000,) on cpu'

Everything reachable from ``keep`` stays bit-for-bit unchanged. Every other live tensor and module in the
process is released, unless a guard spares it, and raises `PurgedError` when it is used again.
"""

import os
from _thread import get_ident
from importlib import import_module
from sys import is_finalizing
from time import monotonic, sleep
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpurge import distributed as distributed
    from fastpurge.allocators.memory import DeviceMemory, MemoryReading, TrimReport, trim
    from fastpurge.automatic.safe_points import SafePoint, safe_point
    from fastpurge.automatic.watch import Watch, watch
    from fastpurge.engine.guards import Guard
    from fastpurge.engine.sweep import SweepPlan, plan, sweep
    from fastpurge.exceptions.let_go import let_go
    from fastpurge.exceptions.let_go_result import Held, LetGo
    from fastpurge.frontends.notebook import load_ipython_extension as load_ipython_extension
    from fastpurge.inspection.census import Census, census
    from fastpurge.inspection.why import Why, why
    from fastpurge.reporting.items import Item
    from fastpurge.reporting.report import SweepReport
    from fastpurge.tombstones import PurgedError, is_purged

# The module that defines each public name. It is imported on first use, so that `import fastpurge` is fast
# and imports neither torch nor NumPy.
_HOMES = {
    "Census": "inspection.census",
    "DeviceMemory": "allocators.memory",
    "Guard": "engine.guards",
    "Held": "exceptions.let_go_result",
    "Item": "reporting.items",
    "LetGo": "exceptions.let_go_result",
    "MemoryReading": "allocators.memory",
    "PurgedError": "tombstones",
    "SafePoint": "automatic.safe_points",
    "SweepPlan": "engine.sweep",
    "SweepReport": "reporting.report",
    "TrimReport": "allocators.memory",
    "Watch": "automatic.watch",
    "Why": "inspection.why",
    "census": "inspection.census",
    "is_purged": "tombstones",
    "let_go": "exceptions.let_go",
    "load_ipython_extension": "frontends.notebook",  # only for `%load_ext fastpurge`
    "plan": "engine.sweep",
    "safe_point": "automatic.safe_points",
    "sweep": "engine.sweep",
    "trim": "allocators.memory",
    "watch": "automatic.watch",
    "why": "inspection.why",
}

__all__ = [
    "Census",
    "DeviceMemory",
    "Guard",
    "Held",
    "Item",
    "LetGo",
    "MemoryReading",
    "PurgedError",
    "SafePoint",
    "SweepPlan",
    "SweepReport",
    "TrimReport",
    "Watch",
    "Why",
    "census",
    "is_purged",
    "let_go",
    "plan",
    "safe_point",
    "sweep",
    "trim",
    "watch",
    "why",
]


# The threads that are importing one of these modules, which takes a second or two the first time.
_importing: set[int] = set()
_reasons: list[str] = []
"""The reason why nothing can be imported any more, if there is one."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("torch-fastpurge")
    if name == "distributed":  # a public sub-package
        return import_module("fastpurge.distributed")
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module 'fastpurge' has no attribute {name!r}")
    found = globals()[name] = getattr(_imported(f"fastpurge.{home}"), name)
    return found


def _imported(module: str) -> ModuleType:
    thread = get_ident()
    if thread in _importing:
        raise RuntimeError(_IS_BEING_IMPORTED)
    if is_finalizing():
        raise RuntimeError("the interpreter is shutting down: fastpurge cannot import what it needs")
    if _reasons:
        raise RuntimeError(_reasons[0])
    try:
        _importing.add(thread)
        return import_module(module)
    finally:
        _importing.discard(thread)


_IS_BEING_IMPORTED = (
    "fastpurge is being imported: a finalizer, or a callback of the garbage collector, cannot use it yet"
)
_WAS_BEING_IMPORTED = (
    "this process was forked while another thread was importing fastpurge, so the import can never finish: "
    "use fastpurge once before you start threads"
)
_SECONDS_TO_WAIT = 30


def _wait_for_other_threads() -> None:
    """Before a fork, wait for imports in other threads: a child would never get their import locks.

    Wait no longer than 30 seconds: the other thread may be waiting for a lock of this one.
    """
    began = monotonic()
    while _importing - {get_ident()} and monotonic() - began < _SECONDS_TO_WAIT:
        sleep(0.001)


def _forget_other_threads() -> None:
    if _importing - {get_ident()}:
        _reasons.append(_WAS_BEING_IMPORTED)
    _importing.intersection_update({get_ident()})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait_for_other_threads, after_in_child=_forget_other_threads)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "distributed"])
