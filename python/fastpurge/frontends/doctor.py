"""Checks what fastpurge needs and can use on this machine. Works without torch."""

import platform
import sys
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fastpurge import _core
from fastpurge.allocators.resident_set import resident_bytes
from fastpurge.comfy.install import scan_custom_nodes
from fastpurge.reporting.text import human, render

_OLDEST_TORCH = (2, 4)
_NEEDED = ("torch-fastpurge", "torch", "psutil", "rich")
_USED = {
    "numpy": "arrays made from tensors are kept",
    "matplotlib": "report.plot()",
    "ipython": "%load_ext fastpurge",
    "transformers": "fastpurge demo",
}
_OTHER_MALLOCS = ("jemalloc", "tcmalloc", "mimalloc")


@dataclass(frozen=True, slots=True)
class Device:
    """An available device, with its memory in bytes; ``allocated`` and ``reserved`` are of this process."""

    name: str
    description: str
    allocated: int
    reserved: int
    free: int


@dataclass(frozen=True, slots=True)
class ComfyUI:
    """A ComfyUI: the folders of this pack in it, and of other packs that define the same nodes."""

    path: str
    packs: tuple[str, ...]
    rivals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of `examine`.

    Attributes:
        python: implementation, version and platform.
        gil: whether this interpreter has a GIL, which a snapshot needs.
        object_stream: how the heap is read: ``"visitor"`` (no list is built) or ``"list"``.
        malloc: the allocator of the C heap.
        trims: the actions of `fastpurge.trim` that worked here.
        versions: the versions of required distributions; ``None`` if not installed.
        optional: the same for optional distributions.
        devices: the available devices, the CPU first.
        comfyui: the ComfyUI of the argument, or of the current directory.
        problems: what is missing or wrong, each with its fix.

    """

    python: str
    gil: bool
    object_stream: str
    malloc: str
    trims: tuple[str, ...]
    versions: dict[str, str | None]
    optional: dict[str, str | None]
    devices: tuple[Device, ...]
    comfyui: ComfyUI | None
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for `json.dumps`."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"problem: {problem}" for problem in self.problems] or ["all is well"]
        if self.comfyui is not None:
            nodes = ", ".join(self.comfyui.packs) or "not installed"
            lines.insert(0, f"ComfyUI: {self.comfyui.path}, its fastpurge nodes: {nodes}")
        # Not in a table and not wrapped, because they contain paths and commands.
        return "\n".join([render(Group(self._table(), self._device_table())), *lines])

    def _table(self) -> Table:
        table = Table("here", "found")
        table.add_row("python", self.python + ("" if self.gil else ", without a GIL"))
        table.add_row("object stream", self.object_stream)
        table.add_row("malloc", self.malloc)
        table.add_row("trims", ", ".join(self.trims) or "none")
        for name, found in self.versions.items():
            table.add_row(name, found or "not installed")
        for name, found in self.optional.items():
            table.add_row(name, found or f"not installed: {_USED[name]}")
        return table

    def _device_table(self) -> Table:
        table = Table("device", "", "allocated", "reserved", "free")
        for column in table.columns[2:]:
            column.justify = "right"
        for device in self.devices:
            sizes = (device.allocated, device.reserved, device.free)
            table.add_row(device.name, Text(device.description), *map(human, sizes))
        return table


def examine(comfyui: Path | None = None) -> Diagnosis:
    """Check this interpreter, its packages and devices, and a ComfyUI if there is one.

    Initializes all available devices, so it is meant for a process of its own.

    Args:
        comfyui: the folder of a ComfyUI; by default the current directory, if it is one.

    """
    problems: list[str] = []
    torch = _torch(problems)
    gil = bool(getattr(sys, "_is_gil_enabled", lambda: True)())  # from Python 3.13
    if not gil:
        problems.append("Python runs without its GIL, which fastpurge needs: start it with -X gil=1")
    _check_for_namesake(problems)
    devices = (_cpu(), *(_devices(torch, problems) if torch is not None else ()))
    return Diagnosis(
        python=f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}",
        gil=gil,
        object_stream=_core.object_stream(),
        malloc=_malloc(),
        trims=_trims(torch),
        versions={name: _version(name) for name in _NEEDED} | _build(torch),
        optional={name: _version(name) for name in _USED},
        devices=devices,
        comfyui=_comfyui(comfyui, problems),
        problems=tuple(problems),
    )


def _torch(problems: list[str]) -> ModuleType | None:
    try:
        torch = import_module("torch")
    except Exception as error:  # noqa: BLE001 - an installation can be broken in many ways
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            problems.append(
                "PyTorch is not installed: pip install 'torch-fastpurge[torch]', "
                "or see https://pytorch.org for the build for your device"
            )
        else:
            problems.append(f"PyTorch cannot be imported: {type(error).__name__}: {error}")
        return None
    if not isinstance(getattr(torch, "__version__", None), str):
        problems.append(f"what is imported as torch is not PyTorch: {getattr(torch, '__path__', torch)}")
        return None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        problems.append(f"PyTorch {torch.__version__} is older than {oldest}: pip install -U torch")
        return None
    return torch


def _build(torch: Any) -> dict[str, str | None]:
    """The version of torch with its build, such as ``"2.11.0+cu130"``; the metadata may lack the build."""
    return {} if torch is None else {"torch": str(torch.__version__)}


def _check_for_namesake(problems: list[str]) -> None:
    if (found := _version("fastpurge")) is not None:
        problems.append(
            f"the distribution fastpurge {found} is installed, a client for a content delivery network "
            "with the same import name: pip uninstall fastpurge, then "
            "pip install --force-reinstall --no-deps torch-fastpurge"
        )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _malloc() -> str:
    """The allocator of the C library, or one that replaces it, by the name of its file."""
    libc = " ".join(platform.libc_ver()).strip() or "the system's"
    try:
        files = [Path(mapped.path).name for mapped in psutil.Process().memory_maps()]
    except (AttributeError, psutil.Error):  # not on macOS
        return libc
    others = [name for name in _OTHER_MALLOCS if any(name in file for file in files)]
    return f"{others[0]}, in place of {libc}" if others else libc


def _trims(torch: ModuleType | None) -> tuple[str, ...]:
    if torch is None:
        heap = _core.trim_heap()
        return () if heap is None else (heap,)
    from fastpurge.allocators import memory

    return memory.give_back()


def _cpu() -> Device:
    resident = resident_bytes()
    name = platform.processor() or platform.machine()
    return Device("cpu", f"{name}, resident set", resident, resident, psutil.virtual_memory().available)


def _devices(torch: Any, problems: list[str]) -> list[Device]:
    readers: list[partial[Device]] = []
    for kind in ("cuda", "xpu"):
        backend = getattr(torch, kind, None)
        if backend is not None and backend.is_available():
            readers += [partial(_device, f"{kind}:{at}", backend, at) for at in range(backend.device_count())]
    if torch.backends.mps.is_available():
        readers.append(partial(_mps, "mps:0", torch))
    found = []
    for read in readers:
        try:
            found.append(read())
        except (RuntimeError, AttributeError) as error:  # lost, in use elsewhere, or of an old torch
            problems.append(f"{read.args[0]} does not answer: {error}")
    return found


def _device(name: str, backend: Any, index: int) -> Device:
    free, _ = backend.mem_get_info(index)
    allocated, reserved = backend.memory_allocated(index), backend.memory_reserved(index)
    return Device(name, backend.get_device_name(index), allocated, reserved, free)


def _mps(name: str, torch: Any) -> Device:
    allocated, reserved = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
    free = torch.mps.recommended_max_memory() - reserved
    return Device(name, platform.machine(), allocated, reserved, free)


def _comfyui(asked: Path | None, problems: list[str]) -> ComfyUI | None:
    path = Path.cwd() if asked is None else asked
    folder = path / "custom_nodes"
    if not folder.is_dir():
        if asked is not None:
            problems.append(f"{path} is not a ComfyUI: it has no folder custom_nodes")
        return None
    packs, rivals = scan_custom_nodes.find_fastpurge(folder), scan_custom_nodes.find_conflicts(folder)
    if asked is not None and not packs:
        problems.append(f"the nodes are not in this ComfyUI: fastpurge comfyui install {path}")
    problems += [
        f"{rival} defines the same nodes, and what is loaded last wins: remove it" for rival in rivals
    ]
    return ComfyUI(str(path), tuple(map(str, packs)), tuple(map(str, rivals)))
