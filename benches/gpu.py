"""What a sweep gives back on a GPU, by torch's count and by the driver's, beside the plain-Python way.

``python benches/gpu.py`` where there is a CUDA or ROCm device; elsewhere it says so and ends well.
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


class Holder:
    """What a program keeps things in."""

    tensors: list[torch.Tensor]


def reading() -> dict[str, int]:
    """MiB on the first device: allocated and reserved by torch's count, and what the driver says is taken."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    counts = {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
    return {name: count // MIB for name, count in {**counts, "driver": total - free}.items()}


def with_fastpurge(kept: Holder, _: Holder) -> None:
    report = fastpurge.sweep(keep=[kept], devices="cuda")
    if not report.released:
        raise RuntimeError(f"nothing was released: {report}")


def in_plain_python(kept: Holder, _: Holder) -> None:
    """A whitelist of ids, two passes, and the memory taken from what is not on it."""
    ids = {id(tensor) for tensor in kept.tensors}
    for obj in gc.get_objects():
        if isinstance(obj, torch.Tensor) and obj.is_cuda and id(obj) not in ids:
            obj.data = torch.empty(0, device=obj.device)
    [obj for obj in gc.get_objects() if isinstance(obj, torch.nn.Module)]
    gc.collect()
    torch.cuda.empty_cache()


def by_the_driver(_: Holder, forgotten: Holder) -> None:
    """What no purge can be faster than: the program lets go by itself, and the cache goes to the driver."""
    forgotten.tensors.clear()
    torch.cuda.empty_cache()


def measure(
    purge: Callable[[Holder, Holder], None], megabytes: int
) -> tuple[float, dict[str, int], dict[str, int]]:
    """Milliseconds of a purge with a third of the memory kept, and the readings around it."""
    kept, forgotten = Holder(), Holder()
    size = 4 * MIB  # in elements of four bytes: 16 MiB each
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
