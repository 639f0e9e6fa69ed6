"""Wrapper subclasses: the inner tensors are released, and the tombstones raise errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastpurge
import pytest
import torch
import torch.distributed as dist
from fastpurge import PurgedError, is_purged

SHARDED = Path(__file__).with_name("dtensor_rank.py")


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("ranks", [1, 2])
def test_dtensors_and_sharded_models_are_released(ranks: int, tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, str(SHARDED), str(rank), str(ranks), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        for rank in range(ranks)
    ]
    recorded = [one.communicate(timeout=400)[0] for one in started]
    assert [one.splitlines()[-1:] for one in recorded] == [["done"]] * ranks, "\n".join(recorded)


class Wrapper(torch.Tensor):
    """A subclass with `__slots__` that wraps a tensor and has no `__tensor_flatten__`."""

    __slots__ = ("inner",)
    inner: Any

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        self: Any = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*(one.inner if isinstance(one, Wrapper) else one for one in args), **(kwargs or {}))


class Traceable(Wrapper):
    __slots__ = ()

    def __tensor_flatten__(self) -> Any:
        raise AssertionError("foreign code was run")


class Owner(torch.Tensor):
    """A subclass with `__slots__` and memory of its own."""

    __slots__ = ("extra",)

    def __tensor_flatten__(self) -> Any:
        raise AssertionError("foreign code was run")


def test_tensors_inside_a_wrapper_with_its_own_layout_are_released(program: Any) -> None:
    program.wrapper = Traceable(torch.ones(1000))
    report = fastpurge.sweep(keep=())
    assert report.skipped == ()
    assert 4000 in [item.nbytes for item in report.released]
    assert is_purged(program.wrapper.inner)
    assert program.wrapper.shape == (1000,)
    with pytest.raises(PurgedError):
        program.wrapper + 1
    assert fastpurge.sweep(keep=()).skipped == ()


def test_a_wrapper_with_unknown_inner_tensors_is_skipped_with_its_contents(program: Any) -> None:
    program.wrapper = Wrapper(torch.ones(1000))
    report = fastpurge.sweep(keep=())
    reasons = {item.type_name: item.reason for item in report.skipped}
    assert reasons == {
        "Wrapper": "the class Wrapper has a layout of its own (__slots__)",
        "Tensor": "a part of something that cannot be released",
    }
    assert (program.wrapper + 1).sum() == 2000


def test_a_subclass_with_slots_and_its_own_memory_is_reported_as_skipped(program: Any) -> None:
    program.owner = torch.ones(1000).as_subclass(Owner)
    report = fastpurge.sweep(keep=())
    assert [item.reason for item in report.skipped] == ["the class Owner has a layout of its own (__slots__)"]
    assert program.owner.sum() == 1000


def test_a_kept_wrapper_keeps_what_it_wraps(program: Any) -> None:
    program.wrapper = Traceable(torch.ones(1000))
    fastpurge.sweep(keep=program.wrapper)
    assert (program.wrapper + 1).sum() == 2000


def test_a_tensor_in_two_wrappers_of_which_one_is_kept_stays(program: Any) -> None:
    program.wrapper, program.kept = Traceable(torch.ones(1000)), None
    program.kept = Traceable(program.wrapper.inner)
    fastpurge.sweep(keep=program.kept)
    assert (program.wrapper + 1).sum() == 2000


def _two() -> Any:
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor")
    return two_tensor.TwoTensor(torch.ones(1000), torch.ones(1000))


def _masked() -> Any:
    return torch.masked.masked_tensor(torch.ones(1000), torch.ones(1000, dtype=torch.bool))


WRAPPERS = {
    "two tensors": (_two, 8000),
    "parameter of two tensors": (lambda: torch.nn.Parameter(_two()), 8000),
    "masked": (_masked, 5000),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(300), torch.ones(700)], layout=torch.jagged),
        4000,
    ),
    "sparse, by coordinates": (
        lambda: torch.sparse_coo_tensor(torch.arange(500)[None], torch.ones(500), (500,)),
        6000,
    ),
    "sparse, by rows": (lambda: torch.eye(500).to_sparse_csr(), 10000),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(4000), 0.1, 0, torch.quint8), 4000),
}


@pytest.mark.imports_much
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_without_its_own_layout_becomes_a_tombstone(name: str, program: Any) -> None:
    make, nbytes = WRAPPERS[name]
    program.wrapper = make()
    report = fastpurge.sweep(keep=())
    assert report.skipped == ()
    assert is_purged(program.wrapper)
    assert sum(item.nbytes for item in report.released) >= nbytes
    with pytest.raises(PurgedError):
        program.wrapper.sum()
