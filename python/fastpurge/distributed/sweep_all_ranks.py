"""A sweep on every rank of a `torch.distributed` process group, with one report for all of them."""

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
    """Sweep on all ranks of a process group, and give each of them the reports of all.

    Every rank calls it, with arguments of its own. Nobody sweeps before all have called with valid arguments.
    What else is in flight in the group, in whatever order, does not matter: the ranks meet in its store.

    Args:
        keep: what this rank protects, with everything reachable from it, as in `fastpurge.sweep`.
        devices: release only what is on these; ``None`` means all.
        models: also strip modules of what they hold.
        wipe: overwrite memory with zeros before it is given back.
        min_bytes: leave storages smaller than this (in bytes) alone.
        guards: the rules that spare what nobody named.
        collect: run `gc.collect`: ``True``, ``False``, or ``"auto"``, only if there is something to free.
        label: who sweeps, for the messages of `PurgedError`; by default the caller's file and line.
        group: the process group that sweeps, as `torch.distributed.new_group` gives it; ``None`` is all
            ranks. Reports and errors name ranks by their global number.
        timeout: how long to wait for other ranks, in seconds: until they call, and until they have swept.

    Raises:
        TypeError: an argument of this rank has the wrong type. Nothing was touched, on no rank.
        ValueError: an argument of this rank has no meaning. Nothing was touched, on no rank.
        RuntimeError: `torch.distributed` is not initialized.
        DistributedSweepError: an argument of another rank is bad, or a rank did not call in time, and nothing
            was touched; or a sweep failed or did not end in time, after all others have swept.

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
    except Exception as error:  # an iterable of devices may raise anything
        with group_store.round(_TIMEOUT) as this:
            this.exchange(_words(error))
        if type(error) not in (TypeError, ValueError):
            raise
        raise type(error)(f"rank {group_store.rank}: {error}") from None
    with group_store.round(timeout) as this:
        reports, failures, cause = _sweep(this, request)
    if failures:
        raise DistributedSweepError(reports, failures) from cause
    return DistributedReport(tuple(reports), tuple(reports.values()))


_Outcome = tuple[dict[int, SweepReport], dict[int, str], Exception | None]


def _sweep(this: Round, request: Request) -> _Outcome:
    """The reports of the ranks that have swept, why the others have not, and what was raised on this one."""
    refusals, silent = this.exchange(None)
    failures = silent | {rank: reason for rank, reason in refusals.items() if reason is not None}
    if failures:
        return {}, failures, None
    cause = None
    done: SweepReport | str
    try:
        done = sweep_as(request)
    except Exception as error:  # noqa: BLE001 - the others wait to hear of it
        done, cause = _words(error), error
    heard, silent = this.exchange(done)
    reports = {rank: told for rank, told in heard.items() if isinstance(told, SweepReport)}
    return reports, silent | {rank: told for rank, told in heard.items() if rank not in reports}, cause


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class DistributedSweepError(RuntimeError):
    """Not all ranks have swept. The same is raised on all ranks that can still speak to each other.

    Attributes:
        reports: what those did that have swept, by global rank. Empty if nobody has, since an argument was
            bad or somebody did not call.
        failures: why the others did not, or may not have, by global rank.

    """

    def __init__(self, reports: dict[int, SweepReport], failures: dict[int, str]) -> None:
        super().__init__(reports, failures)  # so that it can be pickled
        self.reports = reports
        self.failures = dict(sorted(failures.items()))

    def __str__(self) -> str:
        swept = f"{len(self.reports)} ranks have swept (.reports)" if self.reports else "no rank has swept"
        return "\n".join([swept, *(f"rank {rank}: {reason}" for rank, reason in self.failures.items())])


@dataclass(frozen=True, slots=True)
class DistributedReport(Printable, Sequence[SweepReport]):
    """What a sweep did on each rank of a group: a sequence of reports, in the order of the group.

    Attributes:
        ranks: the global rank of each; of the default group 0, 1, 2, ...
        reports: what the sweep did there.

    """

    ranks: tuple[int, ...]
    reports: tuple[SweepReport, ...]

    @property
    def freed_bytes(self) -> int:
        """Bytes given back on all ranks together."""
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
        """The reports as plain values that `json.dumps` takes, by global rank."""
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
