"""Threads compute and check their results while another thread sweeps.

A program, run by `test_threads.py` and `benches/soak.py`.

    python tests/unit/engine/sweep_beside_threads.py --sweeps 20000

Prints one line of JSON: sweeps, checked results, errors, and samples of the process.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastpurge
import numpy as np
import psutil
import torch
from fastpurge.torch_facts.tensors import OWNED_TENSORS_REFERENCE_THEMSELVES

THREADS = 8


def temporaries(seed: int) -> float:
    """Intermediate values that only the stack refers to, and lists under construction."""
    a = torch.full((16, 16), 1.0 + seed)
    b = (a @ a).relu() + (a * 2 - a) @ (a + a.t())
    return float(torch.cat([b.sum().view(1), torch.stack([b.mean(), a.mean()])]).sum())


def containers(seed: int) -> float:
    """Values in plain containers, closures, generators and iterators of running code."""
    parts = {"k": [(torch.ones(4) * seed,), {"deep": torch.ones(4)}]}

    def generate() -> Iterator[torch.Tensor]:
        local = torch.full((4,), 2.0)
        for i in range(3):
            yield local * i

    captured = torch.ones(4) * 3
    add: Callable[[torch.Tensor], torch.Tensor] = lambda x: x + captured  # noqa: E731
    total = functools.reduce(torch.add, map(add, generate()))
    for one in (torch.ones(4), torch.ones(4) * seed):
        total = total + one
    referent: Any = parts["k"]
    return float((total + referent[0][0] + referent[1]["deep"]).sum())


def training(seed: int) -> float:
    """A training step on a local model: graph, gradients, optimizer state."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1 + seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        loss = model(torch.ones(2, 4)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(sum(parameter.detach().sum() for parameter in model.parameters()))


def arrays(seed: int) -> float:
    """NumPy arrays that are aliases of tensors, and tensors that are aliases of arrays."""
    array = (torch.ones(64) * seed).numpy()
    tensor = torch.from_numpy(np.arange(64.0, dtype=np.float32))
    view = (torch.arange(64.0) + 1)[3:9]
    return float(array.sum() + tensor.sum() + view.numpy().sum())


def detached(seed: int) -> float:
    """Memory in use whose first tensor is garbage already."""
    total = 0.0
    for shift in range(3):
        whole = torch.full((300, 300), float(seed))
        part = whole.detach()[shift:]
        del whole
        total += float(part.clone().exp_().sum())
    return total


class Shared:
    """A cache in an object of the program, which no guard protects: its contents may be released anytime."""


SHARED: Any = Shared()


def shared(seed: int) -> float:
    """An unprotected value: a sweep releases it during an operation on it, or not at all."""
    name = f"value{seed}"
    try:
        return float(getattr(SHARED, name).clone().exp_().sum())
    except (AttributeError, fastpurge.PurgedError):
        setattr(SHARED, name, torch.full((200, 200), float(seed)))
        return shared(seed)


def backward(seed: int) -> float:
    """A graph under backward, which an unprotected value also refers to."""
    weight = torch.full((50, 50), 0.01 * (seed + 1), requires_grad=True)
    value = weight
    for _ in range(100):
        value = (value * weight).sin()
    SHARED.midway = value
    value.sum().backward()
    return float(weight.grad.sum())  # type: ignore[union-attr]


JOBS = (temporaries, containers, training, detached, shared, backward)


def work(
    number: int,
    expected: dict[Any, float],
    stop: threading.Event,
    log: dict[str, Any],
    asked: argparse.Namespace,
) -> None:
    torch.set_default_device(asked.device)  # of this thread
    try:
        for job, seed in itertools.cycle(expected):
            if stop.wait(asked.pause) if asked.pause else stop.is_set():
                return
            if (result := job(seed)) != expected[job, seed]:
                raise AssertionError(f"{job.__name__}({seed}): {result} != {expected[job, seed]}")
            log["checked"][number] += 1
    except BaseException as error:
        log["errors"].append(f"{type(error).__name__}: {error}")
        stop.set()
    finally:
        # Otherwise torch drops it after the end of the thread, when the interpreter may be ending too.
        torch.set_default_device(None)


def forget(program: Any) -> None:
    """Forgotten objects of each round, for the sweep to release."""
    program.CACHE = {"tensors": [torch.ones(1000) for _ in range(5)], "model": torch.nn.Linear(4, 4)}
    program.VIEW = torch.ones(1000)[:1]


def sample(sweep: int) -> dict[str, float]:
    """A sample: resident bytes, tracked objects that are no garbage, open files, threads."""
    gc.collect()
    process = psutil.Process()
    return {
        "at": sweep,
        "seconds": round(time.monotonic() - STARTED, 2),
        "rss": process.memory_info().rss,
        "objects": len(gc.get_objects()),
        "handles": process.num_fds(),
        "threads": process.num_threads(),
    }


# Before torch 2.10 a sweep spares more while a thread is inside a backward.
SPARED_REASON = (
    "may be a gradient" if OWNED_TENSORS_REFERENCE_THEMSELVES else "another thread is inside a backward"
)
STARTED = time.monotonic()
LEAK: list[Any] = []


def leak() -> None:
    """A leak as a faulty sweep could cause: objects, memory, an open file."""
    LEAK.append(([[] for _ in range(50)], b"leaked" * 200_000, Path(__file__).open("rb")))  # noqa: SIM115


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=50, help="how often to look at what the process holds")
    parser.add_argument("--pause", type=float, default=0, help="seconds that a thread rests between results")
    parser.add_argument("--device", default="cpu", help="where to compute")
    parser.add_argument("--leak", action="store_true", help="leak, to see that it is seen")
    return parser.parse_args()


def main() -> int:
    asked = options()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-4)
    program: Any = types.ModuleType("forgetful_program")
    sys.modules[program.__name__] = program
    torch.set_default_device(asked.device)
    jobs = (*JOBS, arrays) if asked.device == "cpu" else JOBS
    expected = {(job, seed): job(seed) for job in jobs for seed in range(3)}
    # `gc.freeze` hides existing objects from the collector: a sweep takes milliseconds.
    gc.collect()
    gc.freeze()

    stop = threading.Event()
    log: dict[str, Any] = {"checked": [0] * THREADS, "errors": [], "series": []}
    threads = [
        threading.Thread(target=work, daemon=True, args=(n, expected, stop, log, asked))
        for n in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    released = sweep_until(stop, asked, program, log)
    stop.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({**log, "sweeps": released}) + "\n")
    return 1 if log["errors"] else 0


def sweep_until(stop: threading.Event, asked: argparse.Namespace, program: Any, log: dict[str, Any]) -> int:
    """Run the sweeps; return how many of them released the forgotten objects."""
    released = 0
    for number in range(asked.sweeps):
        if stop.is_set():
            break
        forget(program)
        report = fastpurge.sweep(keep=(), wipe=number % 2 == 0)
        released += fastpurge.is_purged(program.VIEW) and fastpurge.is_purged(program.CACHE["model"])
        if asked.leak:
            leak()
        if number % -(-asked.sweeps // asked.samples) == 0:
            log["series"].append(sample(number))
        # Threads may take objects during the sweep, also those that refer to themselves.
        for item in report.skipped:
            if item.shape != (200, 200) and SPARED_REASON not in str(item.reason):
                log["errors"].append(f"skipped: {item}")
                stop.set()
    return released


if __name__ == "__main__":
    sys.exit(main())
