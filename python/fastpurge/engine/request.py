"""The arguments of a sweep, checked before anything is touched."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch

from fastpurge.arguments import check_bool, parse_count, parse_device
from fastpurge.engine.guards import Guard
from fastpurge.engine.keep_argument import check_keep
from fastpurge.python_facts.object_types import is_a, safe_repr, type_name

Devices = str | torch.device | Iterable[str | torch.device] | None
"""One device or several; ``None`` means all devices."""

Collect = bool | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of a sweep, checked and normalized. See `fastpurge.sweep` for their meaning."""

    keep: object
    devices: tuple[torch.device, ...] | None
    models: bool
    wipe: bool
    min_bytes: int
    guards: Guard
    collect: Collect
    label: str

    def covers(self, device: torch.device) -> bool:
        """Whether a device is requested. ``"cuda"`` without an index covers every index."""
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
    """Check every argument; the error names the first wrong one.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the right type and an invalid value.

    """
    check_keep(keep)
    check_bool("models", models)
    check_bool("wipe", wipe)
    min_bytes = parse_count("min_bytes", min_bytes, "an int (bytes)", "0 or more (bytes)")
    if not is_a(guards, Guard):
        names = ", ".join(f"Guard.{guard.name}" for guard in Guard)
        raise TypeError(
            f"guards must be a fastpurge.Guard ({names}, or several joined by |), not {type_name(guards)}"
        )
    if is_a(collect, str):
        collect = cast(Collect, str.__str__(cast(str, collect)))
    if not is_a(collect, str, bool) or collect not in (True, False, "auto"):
        raise ValueError(f"collect must be True, False or 'auto', not {safe_repr(collect)}")
    if label is not None and not is_a(label, str):
        raise TypeError(f"label must be a str or None, not {type_name(label)}")
    return Request(
        keep=keep,
        devices=parse_devices(devices),
        models=models,
        wipe=wipe,
        min_bytes=min_bytes,
        guards=guards,
        collect=collect,
        label=caller if label is None else str.__str__(label) or caller,
    )


def parse_devices(devices: Devices) -> tuple[torch.device, ...] | None:
    """The devices as a tuple; ``None`` means all. Raises `TypeError` and `ValueError` as `parse` does."""
    if devices is None:
        return None
    if is_a(devices, str, torch.device):
        return (parse_device("devices", devices),)
    if not hasattr(type(devices), "__iter__"):
        raise TypeError(
            "devices must be None (all), a device such as 'cpu' or 'cuda:1', a torch.device, "
            f"or several of them, not {type_name(devices)}"
        )
    parsed = tuple(parse_device("devices", device) for device in cast(Iterable[object], devices))
    if not parsed:
        raise ValueError("devices names no device; leave it out (None) to mean all")
    return parsed
