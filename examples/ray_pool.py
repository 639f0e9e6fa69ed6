"""Sweep all workers of a Ray pool with one call, and get one report. Run it: ``python ray_pool.py``.

An error names a worker that has died or does not answer in time; the others do not wait for it any longer.
"""

from collections.abc import Sequence
from typing import Any

import fastpurge
import ray
import torch
from fastpurge.distributed import DistributedReport, DistributedSweepError


@ray.remote
class Worker:
    """Has a model, and a cache that only grows."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(100, 100)
        self.cache: list[torch.Tensor] = []

    def work(self, mebibytes: int) -> float:
        """Use the model, and leak some memory."""
        self.cache.append(torch.ones(mebibytes << 18))
        return float(self.model(torch.ones(100)).sum())

    def sweep(self, **options: Any) -> fastpurge.SweepReport:
        """Release everything but the model, and drop the released entries of the cache."""
        report = fastpurge.sweep(keep=[self.model], **options)
        self.cache.clear()
        return report


def sweep_all(pool: Sequence[Any], *, timeout: float = 300, **options: Any) -> DistributedReport:
    """Sweep all workers of a pool at once; reports have the index of a worker as its rank.

    Raises `DistributedSweepError` if a worker has died, failed, or not answered within ``timeout`` seconds:
    after all others have swept, with their reports.
    """
    numbers = {worker.sweep.remote(**options): number for number, worker in enumerate(pool)}
    answered, _ = ray.wait(list(numbers), num_returns=len(numbers), timeout=timeout)
    reports, failures = {}, {}
    for answer, number in numbers.items():
        if answer not in answered:
            failures[number] = f"no answer within {timeout:g} s"
            continue
        try:
            reports[number] = ray.get(answer)
        except ray.exceptions.RayError as error:
            failures[number] = f"{type(error).__name__}: {error}"
    if failures:
        raise DistributedSweepError(reports, failures)
    return DistributedReport(tuple(reports), tuple(reports.values()))


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    pool = [Worker.remote() for _ in range(2)]
    before = ray.get([worker.work.remote(100) for worker in pool])
    print(sweep_all(pool))
    print("same as before:", ray.get([worker.work.remote(1) for worker in pool]) == before)
    ray.kill(pool[1])
    try:
        sweep_all(pool, timeout=60)
    except DistributedSweepError as error:
        print(error)
    ray.shutdown()


if __name__ == "__main__":
    main()
