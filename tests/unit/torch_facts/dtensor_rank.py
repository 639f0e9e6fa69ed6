"""One rank of a gloo group, with DTensors and a model sharded by FSDP2. Run by test_wrapper_subclasses.py."""

from __future__ import annotations

import copy
import io
import sys
import types
from collections.abc import Callable
from typing import Any

import fastpurge
import torch
import torch.distributed as dist
from fastpurge import PurgedError, is_purged
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

try:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
except ImportError:  # before torch 2.6
    from torch.distributed._composable.fsdp import fully_shard  # type: ignore[attr-defined]
    from torch.distributed._tensor import (  # type: ignore[attr-defined]
        DTensor,
        Replicate,
        Shard,
        distribute_tensor,
    )

program: Any = types.ModuleType("forgetful_program")
sys.modules[program.__name__] = program
ROWS = 1000

USES: tuple[Callable[[Any], object], ...] = (
    lambda x: x + 1,
    lambda x: torch.no_grad()(x.add_)(1),
    lambda x: x.sum(),
    lambda x: x.detach(),
    lambda x: x.to_local(),
    lambda x: x.full_tensor(),
    lambda x: x.redistribute(placements=[Replicate()]).to_local() + 1,
    lambda x: torch.nn.functional.linear(x, x),
    lambda x: torch.save(x, io.BytesIO()),
    copy.deepcopy,
)


def check_raises(tensor: object) -> None:
    for at, use in enumerate(USES):
        try:
            use(tensor)
        except PurgedError:
            continue
        raise AssertionError(f"use {at} of a DTensor without memory was of use")


def a_dtensor_that_nobody_keeps(mesh: DeviceMesh) -> None:
    program.forgotten = distribute_tensor(torch.ones(ROWS, 100), mesh, [Shard(0)])
    program.kept = distribute_tensor(torch.arange(ROWS * 100.0).view(ROWS, 100), mesh, [Shard(0)])
    report = fastpurge.sweep(keep=[program.kept])
    assert report.skipped == (), report.skipped
    assert sum(item.nbytes for item in report.released) >= ROWS // mesh.size() * 100 * 4
    assert is_purged(program.forgotten._local_tensor)
    assert program.forgotten.shape == (ROWS, 100)
    check_raises(program.forgotten)
    assert program.kept.full_tensor().sum() == sum(range(ROWS * 100))


def a_dtensor_in_a_local(mesh: DeviceMesh) -> None:
    local = distribute_tensor(torch.ones(ROWS), mesh, [Shard(0)])
    fastpurge.sweep(keep=())
    assert local.full_tensor().sum() == ROWS


def a_dtensor_that_waits_for_a_backward(mesh: DeviceMesh) -> None:
    leaf = distribute_tensor(torch.ones(ROWS), mesh, [Shard(0)]).requires_grad_()
    program.leaf, program.loss = leaf, (leaf * leaf).sum()
    del leaf
    fastpurge.sweep(keep=program.loss)
    program.loss.backward()
    assert program.leaf.grad.full_tensor().sum() == 2 * ROWS


def a_sharded_model(mesh: DeviceMesh) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 1))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    program.model, program.other = make(), make()
    program.weights = [*program.other.parameters()]
    assert all(type(one) is DTensor for one in program.weights)
    before = [one.full_tensor().tolist() for one in program.model.parameters()]

    report = fastpurge.sweep(keep=[program.model])
    assert report.skipped == (), report.skipped
    assert is_purged(program.other)
    # A rank without rows has nothing to release.
    assert all(is_purged(one._local_tensor) for one in program.weights if one.shape[0] >= mesh.size())
    check_raises(program.weights[0])
    assert [one.full_tensor().tolist() for one in program.model.parameters()] == before

    report = fastpurge.sweep(keep=[program.model])
    assert (report.skipped, sum(item.nbytes for item in report.released)) == ((), 0)


CASES = (
    a_dtensor_that_nobody_keeps,
    a_dtensor_in_a_local,
    a_dtensor_that_waits_for_a_backward,
    a_sharded_model,
)


def main() -> None:
    rank, ranks, store = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(ranks))
    mesh = init_device_mesh("cpu", (int(ranks),))
    for case in CASES:
        case(mesh)
        vars(program).clear()
        dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
