"""Aliases of kept tensors, arrays and buffers are spared, and their memory stays unchanged."""

from __future__ import annotations

import array
import ctypes
import mmap
from pathlib import Path
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import Guard, is_purged

pytestmark = pytest.mark.usefixtures("small_heap")


SHARERS = {
    "view": lambda x: x[2:5],
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "as_strided": lambda x: x.as_strided((2, 2), (1, 1)),
    "dtype view": lambda x: x.view(torch.uint8),
    "transpose": lambda x: x.reshape(3, 4).t(),
    "numpy": lambda x: x.numpy(),
    "numpy view": lambda x: x.numpy()[3:4],
    "storage": lambda x: x.untyped_storage(),
    "typed storage": lambda x: x.storage(),
    "from numpy": lambda x: torch.from_numpy(x.numpy()),
    "dlpack": lambda x: torch.utils.dlpack.from_dlpack(x),
    "parameter": lambda x: torch.nn.Parameter(x),
    "same storage, another tensor": lambda x: torch.empty(0).set_(x.untyped_storage()),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("wipe", [False, True])
@pytest.mark.parametrize("sharer", SHARERS.values(), ids=SHARERS)
def test_tensors_with_kept_aliases_are_spared(sharer: Any, wipe: bool, program: Any) -> None:
    program.base = torch.arange(12.0)
    program.kept = sharer(program.base)
    report = fastpurge.sweep(keep=[program.kept], wipe=wipe)
    assert program.base.tolist() == list(range(12))
    assert report.spared["alias"] >= 48


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("wipe", [False, True])
@pytest.mark.parametrize("sharer", SHARERS.values(), ids=SHARERS)
def test_aliases_of_a_kept_tensor_are_spared(sharer: Any, wipe: bool, program: Any) -> None:
    program.kept = torch.arange(12.0)
    program.sharer = sharer(program.kept)
    fastpurge.sweep(keep=[program.kept], wipe=wipe)
    assert program.kept.tolist() == list(range(12))
    assert not is_purged(program.sharer)


def test_a_tensor_on_a_kept_array_is_spared(program: Any) -> None:
    program.array = np.arange(1000.0)
    program.tensor = torch.from_numpy(program.array[10:20])
    fastpurge.sweep(keep=[program.array[15:]], wipe=True)
    assert program.tensor.tolist() == list(range(10, 20))
    assert program.array.tolist() == list(range(1000))


def test_the_alias_guard_can_be_switched_off(program: Any) -> None:
    program.base = torch.arange(12.0)
    program.kept = program.base[2:5]
    report = fastpurge.sweep(keep=[program.kept], guards=fastpurge.Guard.NONE, wipe=True)
    assert is_purged(program.base)
    assert "alias" not in report.spared
    # Even so the memory belongs to the kept view, and was not overwritten.
    assert program.kept.tolist() == [2, 3, 4]


def test_a_base_array_referenced_only_by_another_array_is_kept(program: Any) -> None:
    program.tensor = torch.arange(4.0)
    program.array = program.tensor.numpy()
    fastpurge.sweep(keep=[[program.array[1:].reshape(1, 3)]])
    assert program.tensor.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("guards", [Guard.ALL, Guard.NONE], ids=["guarded", "unguarded"])
def test_attributes_of_the_base_tensor_of_a_kept_array_are_kept(program: Any, guards: Guard) -> None:
    program.companion = torch.arange(777.0)
    array = torch.arange(776.0).numpy()
    base: Any = array.base
    base.companion = program.companion
    del base
    report = fastpurge.sweep(keep=[array], guards=guards)
    assert program.companion.tolist() == list(range(777))
    assert not {item.shape for item in report.skipped} & {(776,), (777,)}


def test_no_code_of_an_ndarray_subclass_is_run(program: Any) -> None:
    class Raising(np.ndarray[Any, Any]):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    program.tensor = torch.arange(4.0)
    raising = np.ndarray.view(program.tensor.numpy(), Raising)
    fastpurge.sweep(keep=[raising])
    assert program.tensor.tolist() == [0, 1, 2, 3]


def _kept_buffers(folder: Path) -> dict[str, tuple[Any, torch.Tensor]]:
    """Buffers of every kind, each with a tensor that is its alias."""
    data = bytearray(b"\x01" * 16)
    mapped = mmap.mmap(-1, 16)
    mapped.write(data)
    c_array = (ctypes.c_uint8 * 16)(*data)
    machine_array = array.array("B", data)
    path = folder / "file"
    path.write_bytes(data)
    file = np.memmap(path, dtype=np.uint8, mode="r+")
    shared = torch.ones(16, dtype=torch.uint8).share_memory_()
    lent = torch.ones(16, dtype=torch.uint8)
    view = torch.ones(32, dtype=torch.uint8)[8:24]
    lent_array: Any = lent.numpy()
    view_array: Any = view.numpy()
    return {
        "bytearray": (data, torch.frombuffer(data, dtype=torch.uint8)),
        "mmap": (mapped, torch.frombuffer(mapped, dtype=torch.uint8)),
        "ctypes": (c_array, torch.frombuffer(c_array, dtype=torch.uint8)),
        "array": (machine_array, torch.frombuffer(machine_array, dtype=torch.uint8)),
        "memmap": (file, torch.from_numpy(file)),
        "memoryview of a lent tensor": (memoryview(lent_array), lent),
        "ctypes on a lent tensor": ((ctypes.c_uint8 * 16).from_buffer(view_array), view),
        "shared memory": (shared.numpy(), shared),
        "storage": (view.untyped_storage(), view.view(2, 8)),
        "dlpack": (np.from_dlpack(view), view[:]),
    }


def test_kept_buffers_do_not_change(program: Any, tmp_path: Path) -> None:
    pairs = _kept_buffers(tmp_path)
    program.tensors = [tensor for _, tensor in pairs.values()]
    buffers = {name: buffer for name, (buffer, _) in pairs.items()}
    del pairs
    fastpurge.sweep(keep=[buffers], wipe=True)
    changed = [name for name, buffer in buffers.items() if set(bytes(buffer)) != {1}]
    assert changed == []


@pytest.mark.parametrize("guards", [Guard.ALL, Guard.NONE])
def test_a_tensor_on_a_kept_buffer_is_released_and_the_buffer_stays(program: Any, guards: Guard) -> None:
    data = bytearray(b"\x01" * 16)
    program.tensor = torch.frombuffer(data, dtype=torch.uint8)
    fastpurge.sweep(keep=[data], wipe=True, guards=guards)
    assert data == b"\x01" * 16
