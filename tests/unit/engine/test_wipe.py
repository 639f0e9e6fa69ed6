"""`wipe` overwrites released memory with zeros, and only memory that nothing else uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import fastpurge
import pytest
import torch
from fastpurge import is_purged

pytestmark = pytest.mark.usefixtures("small_heap")


def test_wipe_zeroes_storages_without_other_owners(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wiped = []
    real = cast(Any, torch.UntypedStorage).fill_
    monkeypatch.setattr(
        torch.UntypedStorage,
        "fill_",
        lambda storage, value: wiped.append(bytes(real(storage, value))),
    )
    program.secret = torch.arange(1, 5, dtype=torch.uint8)
    fastpurge.sweep(keep=(), wipe=True)
    assert bytes(4) in wiped
    assert bytes([1, 2, 3, 4]) not in wiped
    wiped.clear()
    program.secret = torch.arange(1, 5, dtype=torch.uint8)
    fastpurge.sweep(keep=(), wipe=False)
    assert wiped == []


@pytest.mark.parametrize("storage_of", [torch.Tensor.untyped_storage, torch.Tensor.storage])
@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_wipe_never_writes_to_a_storage_in_use(storage_of: Any, program: Any) -> None:
    program.tensors = [torch.ones(4), torch.ones(9)[5:]]
    storages = [storage_of(tensor) for tensor in program.tensors]
    fastpurge.sweep(keep=(), wipe=True)
    assert all(map(is_purged, program.tensors))
    assert all(
        bytes(torch.ones(1).untyped_storage().tolist()) in bytes(storage.untyped().tolist())
        for storage in storages
    )


def test_wipe_never_writes_to_a_mapped_file(program: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(1, 101)))
    program.mapped = torch.from_file(str(file), shared=True, size=100, dtype=torch.uint8)
    fastpurge.sweep(keep=(), wipe=True)
    assert is_purged(program.mapped)
    assert file.read_bytes() == bytes(range(1, 101))


def test_wipe_never_writes_to_memory_of_another_library(program: Any) -> None:
    import numpy as np

    program.array = np.arange(1.0, 5.0)
    program.buffer = bytearray(b"abcd")
    program.tensors = [
        torch.from_numpy(program.array),
        torch.frombuffer(program.buffer, dtype=torch.uint8),
    ]
    fastpurge.sweep(keep=(), wipe=True)
    assert all(map(is_purged, program.tensors))
    assert program.array.tolist() == [1, 2, 3, 4]
    assert program.buffer == b"abcd"


def test_wipe_never_writes_to_memory_shared_with_another_process(program: Any) -> None:
    program.shared = torch.ones(3).share_memory_()
    other = torch.empty(0).set_(program.shared.untyped_storage())
    fastpurge.sweep(keep=[other], guards=fastpurge.Guard.NONE, wipe=True)
    assert is_purged(program.shared)
    assert other[:3].tolist() == [1, 1, 1]
