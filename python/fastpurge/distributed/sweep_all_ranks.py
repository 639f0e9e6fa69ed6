"""A sweep on every rank of a `torch.distributed` process group, with the reports of all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from rich.console import Group, RenderableType
from rich.table import Table

from fastpurge.arguments import by_name, check_seconds
from fastpurge.distributed.store_gather import Round, group_store_of
from fastpurge.engine.guards import Guard
from fastpurge.engine.request import Collect, Devices, Request, parse
from fastpurge.engine.sweep import sweep_as
from fastpurge.inspection.roots import place_of_caller
from fastpurge.reporting.report import SweepReport, memory_rows
from fastpurge.reporting.text import Printable, human, right

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_TIMEOUT = 300.0


@by_name("keep=[model]")
def sweep(
    *,
    keep: object,
    devices: Devices = None,
    models: bool = True,
    wipe: bool = False,
    min_bytes: int = 0,
    guards: Guard = Guard.ALL,
    collect: Collect = "auto",
    label: str | None = None,
    group: "ProcessGroup | None" = None,
    timeout: float = _TIMEOUT,
) -> "DistributedReport":
    """Sweep on all ranks of a process group. Every rank gets the reports of all.

    Every rank calls this function with its own arguments. No rank sweeps before all have called it with valid
    arguments. Collectives in flight do not matter: the ranks communicate through the store of the group.

    Args:
        keep: what to protect on this rank, with everything reachable from it, as in `fastpurge.sweep`.
        devices: release only what is on these; ``None`` means all.
        models: also release modules, with their parameters, buffers and sub-modules.
        wipe: overwrite memory with zeros before it is freed.
        min_bytes: do not release storages smaller than this, in bytes.
        guards: the rules that spare objects outside ``keep``: see `Guard`.
        collect: run `gc.collect`: ``True``, ``False``, or ``"auto"``, only if there is something to free.
        label: a name for this sweep in the messages of `PurgedError`; by default the caller's file and line.
        group: a process group of `torch.distributed.new_group`; ``None`` means all ranks. Reports and errors
            have global ranks.
        timeout: seconds to wait for other ranks: until they call, and again until they have swept.

    Returns:
        The reports of all ranks, in the order of the group.

    Raises:
        TypeError: an argument of this rank has the wrong type. No rank has touched anything.
        ValueError: an argument of this rank has an invalid value. No rank has touched anything.
        RuntimeError: `torch.distributed` is not initialized.
        DistributedSweepError: an argument of another rank is invalid, or a rank did not call in time: no rank
            has touched anything. Or a sweep failed or did not end in time: all others have swept.

    Examples:
        >>> import torch, torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model, cache = torch.nn.Linear(8, 8), [torch.ones(50_000_000)]
        >>> reports = fastpurge.distributed.sweep(keep=[model], timeout=60)
        >>> [report.freed_bytes > 190_000_000 for report in reports]  # one for each rank
        [True]

    """
    group_store = group_store_of(group)
    try:
        check_seconds("timeout", timeout, may_be_infinite=True)
        request = parse(
            keep=keep,
            devices=devices,
            models=models,
            wipe=wipe,
            min_bytes=min_bytes,
            guards=guards,
            collect=collect,
            label=label,
            caller="{}:{}".format(*place_of_caller()),
        )
    except Exception as error:  # iterating over the devices may raise anything
        with group_store.round(_TIMEOUT) as exchange:
            exchange.all_gather(_error_text(error))
        if type(error) not in (TypeError, ValueError):
            raise
        raise type(error)(f"rank {group_store.rank}: {error}") from None
    with group_store.round(timeout) as exchange:
        reports, failures, cause = _sweep(exchange, request)
    if failures:
        raise DistributedSweepError(reports, failures) from cause
    return DistributedReport(tuple(reports), tuple(reports.values()))


_Outcome = tuple[dict[int, SweepReport], dict[int, str], Exception | None]


def _sweep(exchange: Round, request: Request) -> _Outcome:
    """The reports by rank, reasons for the ranks without one, and the exception of this rank."""
    refusals, missing = exchange.all_gather(None)
    failures = missing | {rank: reason for rank, reason in refusals.items() if reason is not None}
    if failures:
        return {}, failures, None
    cause = None
    done: SweepReport | str
    try:
        done = sweep_as(request)
    except Exception as error:  # noqa: BLE001 - the other ranks wait for the message
        done, cause = _error_text(error), error
    received, missing = exchange.all_gather(done)
    reports = {rank: one for rank, one in received.items() if isinstance(one, SweepReport)}
    return (
        reports,
        missing | {rank: reason for rank, reason in received.items() if rank not in reports},
        cause,
    )


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class DistributedSweepError(RuntimeError):
    """Not all ranks have swept. Raised on all ranks that can still reach the store.

    Attributes:
        reports: the reports of the ranks that have swept, by global rank. Empty if an argument was invalid or
            a rank did not call.
        failures: the reason for each other rank, by global rank. It may have swept all the same.

    """

    def __init__(self, reports: dict[int, SweepReport], failures: dict[int, str]) -> None:
        super().__init__(reports, failures)  # pickle calls the class with these
        self.reports = reports
        self.failures = dict(sorted(failures.items()))

    def __str__(self) -> str:
        swept = f"{len(self.reports)} ranks have swept (.reports)" if self.reports else "no rank has swept"
        return "\n".join([swept, *(f"rank {rank}: {reason}" for rank, reason in self.failures.items())])


@dataclass(frozen=True, slots=True)
class DistributedReport(Printable, Sequence[SweepReport]):
    """The reports of all ranks of a group: a sequence in the order of the group.

    Attributes:
        ranks: the global ranks; for the default group 0, 1, 2, ...
        reports: the report of each rank.

    """

    ranks: tuple[int, ...]
    reports: tuple[SweepReport, ...]

    @property
    def freed_bytes(self) -> int:
        """Bytes freed on all ranks together."""
        return sum(report.freed_bytes for report in self.reports)

    @overload
    def __getitem__(self, at: int) -> SweepReport: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[SweepReport, ...]: ...
    def __getitem__(self, at: int | slice) -> SweepReport | tuple[SweepReport, ...]:
        return self.reports[at]

    def __len__(self) -> int:
        return len(self.reports)

    def to_dict(self) -> dict[str, Any]:
        """The reports as plain values for `json.dumps`, by global rank."""
        by_rank = {rank: report.to_dict() for rank, report in zip(self.ranks, self.reports, strict=True)}
        return {"freed_bytes": self.freed_bytes, "reports": by_rank}

    def _renderable(self) -> RenderableType:
        columns = ("before", "after", "freed", "released", "skipped", "seconds")
        table = Table("rank", "memory", *(right(name) for name in columns))
        for rank, report in zip(self.ranks, self.reports, strict=True):
            counts = [f"{len(report.released):,}", f"{len(report.skipped):,}", f"{report.seconds:.2f}"]
            for number, cells in enumerate(memory_rows(report.before, report.after)):
                table.add_row("" if number else str(rank), *cells, *(() if number else counts))
        return Group(f"fastpurge freed {human(self.freed_bytes)} on {len(self)} ranks", table)
