"""Helpers of the tests of watches and of safe points."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import fastpurge
import psutil
import torch
from fastpurge import Watch
from fastpurge.allocators.pressure import Gauge
from fastpurge.automatic import watch as watch_module

MIB = 1 << 20
SOON = 0.01


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def mebibytes(count: int) -> torch.Tensor:
    return torch.ones(count * MIB, dtype=torch.uint8)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, [(watch, watch.last_error) for watch in watch_module._running]
        time.sleep(0.002)


def readings(watch: Watch, count: int) -> None:
    """Wait until the watch has read the memory ``count`` times."""
    gauge = watch._gauge
    left = [None] * count

    def read() -> float:
        if left:
            left.pop()
        return gauge.read()

    watch._gauge = Gauge(read, gauge.most)
    until(lambda: not left)
    watch._gauge = gauge


def is_due(watch: Watch) -> bool:
    return "due" in repr(watch)


def start(target: Callable[[], object], name: str = "worker") -> threading.Thread:
    thread = threading.Thread(target=target, name=name)
    thread.start()
    return thread


def leak_elsewhere(program: Any) -> None:
    """Fill memory in a thread without safe points, while other threads wait at one."""
    start(lambda: setattr(program, "leak", mebibytes(100))).join()


def watch_above(more: int, keep: Callable[[], object] = tuple, **options: Any) -> Watch:
    """Start a watch whose threshold is ``more`` MiB above the resident set."""
    gc.collect()
    options = {"every": SOON, **options}
    return fastpurge.watch(above=resident() + more * MIB, keep=keep, **options)
