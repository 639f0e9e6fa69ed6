"""Measures how full memory is, and compares it with a threshold."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import psutil
import torch

from fastpurge.allocators.resident_set import resident_bytes
from fastpurge.arguments import parse_device

Amount = str | int
"""A share of all memory, such as ``"90%"``, or a number of bytes."""

_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
_LEAST = 1 << 20
_BELOW = 0.9  # times `above`, by default


@dataclass(frozen=True, slots=True)
class Gauge:
    """A function that measures memory, in percent or in bytes.

    Attributes:
        read: measures.
        most: the largest value that it can return.

    """

    read: Callable[[], float]
    most: float


class Threshold:
    """The value above which a sweep is due. It adapts, so that sweeps that free nothing are not repeated.

    After a sweep that does not get memory below ``below``, the threshold rises: the next sweep is due when
    memory has grown by ``above`` minus ``below`` since then, or by half of the free memory if that is less.
    As soon as memory falls below ``below``, the threshold is ``above`` again.
    """

    def __init__(self, above: float, below: float, most: float = inf) -> None:
        self.above = above
        self.below = below
        self._most = most
        self._at = above

    def is_passed(self, reading: float) -> bool:
        """Whether a sweep is due."""
        if reading < self.below:
            self._at = self.above
        return reading > self._at

    def note_swept(self, left: float) -> None:
        """Adapt the threshold to the value measured after a sweep."""
        growth = min(self.above - self.below, (self._most - left) / 2)
        self._at = self.above if left < self.below else max(self.above, left + growth)


def parse(
    above: Amount, below: Amount | None, device: "str | torch.device | None"
) -> tuple[Gauge, Threshold]:
    """The gauge and the threshold for these arguments of `fastpurge.watch`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has an invalid value, or there is no such device.

    """
    is_share, most_wanted = _parse_amount("above", above)
    low = _BELOW * most_wanted
    if below is not None:
        is_same, low = _parse_amount("below", below)
        if is_same is not is_share:
            raise ValueError(
                f"below must be a share or a number of bytes as above ({above!r}), not {below!r}"
            )
        if low >= most_wanted:
            raise ValueError(f"below must be less than above ({above!r}), not {below!r}")
    gauge = _gauge(_measurable_device(device), is_share=is_share)
    return gauge, Threshold(most_wanted, low, gauge.most)


def ram_share() -> float:
    """RAM in use in percent: of the machine, or of a control group that is closer to its limit."""
    memory = psutil.virtual_memory()
    return max(100 * (1 - memory.available / memory.total), *cgroup_shares())


def can_be_measured(device: torch.device) -> bool:
    """Whether torch can read how full the memory of a device is."""
    return hasattr(getattr(torch, device.type, None), "mem_get_info")


def device_share(device: torch.device) -> float:
    """The percentage of a device's memory in use by all processes. Without an index, of the fullest device.

    0 if torch has not used the device in this process, because reading would initialize it and take memory.
    """
    backend = getattr(torch, device.type)
    infos = [backend.mem_get_info(index) for index in _used(backend, device)]
    return max((100 * (1 - free / total) for free, total in infos), default=0.0)


def cgroup_shares(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Iterator[float]:
    """Memory in use in percent of each limit of a control group (cgroup v2), without inactive file caches.

    The kernel frees these before it kills a process, and `docker stats` leaves them out, too. 0 without a
    limit.
    """
    yield 0.0
    with suppress(OSError, StopIteration):  # no Linux; no cgroup v2
        lines = membership.read_text().splitlines()
        path = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
        for folder in (root / path, *(root / path).parents):
            if folder.is_relative_to(root):
                with suppress(OSError, ValueError, ZeroDivisionError):  # no controller; "max": no limit
                    limit = int((folder / "memory.max").read_text())
                    yield 100 * _used_by_cgroup(folder) / limit


def _used_by_cgroup(folder: Path) -> int:
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int((folder / "memory.current").read_text()) - int(statistics["inactive_file"])


def _parse_amount(name: str, amount: object) -> tuple[bool, float]:
    """Whether an amount is a share, and its value in percent or bytes."""
    if isinstance(amount, bool) or not isinstance(amount, str | int):
        raise TypeError(
            f"{name} must be a share such as '90%' or a number of bytes (int), not {type(amount).__name__}"
        )
    if isinstance(amount, int):
        if amount < _LEAST:  # a percentage, most likely
            raise ValueError(
                f"{name} must be {_LEAST:,} bytes or more, or a share such as '90%', not {amount}"
            )
        return False, amount
    found = _PERCENT.fullmatch(amount.strip())
    if found is None or not 0 < float(found[1]) < 100:  # noqa: PLR2004 - percent
        raise ValueError(f"{name} must be a share between 0% and 100%, such as '90%', not {amount!r}")
    return True, float(found[1])


def _measurable_device(device: object) -> torch.device:
    """The device to measure, the CPU for ``None``. Raises `ValueError` if torch cannot measure it here."""
    parsed = parse_device("device", "cpu" if device is None else device)
    if parsed.type != "cpu":
        backend: Any = getattr(torch, parsed.type, None)
        if not can_be_measured(parsed):
            raise ValueError(f"device: torch cannot read the memory of {str(parsed)!r}")
        if (parsed.index or 0) >= backend.device_count():
            raise ValueError(f"device: there is no {str(parsed)!r}; torch finds {backend.device_count()}")
    return parsed


def _gauge(device: torch.device, *, is_share: bool) -> Gauge:
    if device.type == "cpu":
        return Gauge(ram_share, 100) if is_share else Gauge(resident_bytes, inf)
    if is_share:
        return Gauge(lambda: device_share(device), 100)
    return Gauge(lambda: _reserved(device), inf)


def _reserved(device: torch.device) -> float:
    """The bytes reserved by this process. Without an index, on the device with the most."""
    backend = getattr(torch, device.type)
    return max((backend.memory_reserved(index) for index in _used(backend, device)), default=0)


def _used(backend: Any, device: torch.device) -> list[int]:
    """The indices of the requested devices on which torch has reserved memory."""
    if not backend.is_initialized():
        return []
    asked = range(backend.device_count()) if device.index is None else [device.index]
    return [index for index in asked if backend.memory_reserved(index)]
