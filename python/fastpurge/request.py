"""What the caller asked for, checked before anything is touched."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from fastpurge.guards import Guard

Devices = str | torch.device | Iterable[str | torch.device] | None
"""One device or several; ``None`` means all."""

Collect = bool | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of a sweep, valid and in one form."""

    keep: object
    devices: tuple[torch.device, ...] | None
    models: bool
    wipe: bool
    min_bytes: int
    guards: Guard
    collect: Collect
    label: str

    def covers(self, device: torch.device) -> bool:
        """Whether a device is among the asked ones; one asked without an index covers every index."""
        return self.devices is None or any(
            device.type == asked.type and asked.index in (None, device.index) for asked in self.devices
        )


def parse(
    *,
    keep: object,
    devices: Devices,
    models: bool,
    wipe: bool,
    min_bytes: int,
    guards: Guard,
    collect: Collect,
    label: str | None,
    caller: str,
) -> Request:
    """Check every argument and say which one is wrong.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the right type and no meaning.

    """
    _check_bool("models", models)
    _check_bool("wipe", wipe)
    if isinstance(min_bytes, bool) or not isinstance(min_bytes, int):
        raise TypeError(f"min_bytes must be an int (bytes), not {type(min_bytes).__name__}")
    if min_bytes < 0:
        raise ValueError(f"min_bytes must be 0 or more (bytes), not {min_bytes}")
    if not isinstance(guards, Guard):
        names = ", ".join(f"Guard.{guard.name}" for guard in Guard)
        raise TypeError(
            f"guards must be a fastpurge.Guard ({names}, or several joined by |), not {type(guards).__name__}"
        )
    if collect is not True and collect is not False and collect != "auto":
        raise ValueError(f"collect must be True, False or 'auto', not {collect!r}")
    if label is not None and not isinstance(label, str):
        raise TypeError(f"label must be a str or None, not {type(label).__name__}")
    return Request(
        keep=keep,
        devices=parse_devices(devices),
        models=models,
        wipe=wipe,
        min_bytes=min_bytes,
        guards=guards,
        collect=collect,
        label=label or caller,
    )


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")


def parse_devices(devices: Devices) -> tuple[torch.device, ...] | None:
    """Devices in one form. Raises `TypeError` and `ValueError` as `parse` does."""
    if devices is None:
        return None
    if isinstance(devices, str | torch.device):
        return (_parse_device(devices),)
    if not isinstance(devices, Iterable):
        raise TypeError(
            "devices must be None (all), a device such as 'cpu' or 'cuda:1', a torch.device, "
            f"or several of them, not {type(devices).__name__}"
        )
    parsed = tuple(_parse_device(device) for device in devices)
    if not parsed:
        raise ValueError("devices names no device; leave it out (None) to mean all")
    return parsed


def _parse_device(device: object) -> torch.device:
    if isinstance(device, torch.device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"devices must hold str or torch.device, not {type(device).__name__}")
    try:
        return torch.device(device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"devices: {device!r} is not a device ({reason})") from None
