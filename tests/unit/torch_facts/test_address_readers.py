"""Memory that is read by its address is spared: arrays of other libraries, CUDA graphs, pending kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard, is_purged

SIZE = 1 << 22
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")


class Owner:
    """An instance of a class of the program, whose attributes no guard protects."""

    array: Any
    graph: Any


def overwrite(device: str) -> list[torch.Tensor]:
    """Allocate the freed memory again and overwrite it, so that a stale reader reads other values."""
    return [torch.full((SIZE,), torch.nan, device=device) for _ in range(10)]


def _to_warp(tensor: torch.Tensor) -> tuple[Any, Callable[[Any], float]]:
    warp = pytest.importorskip("warp")
    warp.init()
    return warp.from_torch(tensor), lambda array: float(array.numpy().sum())


def _to_cupy(tensor: torch.Tensor) -> tuple[Any, Callable[[Any], float]]:
    cupy = pytest.importorskip("cupy")
    return cupy.asarray(tensor)[:], lambda array: float(array.sum())


def _to_numba(tensor: torch.Tensor) -> tuple[Any, Callable[[Any], float]]:
    cuda = pytest.importorskip("numba.cuda")
    return cuda.as_cuda_array(tensor), lambda array: float(array.copy_to_host().sum())


# Arrays of other libraries


@pytest.mark.parametrize("guards", [Guard.ALL, Guard.NONE], ids=["guarded", "no guards"])
@pytest.mark.parametrize(
    ("device", "convert"),
    [
        pytest.param("cpu", _to_warp, id="warp"),
        pytest.param("cuda", _to_warp, id="warp on a device", marks=[gpu, needs_cuda]),
        pytest.param("cuda", _to_cupy, id="cupy", marks=[gpu, needs_cuda]),
        pytest.param("cuda", _to_numba, id="numba", marks=[gpu, needs_cuda]),
    ],
)
def test_an_array_of_another_library_keeps_its_memory(
    guards: Guard, device: str, convert: Callable[[Any], Any], program: Any
) -> None:
    program.tensor = torch.ones(SIZE, device=device)
    program.owner = Owner()
    program.owner.array, total = convert(program.tensor)
    program.leak = torch.ones(SIZE, device=device)
    report = fastpurge.sweep(keep=(), guards=guards, wipe=True)
    program.later = overwrite(device)
    assert is_purged(program.leak)
    assert total(program.owner.array) == SIZE
    assert not is_purged(program.tensor)
    assert "an array of another library reads its memory" in {item.reason for item in report.skipped}
    program.owner = program.later = None
    fastpurge.sweep(keep=())
    assert is_purged(program.tensor)


# CUDA graphs


def record(program: Any, x: torch.Tensor) -> Any:
    """Capture a CUDA graph that reads a forgotten tensor, with a forgotten result."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        program.result = x.to("cuda", non_blocking=True) * 2 + 1
    return graph


@gpu
@needs_cuda
@pytest.mark.parametrize("pinned", [False, True], ids=["device memory", "pinned memory"])
@pytest.mark.parametrize("owner", ["kept", "forgotten"])
def test_a_cuda_graph_replays_its_capture(owner: str, pinned: bool, program: Any) -> None:
    program.x = torch.ones(SIZE, pin_memory=True) if pinned else torch.ones(SIZE, device="cuda")
    program.owner = Owner()
    program.owner.graph = record(program, program.x)
    kept = [program.owner] if owner == "kept" else []
    report = fastpurge.sweep(keep=kept, wipe=True)
    program.later = [*overwrite("cuda"), torch.full((SIZE,), torch.nan, pin_memory=True)]
    program.owner.graph.replay()
    torch.cuda.synchronize()
    assert program.result.sum() == 3 * SIZE
    assert report.spared["alias"] >= 2 * 4 * SIZE


@gpu
@needs_cuda
@pytest.mark.parametrize(
    "end", [lambda owner: owner.graph.reset(), lambda owner: setattr(owner, "graph", None)]
)
def test_without_a_cuda_graph_memory_is_released(end: Callable[[Owner], None], program: Any) -> None:
    program.x = torch.ones(SIZE, device="cuda")
    program.owner = Owner()
    program.owner.graph = record(program, program.x)
    end(program.owner)
    report = fastpurge.sweep(keep=())
    assert is_purged(program.x)
    assert is_purged(program.result)
    assert report.freed_by_device["cuda:0"] >= 2 * 4 * SIZE


@gpu
@needs_cuda
def test_cuda_graphs_of_the_compiler_block_no_sweep(program: Any) -> None:
    torch.manual_seed(0)
    program.model = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)
    ).cuda()
    program.compiled = torch.compile(program.model, mode="reduce-overhead")
    program.x = torch.randn(8, 64, device="cuda")

    def compute() -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            result: torch.Tensor = program.compiled(program.x).cpu()
        return result

    expected = [compute() for _ in range(4)][-1]
    for _ in range(3):
        program.leak = torch.ones(SIZE, device="cuda")
        fastpurge.sweep(keep=[program.compiled, program.x])
        program.later = overwrite("cuda")
        assert is_purged(program.leak)
        program.later = None
        assert torch.equal(compute(), expected)


@gpu
@needs_cuda
@pytest.mark.parametrize("where", ["here", "in another thread"])
def test_a_cuda_graph_capture_continues_after_a_sweep(where: str, program: Any) -> None:
    x = torch.ones(SIZE, device="cuda")
    program.leak = torch.ones(SIZE, device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    begun, swept = threading.Event(), threading.Event()
    results = []

    def sweep() -> None:
        fastpurge.sweep(keep=[x])

    def work() -> None:
        with torch.cuda.graph(graph):
            y = x * 2
            if where == "here":
                sweep()
            begun.set()
            swept.wait(60)
            z = y + 1
        graph.replay()
        results.append(z.sum().item())

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    if where != "here":
        sweep()
    swept.set()
    thread.join()
    assert results == [3 * SIZE]
    assert is_purged(program.leak)


# Pending kernels


@gpu
@needs_cuda
def test_pending_work_on_another_stream_gives_the_same_result(program: Any) -> None:
    stream = torch.cuda.Stream()
    # In one segment of the allocator, which is not returned to the driver: that would wait for the device.
    program.segment = [torch.ones(1 << 17, device="cuda") for _ in range(8)]
    for _ in range(3):
        program.x = torch.ones(1 << 17, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000_000)
            program.result = program.x * 1
        fastpurge.sweep(keep=[program.segment, program.result])
        program.later = [torch.full((1 << 17,), torch.nan, device="cuda") for _ in range(16)]
        torch.cuda.synchronize()
        assert is_purged(program.x)
        assert program.result.sum() == 1 << 17
        program.later = None


@gpu
@needs_cuda
def test_a_device_that_fails_ends_no_sweep(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    program.leak = torch.ones(SIZE, device="cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    report = fastpurge.sweep(keep=())
    assert is_purged(program.leak)
    assert 4 * SIZE in {item.nbytes for item in report.released}
