"""Whether memory is full enough for a purge that is only wanted then."""

from importlib import import_module
from typing import Literal

from fastpurge.allocators import pressure

Memory = Literal["RAM", "VRAM"]


def why_not(only_above: int, measured: tuple[Memory, ...]) -> str | None:
    """Say why nothing is to be purged: no memory asked about is above so many percent. None: something is."""
    if not only_above:
        return None
    shares = dict(_share(memory) for memory in measured)
    if max(shares.values()) > only_above:
        return None
    found = ", ".join(f"{name} is at {share:.0f}%" for name, share in shares.items())
    return f"{found}: not above {only_above}%, nothing purged"


def _share(memory: Memory) -> tuple[Memory, float]:
    """What is in use of it, in percent. VRAM is RAM where ComfyUI's device has none of its own."""
    device = import_module("comfy.model_management").get_torch_device()
    if memory == "VRAM" and pressure.can_be_measured(device):
        return "VRAM", pressure.device_share(device)
    return "RAM", pressure.ram_share()
