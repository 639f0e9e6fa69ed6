"""Four ranks of a gloo group, in processes of their own, that sweep together. Run by test_sweep_all_ranks.py.

Each rank runs all cases and writes the result of each as a line of a file, because some cases
kill it. The ranks are forks of one process, because the imports take time.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import fastpurge
import torch
import torch._dynamo  # imported by DistributedDataParallel
import torch.distributed as dist
import torch.distributed.tensor  # likewise
from fastpurge.distributed import DistributedSweepError, sweep
from fastpurge.distributed.store_gather import group_store_of
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power_sgd
from torch.nn.parallel import DistributedDataParallel

_TCPStore: Any = vars(dist)["TCPStore"]  # missing in the type stubs of torch
RANKS = 4
SHORT = 2.0  # seconds to wait for ranks that do not call
LONG = 180  # seconds to wait for ranks that call, on a busy machine
program: Any = types.ModuleType("forgetful_program")
sys.modules[program.__name__] = program


def _error(call: Callable[[], object]) -> dict[str, Any]:
    try:
        call()
    except DistributedSweepError as error:
        released = {rank: [item.shape for item in one.released] for rank, one in error.reports.items()}
        return {"swept": released, "failures": error.failures, "text": str(pickle.loads(pickle.dumps(error)))}
    except Exception as error:
        return {"type": type(error).__name__, "text": str(error)}
    return {}


def before_the_group(rank: int) -> Any:
    return _error(lambda: sweep(keep=()))


def all_sweep(rank: int) -> Any:
    kept = torch.arange(10.0)
    program.forgotten = torch.ones(1000 + rank)
    reports = sweep(keep=[kept], timeout=LONG)
    return {
        "ranks": reports.ranks,
        "released": [[item.shape for item in report.released] for report in reports],
        "freed": [report.freed_bytes for report in reports],
        "freed_bytes": reports.freed_bytes,
        "labels": [report.label for report in reports],
        "json": json.loads(json.dumps(reports.to_dict())),
        "text": str(reports),
        "kept": kept.tolist(),
        "purged": fastpurge.is_purged(program.forgotten),
    }


def a_large_report(rank: int) -> Any:
    with group_store_of(None).round(60) as this:
        heard, silent = this.all_gather(os.urandom(9 << 20))
    left = dist.distributed_c10d._get_default_store().check(["fastpurge/1/0/closed"])
    return {"sizes": [len(recorded) for recorded in heard.values()], "silent": silent, "left": left}


def a_subgroup(rank: int) -> Any:
    group = dist.new_group([1, 3])
    program.forgotten = torch.ones(2000 + rank)
    if rank not in (1, 3):
        return _error(lambda: sweep(keep=(), group=group))
    reports = sweep(keep=(), group=group, timeout=LONG)
    return {"ranks": reports.ranks, "released": [report.released[0].shape for report in reports]}


def a_group_that_was_destroyed(rank: int) -> Any:
    group = dist.new_group()
    dist.destroy_process_group(group)
    return _error(lambda: sweep(keep=(), group=group, timeout=LONG))


def two_threads(rank: int) -> Any:
    """Both threads of every rank sweep, in any order."""
    both = threading.Barrier(2)

    def act() -> Any:
        both.wait()
        return sweep(keep=(), timeout=LONG).ranks

    with ThreadPoolExecutor(2) as pool:
        return [each.result() for each in [pool.submit(act) for _ in range(2)]]


def a_bad_argument(rank: int) -> Any:
    program.forgotten = torch.ones(3000)
    bad: dict[str, Any] = {"min_bytes": -1} if rank == 2 else {}
    return _error(lambda: sweep(keep=(), timeout=LONG, **bad)) | {"left": program.forgotten.sum().item()}


def bad_arguments_of_its_own(rank: int) -> Any:
    options: list[dict[str, Any]] = [
        *({"timeout": bad} for bad in (0, -1, "1", True, None, float("nan"))),
        *({"group": bad} for bad in (3, "world")),
    ]
    return [_error(lambda one=one: sweep(keep=(), **one)) for one in options]  # type: ignore[misc]


class _WhenReleased:
    """An object whose finalizer acts in the middle of a sweep."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do

    def __del__(self) -> None:
        self.do()


def _plant(do: Callable[[], None]) -> None:
    program.model = torch.nn.ReLU()
    program.model.referent = _WhenReleased(do)


def a_sweep_fails(rank: int) -> Any:
    program.forgotten = torch.ones(4000 + rank)
    if rank != 1:
        return _error(lambda: sweep(keep=(), timeout=LONG))
    errors = []
    _plant(lambda: errors.append(_error(lambda: sweep(keep=(), timeout=LONG))))
    fastpurge.sweep(keep=())  # and in it the other, which must raise
    return errors[0]


def collectives_in_flight(rank: int) -> Any:
    named, unnamed = torch.full((100_000,), float(rank)), torch.full((100_000,), float(rank))
    program.unnamed, program.forgotten = unnamed, torch.ones(10)
    del unnamed
    if rank == 3:  # the others cannot finish theirs without it
        sweep(keep=[named, program.unnamed], timeout=LONG)
    works = [dist.all_reduce(tensor, async_op=True) for tensor in (named, program.unnamed)]
    if rank != 3:
        under_way = not any(work.is_completed() for work in works)
        sweep(keep=[named], timeout=LONG)
    for work in works:
        work.wait()
    purged = fastpurge.is_purged(program.forgotten)
    sums = [sorted(set(tensor.tolist())) for tensor in (named, program.unnamed)]
    return {"sums": sums, "purged": purged, "under_way": rank == 3 or under_way}


def _train(rank: int, *, sweeping: bool, hook: bool, **options: Any) -> list[Any]:
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 20))
    model = DistributedDataParallel(net, **options)
    if hook:
        state = power_sgd.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        model.register_comm_hook(state, power_sgd.powerSGD_hook)
        del state
    del net
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: list[Any] = []

    def forget(place: int) -> None:
        if sweeping and place == step % 3:
            program.leak = [torch.ones(50, 50)]
            assert any(item.shape == (50, 50) for item in sweep(keep=[model], timeout=LONG)[rank].released)

    for step in range(4):
        torch.manual_seed(100 * rank + step)
        loss = model(torch.randn(8, 20)).square().mean()
        forget(0)
        loss.backward()
        forget(1)
        seen.append([one.grad.tolist() for one in model.parameters() if one.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        del loss
        forget(2)
    return [*seen, [value.tolist() for value in model.state_dict().values()]]


def training(rank: int) -> Any:
    ways: dict[str, Any] = {
        "plain": {"hook": False},
        "bucket views": {"hook": False, "gradient_as_bucket_view": True, "bucket_cap_mb": 0.001},
        "a hook with a state": {"hook": True},
    }
    same = {}
    for name, way in ways.items():
        alone = _train(rank, sweeping=False, **way)
        same[name] = alone == _train(rank, sweeping=True, **way)
    return same


def one_does_not_call(rank: int) -> Any:
    program.forgotten = torch.ones(5000)
    store = dist.distributed_c10d._get_default_store()
    if rank == 3:  # its next call would count for this one
        while store.add("gave up", 0) < 3:
            time.sleep(0.01)
        return {}
    error = _error(lambda: sweep(keep=(), timeout=SHORT))
    store.add("gave up", 1)
    return error | {"left": program.forgotten.sum().item()}


def and_then_all_call_again(rank: int) -> Any:
    return sweep(keep=(), timeout=LONG).ranks


def and_again(rank: int) -> Any:
    return sweep(keep=(), timeout=LONG).ranks


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _interrupt_soon() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.001)


def _interrupted(call: Callable[[], object]) -> bool:
    try:
        call()
    except KeyboardInterrupt:
        return True
    return False


def one_is_interrupted_in_its_sweep(rank: int) -> Any:
    if rank != 3:
        return _error(lambda: sweep(keep=(), timeout=LONG))
    signal.signal(signal.SIGALRM, _interrupt)
    gc.disable()  # garbage for the collection of the sweep, which then walks the whole heap
    cycle: list[Any] = [_WhenReleased(_interrupt_soon)]
    cycle.append(cycle)
    del cycle
    interrupted = _interrupted(lambda: sweep(keep=(), collect=True, timeout=LONG))
    gc.enable()
    return interrupted


def one_is_interrupted_as_it_waits(rank: int) -> Any:
    program.forgotten = torch.ones(7000)
    store = dist.distributed_c10d._get_default_store()
    if rank == 2:  # the others wait for it
        while not store.add("interrupted", 0):
            time.sleep(0.01)
        return {}
    if rank != 3:
        return _error(lambda: sweep(keep=(), timeout=LONG)) | {"left": program.forgotten.sum().item()}
    this_round = f"fastpurge/{group_store_of(None)._number + 1}/0/count"

    def interrupt() -> None:
        while store.add(this_round, 0) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGALRM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    interrupted = _interrupted(lambda: sweep(keep=(), timeout=LONG))
    store.add("interrupted", 1)
    return interrupted


def one_is_killed_in_its_sweep(rank: int) -> Any:
    program.forgotten = torch.ones(6000 + rank)
    if rank == 3:
        _plant(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return _error(lambda: sweep(keep=(), timeout=SHORT))


def the_one_with_the_store_is_killed(rank: int) -> Any:
    if rank == 0:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return _error(lambda: sweep(keep=(), timeout=LONG))


IN_A_GROUP = (
    all_sweep,
    a_large_report,
    a_subgroup,
    a_group_that_was_destroyed,
    two_threads,
    a_bad_argument,
    bad_arguments_of_its_own,
    a_sweep_fails,
    collectives_in_flight,
    training,
    one_does_not_call,
    and_then_all_call_again,
    one_is_interrupted_in_its_sweep,
    one_is_interrupted_as_it_waits,
    and_again,
    one_is_killed_in_its_sweep,
    the_one_with_the_store_is_killed,
)


def _store(rank: int, folder: Path) -> Any:
    """A store in the process of rank 0, at a port that the system chooses."""
    at = folder / "port"
    if rank == 0:
        store = _TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
        (folder / "port.new").write_text(str(store.port))
        (folder / "port.new").rename(at)
        return store
    while not at.exists():
        time.sleep(0.01)
    return _TCPStore("127.0.0.1", int(at.read_text()), None, is_master=False)


def _act(rank: int, folder: Path) -> None:
    with (folder / f"rank{rank}").open("w") as file:

        def act(case: Callable[[int], Any]) -> None:
            print(json.dumps([case.__name__, case(rank)]), file=file, flush=True)

        act(before_the_group)
        options: dict[str, Any] = {"rank": rank, "world_size": RANKS, "timeout": timedelta(seconds=LONG)}
        dist.init_process_group("gloo", store=_store(rank, folder), **options)
        for case in IN_A_GROUP:
            act(case)


def main() -> None:
    """Fork the ranks, and print the exit status of each."""
    children = []
    for rank in range(RANKS):
        if (child := os.fork()) == 0:
            _act(rank, Path(sys.argv[1]))
            return
        children.append(child)
    sys.stdout.write(
        json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]) + "\n"
    )


if __name__ == "__main__":
    main()
