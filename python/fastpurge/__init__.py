"""Give back the memory of a running PyTorch process, without harming what is in use.

>>> import fastpurge, torch
>>> model, latent, cache = torch.nn.Linear(8, 8), torch.ones(8), [torch.ones(1_000_000)]
>>> report = fastpurge.sweep(keep=[model, latent])
>>> report.released[0].describe()
'float32 Tensor of shape (1000000,) on cpu'

Everything reachable from ``keep`` stays as it is; every other tensor and module that is alive in the
process is released, and raises `PurgedError` when it is used again.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpurge import distributed as distributed
    from fastpurge.guards import Guard
    from fastpurge.inventory import Census, census
    from fastpurge.letting_go import Held, LetGo
    from fastpurge.memory import DeviceMemory, MemoryReading, TrimReport, trim
    from fastpurge.notebook import load_ipython_extension as load_ipython_extension
    from fastpurge.paths import Why, why
    from fastpurge.report import Item, SweepReport
    from fastpurge.safe_points import SafePoint, safe_point
    from fastpurge.sweeping import SweepPlan, plan, sweep
    from fastpurge.tombstones import PurgedError, is_purged
    from fastpurge.tracebacks import let_go
    from fastpurge.watching import Watch, watch

# Where each public name lives. The modules are imported on first use, so that `import fastpurge`
# costs nothing and imports neither torch nor numpy.
_HOMES = {
    "Census": "inventory",
    "DeviceMemory": "memory",
    "Guard": "guards",
    "Held": "letting_go",
    "Item": "report",
    "LetGo": "letting_go",
    "MemoryReading": "memory",
    "PurgedError": "tombstones",
    "SafePoint": "safe_points",
    "SweepPlan": "sweeping",
    "SweepReport": "report",
    "TrimReport": "memory",
    "Watch": "watching",
    "Why": "paths",
    "census": "inventory",
    "is_purged": "tombstones",
    "let_go": "tracebacks",
    "load_ipython_extension": "notebook",  # what `%load_ext fastpurge` calls, and nobody else
    "plan": "sweeping",
    "safe_point": "safe_points",
    "sweep": "sweeping",
    "trim": "memory",
    "watch": "watching",
    "why": "paths",
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


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("torch-fastpurge")
    if name == "distributed":  # a module with calls of its own
        return import_module("fastpurge.distributed")
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module 'fastpurge' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"fastpurge.{home}"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "distributed"])
