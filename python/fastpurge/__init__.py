"""Give back the memory of a running PyTorch process, without harming what is in use.

>>> import fastpurge
>>> report = fastpurge.sweep(keep=[model, latent])  # doctest: +SKIP
>>> print(report)  # doctest: +SKIP

Everything reachable from ``keep`` stays as it is; every other tensor and module that is alive in the
process is released, and raises `PurgedError` when it is used again.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpurge.guards import Guard
    from fastpurge.inventory import Census, census
    from fastpurge.memory import DeviceMemory, MemoryReading, TrimReport, trim
    from fastpurge.paths import Why, why
    from fastpurge.report import Item, SweepReport
    from fastpurge.sweeping import SweepPlan, plan, sweep
    from fastpurge.tombstones import PurgedError, is_purged

# Where each public name lives. The modules are imported on first use, so that `import fastpurge`
# costs nothing and imports neither torch nor numpy.
_HOMES = {
    "Census": "inventory",
    "DeviceMemory": "memory",
    "Guard": "guards",
    "Item": "report",
    "MemoryReading": "memory",
    "PurgedError": "tombstones",
    "SweepPlan": "sweeping",
    "SweepReport": "report",
    "TrimReport": "memory",
    "Why": "paths",
    "census": "inventory",
    "is_purged": "tombstones",
    "plan": "sweeping",
    "sweep": "sweeping",
    "trim": "memory",
    "why": "paths",
}

__all__ = [
    "Census",
    "DeviceMemory",
    "Guard",
    "Item",
    "MemoryReading",
    "PurgedError",
    "SweepPlan",
    "SweepReport",
    "TrimReport",
    "Why",
    "census",
    "is_purged",
    "plan",
    "sweep",
    "trim",
    "why",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("torch-fastpurge")
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module 'fastpurge' has no attribute {name!r}")
    return getattr(import_module(f"fastpurge.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
