"""Free memory of the machine: now, and before the last purge of a prompt."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch

from fastpurge.reporting.text import human


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Free memory, in bytes.

    Attributes:
        ram: available without swapping, as `psutil.virtual_memory().available`.
        vram: free on ComfyUI's device, as `torch.cuda.mem_get_info`; 0 if it is not CUDA or ROCm.

    """

    ram: int
    vram: int

    def to_text(self) -> str:
        """Such as ``free: 12.5 GiB RAM, 8.0 GiB VRAM``; VRAM only if the device has any."""
        vram = f", {human(self.vram)} VRAM" if self.vram else ""
        return f"free: {human(self.ram)} RAM{vram}"


# By prompt, as weak keys: an entry goes away with its prompt.
_recorded: WeakKeyDictionary[Any, FreeMemory] = WeakKeyDictionary()


def read() -> FreeMemory:
    """Read the free memory now."""
    device = import_module("comfy.model_management").get_torch_device()
    vram = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return FreeMemory(psutil.virtual_memory().available, vram)


def record(graph: Any) -> None:
    """Record the free memory as a purge of this prompt begins."""
    _recorded[graph] = read()


def recorded(graph: Any) -> FreeMemory | None:
    """The free memory when the last purge of this prompt began; None if there was no purge."""
    return _recorded.get(graph)
