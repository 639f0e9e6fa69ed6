"""Plan and apply: keep -> closure -> scan -> guards -> plan -> release -> trim -> report."""

import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from heapq import nlargest
from time import perf_counter
from typing import Any

from rich.console import Group, RenderableType

from fastpurge import _core
from fastpurge.allocators import memory
from fastpurge.arguments import by_name
from fastpurge.engine.candidates import Candidate
from fastpurge.engine.guards import Guard
from fastpurge.engine.release import release
from fastpurge.engine.request import Collect, Devices, Request, parse
from fastpurge.engine.survey import Survey, survey
from fastpurge.engine.weakly_kept import WeaklyKept
from fastpurge.inspection.roots import place_of_caller
from fastpurge.inspection.why import owner_paths
from fastpurge.reporting.items import Item
from fastpurge.reporting.report import SweepReport, items_table, reasons_text
from fastpurge.reporting.text import Printable, human
from fastpurge.torch_facts.recorders import Unrecorded, never_compiled


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
) -> SweepReport:
    """Release every tensor and module that is not reachable from ``keep``, and say what was freed.

    Args:
        keep: what to protect, with everything reachable from it. Any object; of a plain list, tuple,
            set, dict or deque also each element, whatever it is. ``()`` protects nothing, nor does a str, a
            number or ``None`` in a list. What can only be a mistake is refused: a str, ``None``, a number, a
            list of nothing but strings; and a generator, which gives its objects once.
        devices: release only what is on these: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, a `torch.device`,
            or several of them. ``None`` means all.
        models: also strip modules of what they hold.
        wipe: overwrite memory with zeros before it is given back.
        min_bytes: leave storages smaller than this (in bytes) alone.
        guards: the rules that spare what nobody named.
        collect: run `gc.collect`: ``True``, ``False``, or ``"auto"``, only if there is something to free.
        label: who sweeps, for the messages of `PurgedError`; by default the caller's file and line.

    Raises:
        TypeError: an argument has the wrong type. Nothing was touched.
        ValueError: an argument has no meaning. Nothing was touched.
        RuntimeError: called from within a sweep, by a finalizer for example.

    Examples:
        >>> import torch
        >>> model, x, cache = torch.nn.Linear(8, 8), torch.ones(8), [torch.ones(50_000_000)]
        >>> report = sweep(keep=[model, x])
        >>> report.freed_bytes > 190_000_000
        True
        >>> report.released[0].shape
        (50000000,)

    """
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
    return sweep_as(request)


@never_compiled
def sweep_as(request: Request, *, wait: bool = True) -> SweepReport:
    """Sweep as asked for in a request.

    Args:
        request: what is asked for.
        wait: for a sweep that is under way in another thread.

    Raises:
        SweepUnderWayError: from within a sweep; and from elsewhere if it does not wait.

    """
    started = perf_counter()
    with _sweep_lock.taken(wait=wait), Unrecorded():
        return _sweep(request, started)


@by_name("keep=[model]")
def plan(
    *,
    keep: object,
    devices: Devices = None,
    models: bool = True,
    wipe: bool = False,
    min_bytes: int = 0,
    guards: Guard = Guard.ALL,
    collect: Collect = "auto",
    label: str | None = None,
) -> "SweepPlan":
    """Say what a sweep with these arguments would release; touches nothing.

    Takes and raises the same as `sweep`. The plan keeps nothing alive, neither what it would release nor what
    ``keep`` names.

    Examples:
        >>> import torch
        >>> model, cache = torch.nn.Linear(8, 8), [torch.ones(1_000_000)]
        >>> p = plan(keep=[model], devices="cpu")
        >>> p.nbytes
        4000000
        >>> report = p.apply()

    """
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
    kept = WeaklyKept(keep, is_temporary=sys.getrefcount(keep) <= _OF_A_TEMPORARY)
    started = perf_counter()
    with _sweep_lock.taken(), Unrecorded():
        found = survey(request)
    return SweepPlan(replace(request, keep=()), kept, found, perf_counter() - started)


@by_name("")
def _references(*, keep: object) -> int:
    """How many references there are to what is passed like this: more, if others hold it."""
    return sys.getrefcount(keep)


_OF_A_TEMPORARY = _references(keep=[])


def sweeping_thread() -> int | None:
    """The thread in which a sweep is under way now."""
    return _sweep_lock.thread


class SweepPlan(Printable):
    """What a sweep would release. Keeps nothing of it alive, nor anything that ``keep`` names.

    Attributes:
        items: what would become tombstones.
        nbytes: the size of their storages, in bytes.
        skipped: what cannot be released, each with its ``reason``.
        spared: bytes that each guard spares, by the guard's name;
            of what `Guard.RUNNING` spares ``"torchscript"``, ``"autograd hooks"`` or ``"numpy"``, if C or C++
            code is known to hold it.
        objects_scanned: how many objects the heap held.

    """

    def __init__(self, request: Request, kept: WeaklyKept, found: Survey, seconds: float) -> None:
        self.items: tuple[Item, ...] = tuple(candidate.item for candidate in found.planned)
        self.nbytes: int = sum(item.nbytes for item in self.items)
        self.skipped: tuple[Item, ...] = tuple(found.skipped)
        self.spared: dict[str, int] = found.spared
        self.objects_scanned: int = found.objects_scanned
        self._request = request
        self._kept = kept
        self._seconds = seconds
        self._planned = [weakref.ref(candidate.obj) for candidate in found.planned]

    @never_compiled
    def apply(self) -> SweepReport:
        """Release what was planned and is still unprotected now, and give the memory back.

        What became reachable from ``keep`` since the plan was made, or came into being, stays. What was named
        there and has died meanwhile leads to nothing any more.

        Raises:
            RuntimeError: called from within a sweep.

        """
        started = perf_counter() - self._seconds
        with _sweep_lock.taken(), Unrecorded():
            request = replace(self._request, keep=self._kept.alive())
            return _sweep(request, started, self._planned)

    def _renderable(self) -> RenderableType:
        return Group(
            f"fastpurge would release {human(self.nbytes)} ({self._request.label})",
            items_table("planned", self.items),
            reasons_text(self.skipped, self.spared),
            f"{self.objects_scanned:,} objects scanned in {self._seconds * 1e3:.1f} ms",
        )


_References = list[weakref.ref[Any]]


def _sweep(request: Request, started: float, only: _References | None = None) -> SweepReport:
    """The whole flow; of ``only`` what is still alive, if given."""
    before = memory.read()
    found = _collect_and_survey(request)
    if only is not None:
        _restrict(found, only)
    _record_owners(found.planned)
    released, refused = release(found, request.label, wipe=request.wipe)
    skipped, spared, objects_scanned = (*found.skipped, *refused), found.spared, found.objects_scanned
    del found  # it keeps alive what other threads have let go of since
    memory.give_back()
    return SweepReport(
        label=request.label,
        released=released,
        skipped=skipped,
        spared=spared,
        objects_scanned=objects_scanned,
        seconds=perf_counter() - started,
        before=before,
        after=memory.read(),
    )


def _collect_and_survey(request: Request) -> Survey:
    if request.collect == "auto":
        found = survey(request, thorough=False)
        if not found.planned:
            return found  # one walk over the heap, and that is all
        del found  # or the collector would find everything in use
    # Garbage goes first: its finalizers must meet nothing that was released, and what only garbage makes look
    # as if it were in use must not be spared.
    if request.collect:
        gc.collect()
    return survey(request)


_OWNERS_RECORDED = 10
_MIN_BYTES_FOR_OWNERS = 1 << 20


def _record_owners(planned: list[Candidate]) -> None:
    """Note who holds the largest of what is to be released, if there is anything large: it takes a walk."""
    large = (one for one in planned if one.item.nbytes >= _MIN_BYTES_FOR_OWNERS)
    largest = nlargest(_OWNERS_RECORDED, large, key=lambda one: one.item.nbytes)
    if largest:
        with suppress(Exception):  # a remark, which is no reason to lose a sweep
            for one, path in zip(largest, owner_paths(tuple(one.obj for one in largest)), strict=True):
                one.item = replace(one.item, owner=path)


def _restrict(found: Survey, only: _References) -> None:
    chosen = _core.IdSet(obj for obj in (ref() for ref in only) if obj is not None)
    found.planned = [candidate for candidate in found.planned if candidate.obj in chosen]


class SweepUnderWayError(RuntimeError):
    """Another sweep is under way. Nothing was touched."""


class _SweepLock:
    """One sweep at a time: other threads wait, a sweep within a sweep is an error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.thread: int | None = None

    @contextmanager
    def taken(self, *, wait: bool = True) -> Iterator[None]:
        me = threading.get_ident()
        if self.thread == me:
            raise SweepUnderWayError(
                "a sweep is under way in this thread: a finalizer, a gc callback or a signal handler "
                "must not start another"
            )
        if not self._lock.acquire(blocking=wait):
            raise SweepUnderWayError("a sweep is under way in another thread")
        try:
            self.thread = me
            yield
        finally:
            self.thread = None
            self._lock.release()


_sweep_lock = _SweepLock()
# The thread that was sweeping does not exist in a forked child, and would hold the lock forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sweep_lock.__init__)  # type: ignore[misc]
