"""Reading what the allocators and the operating system hold, and making them let go."""

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
    """What torch's allocator holds on one device, in bytes.

    ``allocated`` is in live tensors; ``reserved`` is what the driver has handed over, the cache included.
    """

    allocated: int
    reserved: int


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The memory of this process at one moment, in bytes: resident set, and each device in use."""

    rss: int
    devices: dict[str, DeviceMemory]

    def freed_until(self, later: "MemoryReading") -> dict[str, int]:
        """Bytes given back from here to a later reading, by device; ``"cpu"`` is the resident set.

        Growth counts as nothing freed, not as a negative number.
        """
        return {device: max(0, before - after) for device, (before, after) in self.sizes_until(later).items()}

    def sizes_until(self, later: "MemoryReading") -> dict[str, tuple[int, int]]:
        """Bytes held here and at a later reading, by device: the resident set, and what was reserved."""
        sizes = {"cpu": (self.rss, later.rss)}
        for device, memory in self.devices.items():
            if device in later.devices:
                sizes[device] = (memory.reserved, later.devices[device].reserved)
        return sizes


@dataclass(frozen=True, slots=True)
class TrimReport:
    """What `trim` did: the ``actions`` taken, memory ``before`` and ``after``, and the ``seconds``."""

    actions: tuple[str, ...]
    before: MemoryReading
    after: MemoryReading
    seconds: float

    @property
    def freed_by_device(self) -> dict[str, int]:
        """Bytes given back, by device; ``"cpu"`` is the resident set."""
        return self.before.freed_until(self.after)


def read() -> MemoryReading:
    """Read this process's memory. Starts no device: one that torch has not used is not listed."""
    return MemoryReading(resident_bytes(), _read_devices())


@never_compiled
def trim() -> TrimReport:
    """Give cached memory back: device caches to their drivers, the C heap to the operating system.

    Touches no tensor. A device that torch has not used in this process stays untouched.

    Examples:
        >>> "malloc_trim" in trim().actions  # with glibc
        True

    """
    started = perf_counter()
    with Unrecorded():
        before, actions, after = read(), give_back(), read()
    return TrimReport(actions, before, after, perf_counter() - started)


def give_back() -> tuple[str, ...]:
    """Empty every cache there is, and name what was done."""
    actions = [name for name, action in _device_actions() if _run(action)]
    if (mechanism := _core.trim_heap()) is not None:
        actions.append(mechanism)
    return tuple(actions)


def _device_actions() -> list[tuple[str, Callable[[], object]]]:
    """The cache-emptying calls of each device in use, found by feature: torch grows them over time."""
    found: list[tuple[str, Callable[[], object]]] = []

    def offer(name: str, owner: object, attribute: str) -> None:
        if (action := getattr(owner, attribute, None)) is not None:
            found.append((name, action))

    if _in_use(torch.cuda) and not _captures():  # ROCm builds answer to the same name
        # The workspaces of cuBLAS live in the caching allocator, so they go first.
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
    """Whether this thread is recording a CUDA graph: to free memory would end the recording."""
    try:
        return torch.cuda.is_current_stream_capturing()
    except Exception:  # noqa: BLE001 - a device that is lost records nothing
        return False


def _run(action: Callable[[], object]) -> bool:
    # A cache that cannot be emptied now (a capture is under way, the device is lost) costs memory,
    # nothing else: the sweep goes on and the action is not named.
    try:
        action()
    except Exception:  # noqa: BLE001 - whatever another build of torch raises
        return False
    return True


def fragmented(device: str) -> int:
    """Bytes in a device's cache that lie between allocated blocks, and so cannot be given back."""
    if not device.startswith("cuda"):
        return 0
    found: int = torch.cuda.memory_stats(device).get("inactive_split_bytes.all.current", 0)
    return found


def _in_use(backend: ModuleType | None) -> bool:
    try:
        return backend is not None and backend.is_available() and backend.is_initialized()
    except Exception:  # noqa: BLE001 - a backend that is only half there
        return False


def _read_devices() -> dict[str, DeviceMemory]:
    # One that cannot be read (it is lost) is left out: what a sweep has done is told all the same.
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
