"""The memory usage that a purge compares with its threshold, on a fake device with memory of its own.

The tests on a real server are in test_nodes.py.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from fastpurge.allocators import pressure
from fastpurge.comfy.nodes import thresholds
from fastpurge.comfy.nodes.purge_nodes import PurgeAll, PurgePass, PurgeRAM, PurgeVRAM

RAM, VRAM = 40.0, 60.0


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    management = types.SimpleNamespace(get_torch_device=lambda: torch.device("cuda", 0))
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    monkeypatch.setattr(pressure, "can_be_measured", lambda device: device.type == "cuda")
    monkeypatch.setattr(pressure, "device_share", lambda device: VRAM)
    monkeypatch.setattr(pressure, "ram_share", lambda: RAM)


@pytest.mark.parametrize(
    ("purge", "mode", "measured"),
    [
        (PurgeRAM, None, {"RAM": RAM}),
        (PurgeVRAM, None, {"VRAM": VRAM}),
        (PurgeAll, None, {"RAM": RAM, "VRAM": VRAM}),
        (PurgePass, "RAM", {"RAM": RAM}),
        (PurgePass, "VRAM", {"VRAM": VRAM}),
    ],
)
def test_each_purge_measures_the_memory_that_it_frees_and_all_the_fuller_one(
    purge: type[PurgeRAM], mode: str | None, measured: dict[str, float]
) -> None:
    memory = purge().measured_memory({"mode": mode})
    most = int(max(measured.values()))
    assert thresholds.reason_to_skip(most - 1, memory) is None
    said = ", ".join(f"{name} is at {share:.0f}%" for name, share in measured.items())
    assert thresholds.reason_to_skip(most, memory) == f"{said}: not above {most}%, nothing purged"


def test_without_a_threshold_a_purge_always_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "device_share", lambda device: 0.0)  # a device that torch has not used yet
    assert thresholds.reason_to_skip(0, ("VRAM",)) is None
