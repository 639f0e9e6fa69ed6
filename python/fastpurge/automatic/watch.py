"""Sweeping by itself: memory is read now and then, and swept when it is too full and nobody computes."""

import atexit
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from fastpurge.allocators import pressure
from fastpurge.allocators.pressure import Amount, Gauge, Threshold
from fastpurge.arguments import by_name, check_seconds
from fastpurge.automatic import safe_points
from fastpurge.engine.guards import Guard
from fastpurge.engine.keep_argument import check_keep
from fastpurge.engine.request import Collect, Devices, Request
from fastpurge.engine.request import parse as parse_request
from fastpurge.engine.sweep import SweepUnderWayError, sweep_as, sweeping_thread
from fastpurge.exceptions.let_go import let_go
from fastpurge.inspection.roots import place_of_caller
from fastpurge.python_facts.object_types import is_a, reason_of
from fastpurge.reporting.report import SweepReport

_REPORTS = 16
_UNMARKED = 5  # readings in a row; a program that loads its models first comes to its safe points later
_PATIENCE = 10.0  # seconds, for `keep` and `on_sweep` when the interpreter ends


@by_name("above=..., keep=lambda: [model]")
def watch(
    *,
    above: Amount,
    keep: Callable[[], object],
    below: Amount | None = None,
    every: float = 5.0,
    device: str | torch.device | None = None,
    on_sweep: Callable[[SweepReport], object] | None = None,
    devices: Devices = None,
    models: bool = True,
    wipe: bool = False,
    min_bytes: int = 0,
    guards: Guard = Guard.ALL,
    collect: Collect = "auto",
    label: str | None = None,
) -> "Watch":
    """Sweep by itself whenever memory is fuller than ``above``, at safe points that the program marks.

    A thread of its own reads memory. It never sweeps in the middle of a computation: only when every thread
    that has ever used `fastpurge.safe_point` is at one. In a program that marks none it never sweeps, and
    warns of it.

    Args:
        above: a share of all memory, ``"90%"``, in use by all programs: of the machine's RAM, or of what the
            container may have if that is closer to its limit. Or a number of bytes that this process holds:
            its resident set. Of a device: what its driver has handed out, or torch's allocator holds.
        keep: called before each sweep, in the thread that sweeps, for what to keep. What it raises is told by
            a warning, and nothing is swept. It must not wait for a thread that is at a safe point. Let it
            name what holds a thing, such as a queue, and not a copy of what is in there now.
        below: a sweep that does not get memory below this, of the same kind as ``above``, is not repeated
            until there is more to free (see `fastpurge.allocators.pressure.Threshold`). By default 90% of
            ``above``.
        every: seconds between readings.
        device: whose memory is read: None or ``"cpu"``, or ``"cuda"`` (the fullest), ``"cuda:1"``.
        on_sweep: called with the report of each sweep, before anybody goes on.
        devices: as the following, what `fastpurge.sweep` takes.
        models: see there.
        wipe: see there.
        min_bytes: see there.
        guards: see there.
        collect: see there.
        label: see there; by default the file and line of this call.

    Raises:
        TypeError: an argument has the wrong type. Nothing was started.
        ValueError: an argument has no meaning, or the device is not there. Nothing was started.

    Examples:
        >>> import queue, torch
        >>> model, jobs = torch.nn.Linear(8, 8), queue.Queue()
        >>> jobs.put(torch.ones(8))
        >>> with watch(above="99.9%", keep=lambda: [model, jobs]) as watching:
        ...     with safe_point():  # the loop of a service: wait here, and compute below
        ...         job = jobs.get()
        ...     answer = model(job)
        >>> watching.sweeps
        0

    """
    gauge, threshold = pressure.parse(above, below, device)
    check_seconds("every", every)
    _check_callable("keep", keep)
    if on_sweep is not None:
        _check_callable("on_sweep", on_sweep)
    place = place_of_caller()
    request = parse_request(
        keep=(),
        devices=devices,
        models=models,
        wipe=wipe,
        min_bytes=min_bytes,
        guards=guards,
        collect=collect,
        label=label,
        caller="fastpurge.watch at {}:{}".format(*place),
    )
    title = f"above {above}" + (f" of {device}" if device is not None else "")
    return Watch(
        gauge=gauge,
        threshold=threshold,
        every=every,
        keep=keep,
        on_sweep=on_sweep,
        request=request,
        title=title,
        place=place,
    )


class Watch:
    """A watch that `fastpurge.watch` has started: it goes on until `stop`, or the end of its ``with`` block.

    Attributes:
        sweeps: how often it has swept.
        last_error: what ``keep``, ``on_sweep``, a reading or a sweep has raised last, or None.

    """

    def __init__(
        self,
        *,
        gauge: Gauge,
        threshold: Threshold,
        every: float,
        keep: Callable[[], object],
        on_sweep: Callable[[SweepReport], object] | None,
        request: Request,
        title: str,
        place: tuple[str, int],
    ) -> None:
        self.sweeps = 0
        self.last_error: Exception | None = None
        self._gauge = gauge
        self._threshold = threshold
        self._every = every
        self._keep = keep
        self._on_sweep = on_sweep
        self._request = request
        self._title = title
        self._place = place
        self._reports: deque[SweepReport] = deque(maxlen=_REPORTS)
        self._warned: set[str] = set()
        self._is_due = False
        self._unmarked = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastpurge.watch", daemon=True)
        self._thread.start()
        _running.add(self)

    @property
    def reports(self) -> tuple[SweepReport, ...]:
        """The reports of the last 16 sweeps, the newest last."""
        return (*self._reports,)

    def stop(self) -> None:
        """Stop watching. When this returns no sweep of this watch is under way, nor will there be one.

        Can be called again, and from ``keep`` or ``on_sweep``: then the sweep is the last one.
        """
        self._end()
        if not safe_points.is_sweeping_here():
            safe_points.withdraw(self._attempt)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<fastpurge.watch {self._title}: {self._state()}, {self.sweeps} sweeps>"

    def _state(self) -> str:
        if self._stopped.is_set() or not self._thread.is_alive():
            return "stopped"
        if not self._is_due:
            return "watching"
        return f"due, waits for {', '.join(safe_points.outside()) or 'a safe point'}"

    def _end(self, patience: float | None = None) -> None:
        self._stopped.set()
        _running.discard(self)
        if not safe_points.is_sweeping_here():  # the thread might be waiting for this one to be done
            self._thread.join(patience)
            while (
                self._thread.is_alive() and sweeping_thread() == self._thread.ident
            ):  # which comes to an end
                self._thread.join(patience)

    def _run(self) -> None:
        safe_points.never_take_part()
        while not self._stopped.wait(self._every):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - of a device or of the operating system, for a moment
                self._fail("memory could not be read", error)

    def _look(self) -> None:
        self._is_due = self._threshold.is_passed(self._gauge.read())
        if not self._is_due:
            safe_points.withdraw(self._attempt)
        elif safe_points.taking_part():
            self._unmarked = 0
            safe_points.announce(self._attempt)
        else:
            self._unmarked += 1
            if self._unmarked == _UNMARKED:
                self._warn_once(
                    "memory is above the threshold, but this program has no safe point yet, so nothing is "
                    "swept: put `with fastpurge.safe_point():` around the places where it waits for work"
                )

    def _attempt(self) -> None:
        """Sweep, now that nobody computes: if memory is still too full."""
        try:
            if self._stopped.is_set() or not self._threshold.is_passed(self._gauge.read()):
                return
            # The gate is held: a sweep that is waited for may run a finalizer that waits for the gate.
            check_keep(keep := self._keep())
            report = sweep_as(replace(self._request, keep=keep), wait=False)
            self._threshold.note_swept(self._gauge.read())
        except SweepUnderWayError:
            return  # announced again after the next reading
        except Exception as error:  # noqa: BLE001 - somebody else's work must go on
            self._fail("nothing was swept", error)
            return
        finally:
            self._is_due = False
        self.sweeps += 1
        self._reports.append(report)
        if self._on_sweep is not None:
            try:
                self._on_sweep(report)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail("on_sweep failed", error)

    def _fail(self, what: str, error: Exception) -> None:
        let_go(error)  # or the variables of what has failed would stay with it
        self.last_error = error
        self._warn_once(f"{what}: {reason_of(error)}")

    def _warn_once(self, what: str) -> None:
        """Warn, once of each thing, at the line that has started the watch."""
        if what not in self._warned:
            self._warned.add(what)
            try:
                warnings.warn_explicit(f"fastpurge.watch: {what}", RuntimeWarning, *self._place)
            except RuntimeWarning as warning:  # where warnings are errors: not in somebody's safe point
                self.last_error = self.last_error or warning


def _check_callable(name: str, of: object) -> None:
    if is_a(of, torch.nn.Module):  # it could be called
        raise TypeError(f"{name} must be a function, not the model: {name}=lambda: [model]")
    if not callable(of):
        raise TypeError(f"{name} must be callable, such as lambda: [model], not {type(of).__name__}")


_running: weakref.WeakSet[Watch] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Leave no thread in torch while the interpreter is taken apart: its destructors would abort."""
    for one in [*_running]:
        one._end(_PATIENCE)


def _stopped_by_fork() -> None:
    """The threads of a process do not exist in a forked child, and may have held the locks of events."""
    for one in [*_running]:
        one._stopped = threading.Event()
        one._stopped.set()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stopped_by_fork)
