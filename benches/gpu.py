"""Memory that a sweep frees on a GPU, counted by torch and by the driver, compared with plain Python.

``python benches/gpu.py`` needs a CUDA or ROCm device; without one it says so, with exit status 0.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
from collections.abc import Callable
from time import perf_counter

import fastpurge
import torch
from rich.console import Console
from rich.table import Table

MIB = 1 << 20


class Owner:
    """An object of a program that refers to tensors."""

    tensors: list[torch.Tensor]


def reading() -> dict[str, int]:
    """MiB on the first device: allocated and reserved by torch, and in use by the driver."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    counts = {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
    return {name: count // MIB for name, count in {**counts, "driver": total - free}.items()}


def with_fastpurge(kept: Owner, _: Owner) -> None:
    report = fastpurge.sweep(keep=[kept], devices="cuda")
    if not report.released:
        raise RuntimeError(f"nothing was released: {report}")


def in_plain_python(kept: Owner, _: Owner) -> None:
    """Two passes over all objects, which empty every tensor that is not on a whitelist of ids."""
    ids = {id(tensor) for tensor in kept.tensors}
    for obj in gc.get_objects():
        if isinstance(obj, torch.Tensor) and obj.is_cuda and id(obj) not in ids:
            obj.data = torch.empty(0, device=obj.device)
    [obj for obj in gc.get_objects() if isinstance(obj, torch.nn.Module)]
    gc.collect()
    torch.cuda.empty_cache()


def by_the_driver(_: Owner, forgotten: Owner) -> None:
    """The lower bound: the program drops the tensors itself, and the cache is returned to the driver."""
    forgotten.tensors.clear()
    torch.cuda.empty_cache()


def measure(
    purge: Callable[[Owner, Owner], None], megabytes: int
) -> tuple[float, dict[str, int], dict[str, int]]:
    """Milliseconds of a purge with a third of the memory kept, and the readings before and after it."""
    kept, forgotten = Owner(), Owner()
    size = 4 * MIB  # elements of four bytes: 16 MiB for each tensor
    kept.tensors = [torch.ones(size, device="cuda") for _ in range(megabytes // 48)]
    forgotten.tensors = [torch.ones(size, device="cuda") for _ in range(megabytes // 24)]
    before = reading()
    started = perf_counter()
    purge(kept, forgotten)
    torch.cuda.synchronize()
    milliseconds = (perf_counter() - started) * 1e3
    after = reading()
    if not all(bool((tensor == 1).all()) for tensor in kept.tensors):
        raise RuntimeError("what was kept has changed")
    return milliseconds, before, after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=6144, help="how much to allocate")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA or ROCm device")
        return 0
    heap = [({"k": [i]}, [i]) for i in range(300_000)]
    fastpurge.sweep(keep=[heap])
    torch.ones(1, device="cuda")
    table = Table("purge", "ms", *(f"{name} (MiB)" for name in reading()))
    purges = {"fastpurge": with_fastpurge, "plain Python": in_plain_python, "the driver alone": by_the_driver}
    for name, purge in purges.items():
        milliseconds, before, after = min(measure(purge, options.megabytes) for _ in range(3))
        table.add_row(name, f"{milliseconds:.1f}", *(f"{before[key]} -> {after[key]}" for key in before))
    console = Console()
    python = platform.python_version()
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {python}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
