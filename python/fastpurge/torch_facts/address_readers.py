"""Readers of tensor memory by its address alone: arrays of other libraries, and recorded graphs.

Torch does not count such a reader among the owners of a storage. An array that another library made from a
tensor (by ``__cuda_array_interface__``, or from its pointer) references the tensor's Python object, and reads
the address that it had. A recorded graph references nothing: it replays kernels with the addresses that it
recorded (https://docs.pytorch.org/docs/stable/notes/cuda.html#constraints).
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch

from fastpurge import _core
from fastpurge.python_facts import imported_modules
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts.tensors import is_pinned

# The types that reference the tensor. CuPy and Numba have one for foreign memory, which all arrays on it
# share.
_ARRAYS_ON_TENSORS = {
    "cupy.cuda.memory": ("UnownedMemory",),
    "numba.cuda.cudadrv.driver": ("MemoryPointer",),
    "warp": ("array",),
}


def exported_tensors() -> list[torch.Tensor]:
    """The tensors whose memory an array of another library reads."""
    types = imported_modules.types_in(_ARRAYS_ON_TENSORS)
    referents = gc.get_referents(*_core.scan(types)) if types else []
    attributes = gc.get_referents(*(one for one in referents if type(one) is dict))
    return [one for one in (*referents, *attributes) if is_a(one, torch.Tensor)]


def device_types_with_graphs() -> set[str]:
    """The types of devices, such as ``"cuda"``, for which a recorded graph exists.

    Graphs of `torch.compile` do not count. They read only the parameters of the module, and copies of its
    inputs (torch/_inductor/cudagraph_trees.py).
    """
    found = [(kind, graph) for kind, graph, is_recorded in _graphs() if is_recorded]
    if not found:
        return set()
    managed = _core.closure(tuple(_managers()), libraries=libraries())
    return {kind for kind, graph in found if graph not in managed}


def may_be_read_by_graph(obj: Any, device: str | None, types_with_graphs: set[str]) -> bool:
    """Whether a graph on one of these types of devices can read the memory of an object on ``device``."""
    kind = str(device).partition(":")[0]
    return kind in types_with_graphs or (kind == "cpu" and is_pinned(obj))


def wait_for(devices: Iterable[str]) -> None:
    """Synchronize these devices.

    The allocator reuses freed memory at once. It does not know of work on other streams than the one the
    memory was allocated on (`Tensor.record_stream`). While a graph may be recording nothing is synchronized,
    because that would break the recording. Errors are ignored: a device that has failed reads nothing any
    more.
    """
    used = sorted({*devices} - {"cpu", "meta"})
    if used and all(is_recorded for _, _, is_recorded in _graphs()):
        for device in map(torch.device, used):
            with suppress(Exception):
                _synchronize(device)


def _synchronize(device: torch.device) -> None:
    backend: Any = getattr(torch, device.type, None)
    if backend is torch.mps:
        backend.synchronize()
    elif hasattr(backend, "synchronize"):
        backend.synchronize(device)


def _graphs() -> Iterator[tuple[str, Any, bool]]:
    """Every graph: the type of its device, the graph, whether it is recorded (not new, recording, reset)."""
    for kind, name in (("cuda", "_CUDAGraph"), ("xpu", "_XPUGraph")):
        backend, graph_type = getattr(torch, kind, None), getattr(torch._C, name, None)
        if graph_type is not None and backend is not None and backend.is_initialized():
            for graph in _core.scan((graph_type,)):
                yield kind, graph, _has_pool(graph_type, graph)


def _has_pool(graph_type: Any, graph: Any) -> bool:
    try:
        graph_type.pool(graph)  # refused until a recording has ended (aten/src/ATen/cuda/CUDAGraph.cpp)
    except RuntimeError:
        return False
    return True


def _managers() -> list[object]:
    types = imported_modules.types_in({"torch._inductor.cudagraph_trees": ("CUDAGraphTreeManager",)})
    return _core.scan(types) if types else []
