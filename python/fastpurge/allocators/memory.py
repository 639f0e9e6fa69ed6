"""Reads memory from the operating system and from allocators, and makes them free their caches."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from types import ModuleType

import torch

from fastpurge import _core
from fastpurge.allocators.resident_set import resident_bytes
from fastpurge.torch_facts.recorders import Unrecorded, never_compiled


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of torch's allocator on one device, in bytes.

    Attributes:
        allocated: in live tensors.
        reserved: taken from the driver, with the cache.

    """

    allocated: int
    reserved: int


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The memory of this process at one moment.

    Attributes:
        rss: the resident set in bytes.
        devices: the memory of each device in use, by name such as ``"cuda:0"``.

    """

    rss: int
    devices: dict[str, DeviceMemory]

    def freed_until(self, later: "MemoryReading") -> dict[str, int]:
        """Bytes freed between this and a later reading, by device; ``"cpu"`` is the resident set.

        0 where memory has grown.
        """
        return {device: max(0, before - after) for device, (before, after) in self.sizes_until(later).items()}

    def sizes_until(self, later: "MemoryReading") -> dict[str, tuple[int, int]]:
        """Bytes at this and at a later reading, by device: resident set of the CPU, reserved of others."""
        sizes = {"cpu": (self.rss, later.rss)}
        for device, memory in self.devices.items():
            if device in later.devices:
                sizes[device] = (memory.reserved, later.devices[device].reserved)
        return sizes


@dataclass(frozen=True, slots=True)
class TrimReport:
    """What `trim` did.

    Attributes:
        actions: the names of the caches that were emptied, such as ``"malloc_trim"``.
        before: memory before.
        after: memory after.
        seconds: how long it took.

    """

    actions: tuple[str, ...]
    before: MemoryReading
    after: MemoryReading
    seconds: float

    @property
    def freed_by_device(self) -> dict[str, int]:
        """Bytes freed by device; ``"cpu"`` is the resident set."""
        return self.before.freed_until(self.after)


def read() -> MemoryReading:
    """Read the memory of this process. Initializes no device: one that torch has not used is left out."""
    return MemoryReading(resident_bytes(), _read_devices())


@never_compiled
def trim() -> TrimReport:
    """Free cached memory: return device caches to their drivers, the C heap to the operating system.

    Touches no tensor, and no device that torch has not used in this process.

    Examples:
        >>> "malloc_trim" in trim().actions  # with glibc
        True

    """
    started = perf_counter()
    with Unrecorded():
        before, actions, after = read(), give_back(), read()
    return TrimReport(actions, before, after, perf_counter() - started)


def give_back() -> tuple[str, ...]:
    """Empty all caches. Returns the names of those that were emptied."""
    actions = [name for name, action in _device_actions() if _run(action)]
    if (mechanism := _core.trim_heap()) is not None:
        actions.append(mechanism)
    return tuple(actions)


def _device_actions() -> list[tuple[str, Callable[[], object]]]:
    """The functions that empty caches of devices in use, as far as this version of torch has them."""
    found: list[tuple[str, Callable[[], object]]] = []

    def offer(name: str, owner: object, attribute: str) -> None:
        if (action := getattr(owner, attribute, None)) is not None:
            found.append((name, action))

    if _in_use(torch.cuda) and not _captures():  # also for ROCm builds
        # First, because cuBLAS workspaces are allocated in the caching allocator.
        offer("cublas workspaces", torch._C, "_cuda_clearCublasWorkspaces")
        offer("cuda ipc", torch.cuda, "ipc_collect")
        offer("cuda cache", torch.cuda, "empty_cache")
        offer("pinned host cache", torch._C, "_host_emptyCache")
    if torch.backends.mps.is_available():
        offer("mps cache", torch.mps, "empty_cache")
    if _in_use(getattr(torch, "xpu", None)):
        offer("xpu cache", torch.xpu, "empty_cache")
    return found


def _captures() -> bool:
    """Whether this thread is recording a CUDA graph: freeing memory would break the recording."""
    try:
        return torch.cuda.is_current_stream_capturing()
    except Exception:  # noqa: BLE001 - a lost device records nothing
        return False


def _run(action: Callable[[], object]) -> bool:
    # A failure (a graph is recording, the device is lost) only costs memory, so the sweep goes on. The action
    # is not in the report then.
    try:
        action()
    except Exception:  # noqa: BLE001 - whatever another build of torch raises
        return False
    return True


def fragmented(device: str) -> int:
    """Bytes in a device's cache that cannot be freed, because they are between allocated blocks."""
    if not device.startswith("cuda"):
        return 0
    found: int = torch.cuda.memory_stats(device).get("inactive_split_bytes.all.current", 0)
    return found


def _in_use(backend: ModuleType | None) -> bool:
    try:
        return backend is not None and backend.is_available() and backend.is_initialized()
    except Exception:  # noqa: BLE001 - an incomplete backend
        return False


def _read_devices() -> dict[str, DeviceMemory]:
    # A device that cannot be read (it is lost) is left out, so that a sweep can still report.
    devices = {}
    for name, backend in (("cuda", torch.cuda), ("xpu", getattr(torch, "xpu", None))):
        if backend is not None and _in_use(backend):
            for index in range(backend.device_count()):
                with suppress(Exception):
                    devices[f"{name}:{index}"] = DeviceMemory(
                        backend.memory_allocated(index), backend.memory_reserved(index)
                    )
    if torch.backends.mps.is_available():
        with suppress(Exception):
            devices["mps:0"] = DeviceMemory(
                torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
            )
    return devices
