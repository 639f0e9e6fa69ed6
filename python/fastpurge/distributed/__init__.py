"""Sweeping on all ranks of a `torch.distributed` process group."""

from fastpurge.distributed.sweep_all_ranks import DistributedReport, DistributedSweepError, sweep

__all__ = ["DistributedReport", "DistributedSweepError", "sweep"]
