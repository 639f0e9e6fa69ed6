"""Who reads the memory of tensors by its address alone: arrays of other libraries, recorded graphs.

Torch does not count such a reader among the owners of a storage. An array that another library made of a
tensor (by ``__cuda_array_interface__``, or from its pointer) holds the tensor's Python object and reads
where its memory was. A recorded graph holds nothing: it replays kernels with the addresses of the time of
recording (https://docs.pytorch.org/docs/stable/notes/cuda.html#constraints).
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

# The type that holds the tensor: of CuPy and Numba what stands for borrowed memory, under all arrays on it.
_BORROWERS = {
    "cupy.cuda.memory": ("UnownedMemory",),
    "numba.cuda.cudadrv.driver": ("MemoryPointer",),
    "warp": ("array",),
}


def exported_tensors() -> list[torch.Tensor]:
    """The tensors whose memory an object of another library reads, and that it holds therefore."""
    types = imported_modules.types_in(_BORROWERS)
    held = gc.get_referents(*_core.scan(types)) if types else []
    attributes = gc.get_referents(*(one for one in held if type(one) is dict))
    return [one for one in (*held, *attributes) if is_a(one, torch.Tensor)]


def device_types_with_graphs() -> set[str]:
    """The types of devices that have a graph to replay, whoever holds it.

    Of those that `torch.compile` records it knows itself what they read: the parameters of the module, and
    copies of its inputs (torch/_inductor/cudagraph_trees.py).
    """
    found = [(kind, graph) for kind, graph, is_recorded in _graphs() if is_recorded]
    if not found:
        return set()
    managed = _core.closure(tuple(_managers()), libraries=libraries())
    return {kind for kind, graph in found if graph not in managed}


def may_be_read_by_graph(obj: Any, device: str | None, replayed: set[str]) -> bool:
    """Whether a graph of one of these types of devices can read the memory of what is on a device."""
    kind = str(device).partition(":")[0]
    return kind in replayed or (kind == "cpu" and is_pinned(obj))


def wait_for(devices: Iterable[str]) -> None:
    """Wait until devices have done what they were asked to.

    Memory that is given back goes to whoever asks next, and of work on other streams than the one it was
    made on the allocator knows nothing (`Tensor.record_stream`). While a graph may be under recording there
    is no waiting: that would break the recording. A device that has failed reads nothing any more.
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
    """Every graph, with the type of its device, and whether it is recorded: not new, under way, or reset."""
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
