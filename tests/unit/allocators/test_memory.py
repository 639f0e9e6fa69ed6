"""Readings and trims of real memory."""

from __future__ import annotations

import sys
from typing import Any

import fastpurge
import psutil
import pytest
import torch
from fastpurge.allocators import memory
from fastpurge.allocators.memory import DeviceMemory, MemoryReading


def test_a_reading_is_the_resident_set() -> None:
    rss = psutil.Process().memory_info().rss
    assert abs(memory.read().rss - rss) < 64 * 2**20


def test_a_reading_lists_no_device_that_torch_has_not_used() -> None:
    if not torch.cuda.is_initialized():
        assert not any(device.startswith("cuda") for device in memory.read().devices)


def test_memory_growth_counts_as_zero_freed() -> None:
    before = MemoryReading(100, {"cuda:0": DeviceMemory(5, 10), "cuda:1": DeviceMemory(0, 7)})
    after = MemoryReading(150, {"cuda:0": DeviceMemory(5, 4)})
    assert before.freed_until(after) == {"cpu": 0, "cuda:0": 6}
    assert after.freed_until(before) == {"cpu": 50, "cuda:0": 0}


def test_trim_returns_the_heap_to_the_system_and_names_the_actions() -> None:
    blocks = [bytearray(64 * 1024) for _ in range(4000)]
    top = bytearray(64 * 1024)
    for block in blocks:
        block[::4096] = b"x" * 16
    del blocks
    del block
    report = fastpurge.trim()
    assert report.before.rss >= report.after.rss
    assert report.freed_by_device["cpu"] == report.before.rss - report.after.rss
    assert report.seconds > 0
    if sys.platform == "linux":
        assert "malloc_trim" in report.actions
    assert len(top) == 64 * 1024


def test_a_trim_action_that_fails_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(memory, "_device_actions", lambda: [("fine", list), ("lost", fail)])
    actions = fastpurge.trim().actions
    assert "fine" in actions
    assert "lost" not in actions


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_a_sweep_returns_device_memory_to_the_driver(program: Any) -> None:
    kept = torch.ones(2**20, device="cuda")
    program.forgotten = torch.ones(2**28, device="cuda")
    report = fastpurge.sweep(keep=[kept], devices="cuda")
    freed = report.freed_by_device[f"cuda:{kept.device.index}"]
    assert 0.9 * 2**30 <= freed <= 1.1 * 2**30
    assert kept.sum() == 2**20
    assert fastpurge.is_purged(program.forgotten)
    assert "cuda cache" in fastpurge.trim().actions
