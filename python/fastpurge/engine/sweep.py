"""`sweep` and `plan`: keep -> closure -> scan -> guards -> plan -> release -> trim -> report."""

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
from fastpurge.engine.survey import Survey, survey, survey_once
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
    """Release every tensor and module that is not reachable from ``keep``, and report what was freed.

    Args:
        keep: what to protect, with everything reachable from it. Any object; of a plain list, tuple,
            set, dict or deque also each element, of any type. ``()`` protects nothing, nor does a str, a
            number or ``None`` in a list. Probable mistakes are refused: a str, ``None``, a number, a list of
            nothing but strings; and a generator, which can be iterated only once.
        devices: release only what is on these: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, a `torch.device`,
            or several of them. ``None`` means all.
        models: also release modules, with their parameters, buffers and sub-modules.
        wipe: overwrite memory with zeros before it is freed.
        min_bytes: do not release storages smaller than this, in bytes.
        guards: the rules that spare objects outside ``keep``: see `Guard`.
        collect: run `gc.collect`: ``True``, ``False``, or ``"auto"``, only if there is something to free.
        label: a name for this sweep in the messages of `PurgedError`; by default the caller's file and line.

    Returns:
        What was released, skipped and spared, and the memory before and after.

    Raises:
        TypeError: an argument has the wrong type. Nothing was touched.
        ValueError: an argument has an invalid value. Nothing was touched.
        RuntimeError: called during a sweep in the same thread, for example by a finalizer.

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
    """Sweep with checked arguments.

    Args:
        request: the arguments.
        wait: whether to wait for a sweep in another thread.

    Raises:
        SweepUnderWayError: a sweep is running in this thread; or in another one, if ``wait`` is False.

    """
    started = perf_counter()
    with _sweep_lock.acquired(wait=wait), Unrecorded():
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
    """Find what a sweep with these arguments would release. Touches nothing.

    Takes and raises the same as `sweep`. The plan keeps nothing alive: neither what it would release nor
    what ``keep`` names.

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
    with _sweep_lock.acquired(), Unrecorded():
        found = survey(request)
    return SweepPlan(replace(request, keep=()), kept, found, perf_counter() - started)


@by_name("")
def _references(*, keep: object) -> int:
    """The reference count of an argument that only the call itself references."""
    return sys.getrefcount(keep)


_OF_A_TEMPORARY = _references(keep=[])


def sweeping_thread() -> int | None:
    """The thread that is sweeping now."""
    return _sweep_lock.thread


class SweepPlan(Printable):
    """What a sweep would release. Keeps neither that alive nor what ``keep`` names.

    Attributes:
        items: what would become tombstones.
        nbytes: the size of their storages, in bytes.
        skipped: what cannot be released, each with its ``reason``.
        spared: bytes that each guard spares, by the guard's name in lower case. What `Guard.RUNNING` spares
            for a known owner in C or C++ is under ``"torchscript"``, ``"autograd hooks"`` or ``"numpy"``.
        objects_scanned: how many objects the garbage collector tracked.

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
        """Release what was planned and is still not in use, and free the memory.

        Objects that were made since, or have become reachable from ``keep``, stay. An object of ``keep`` that
        has been deallocated since protects nothing any more.

        Raises:
            RuntimeError: called during a sweep in the same thread.

        """
        started = perf_counter() - self._seconds
        with _sweep_lock.acquired(), Unrecorded():
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
    """The whole flow. With ``only``, release nothing but what these references still point to."""
    before = memory.read()
    found = _collect_and_survey(request)
    if only is not None:
        _restrict(found, only)
    _record_owners(found.planned)
    released, refused = release(found, request.label, wipe=request.wipe)
    skipped, spared, objects_scanned = (*found.skipped, *refused), found.spared, found.objects_scanned
    del found  # it keeps objects alive that other threads have dropped since
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
        found = survey_once(request, thorough=False)
        if not found.planned:
            return found  # after one walk over the heap
        del found  # it references all candidates, and the collector would not find them
    # Garbage is collected first: its finalizers must not meet tombstones, and what only garbage references
    # must not be spared.
    if request.collect:
        gc.collect()
    return survey(request)


_OWNERS_RECORDED = 10
_MIN_BYTES_FOR_OWNERS = 1 << 20


def _record_owners(planned: list[Candidate]) -> None:
    """Set the owner of the largest planned items. Takes a walk over the heap, so only if any is large."""
    large = (one for one in planned if one.item.nbytes >= _MIN_BYTES_FOR_OWNERS)
    largest = nlargest(_OWNERS_RECORDED, large, key=lambda one: one.item.nbytes)
    if largest:
        with suppress(Exception):  # the owner is optional: a failure must not stop the sweep
            for one, path in zip(largest, owner_paths(tuple(one.obj for one in largest)), strict=True):
                one.item = replace(one.item, owner=path)


def _restrict(found: Survey, only: _References) -> None:
    chosen = _core.IdSet(obj for obj in (ref() for ref in only) if obj is not None)
    found.planned = [candidate for candidate in found.planned if candidate.obj in chosen]


class SweepUnderWayError(RuntimeError):
    """Another sweep is running. Nothing was touched."""


class _SweepLock:
    """A lock that one sweep holds: other threads wait, a second sweep in the same thread is an error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.thread: int | None = None

    @contextmanager
    def acquired(self, *, wait: bool = True) -> Iterator[None]:
        me = threading.get_ident()
        if sys.is_finalizing():
            raise RuntimeError("the interpreter is shutting down: modules that a sweep needs are gone")
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
# In a forked child the sweeping thread does not exist, and would never release the lock.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sweep_lock.__init__)  # type: ignore[misc]
