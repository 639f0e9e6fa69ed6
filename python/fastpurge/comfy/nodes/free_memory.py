"""What memory is free on the machine: now, and before the last purge of a prompt."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch

from fastpurge.reporting.text import human


@dataclass(frozen=True, slots=True)
class Free:
    """Free memory in bytes.

    Attributes:
        ram: what the operating system can hand out without swapping.
        vram: what the driver of ComfyUI's device can hand out; 0 if that is no GPU of CUDA or ROCm.

    """

    ram: int
    vram: int

    def tell(self) -> str:
        """In words; VRAM only where there is any."""
        vram = f", {human(self.vram)} VRAM" if self.vram else ""
        return f"free: {human(self.ram)} RAM{vram}"


# A prompt that is over is forgotten with what was noted of it.
_noted: WeakKeyDictionary[Any, Free] = WeakKeyDictionary()


def read() -> Free:
    """Read what is free now."""
    device = import_module("comfy.model_management").get_torch_device()
    vram = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return Free(psutil.virtual_memory().available, vram)


def note(graph: Any) -> None:
    """Note what is free as a purge of this prompt begins."""
    _noted[graph] = read()


def before(graph: Any) -> Free | None:
    """What was free when the last purge of this prompt began; None if none of its nodes has purged."""
    return _noted.get(graph)
