"""The ``only_above`` widget: skip a purge while memory usage is low."""

from importlib import import_module
from typing import Literal

from fastpurge.allocators import pressure

Memory = Literal["RAM", "VRAM"]


def reason_to_skip(only_above: int, measured: tuple[Memory, ...]) -> str | None:
    """Why to skip the purge: all measured usages are at or below ``only_above`` percent. None: purge."""
    if not only_above:
        return None
    shares = dict(_share(memory) for memory in measured)
    if max(shares.values()) > only_above:
        return None
    found = ", ".join(f"{name} is at {share:.0f}%" for name, share in shares.items())
    return f"{found}: not above {only_above}%, nothing purged"


def _share(memory: Memory) -> tuple[Memory, float]:
    """Usage in percent. VRAM counts as RAM if ComfyUI's device has no memory of its own."""
    device = import_module("comfy.model_management").get_torch_device()
    if memory == "VRAM" and pressure.can_be_measured(device):
        return "VRAM", pressure.device_share(device)
    return "RAM", pressure.ram_share()
