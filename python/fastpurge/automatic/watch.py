"""Automatic sweeps: a thread measures memory, and sweeps at safe points when it is too full."""

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
_READINGS_BEFORE_WARNING = 5  # a program that loads its models first has no safe points until then
_SECONDS_AT_EXIT = 10.0  # for `keep` and `on_sweep` to end when the interpreter exits


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
    """Sweep automatically when memory use exceeds ``above``, at safe points that the program marks.

    A separate thread measures memory. A sweep never interrupts a computation: it runs only when every thread
    that has ever used `fastpurge.safe_point` is at one. In a program without safe points it never runs, and
    the watch warns about that.

    Args:
        above: a share of all memory such as ``"90%"``, in use by all processes: of the machine's RAM, or of
            the container's limit if that is closer. Or a number of bytes used by this process: its resident
            set. With ``device``, a share of the device's memory, or bytes reserved by torch's allocator.
        keep: called before each sweep, in the sweeping thread; returns what to keep. If it raises, there is a
            warning and no sweep. It must not wait for a thread that is at a safe point. It should return a
            container, such as a queue, rather than a copy of its elements.
        below: in the same unit as ``above``. A sweep that does not get memory below this is not repeated
            until memory has grown (see `fastpurge.allocators.pressure.Threshold`). By default 90% of
            ``above``.
        every: seconds between readings.
        device: the device to measure: None or ``"cpu"``, ``"cuda"`` (the fullest one), ``"cuda:1"``.
        on_sweep: called with the report of each sweep, before other threads continue.
        devices: as in `fastpurge.sweep`, like the following.
        models: see `fastpurge.sweep`.
        wipe: see `fastpurge.sweep`.
        min_bytes: see `fastpurge.sweep`.
        guards: see `fastpurge.sweep`.
        collect: see `fastpurge.sweep`.
        label: see `fastpurge.sweep`; by default the file and line of this call.

    Returns:
        The running watch: a context manager that stops at the end of its block.

    Raises:
        TypeError: an argument has the wrong type. Nothing was started.
        ValueError: an argument has an invalid value, or there is no such device. Nothing was started.

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
    """A running watch of `fastpurge.watch`. It ends with `stop`, or with its ``with`` block.

    Attributes:
        sweeps: the number of sweeps.
        last_error: the last exception of ``keep``, ``on_sweep``, a measurement or a sweep, or None.

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
        self._readings_without_safe_point = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastpurge.watch", daemon=True)
        self._thread.start()
        _running.add(self)

    @property
    def reports(self) -> tuple[SweepReport, ...]:
        """The reports of the last 16 sweeps, the newest last."""
        return (*self._reports,)

    def stop(self) -> None:
        """Stop watching. When this returns, no sweep of this watch is running, and none will start.

        May be called again, and from ``keep`` or ``on_sweep``: then the current sweep is the last one.
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

    def _end(self, timeout: float | None = None) -> None:
        self._stopped.set()
        _running.discard(self)
        if not safe_points.is_sweeping_here():  # the watch's thread might wait for this sweep
            self._thread.join(timeout)
            while self._thread.is_alive() and sweeping_thread() == self._thread.ident:  # a sweep always ends
                self._thread.join(timeout)

    def _run(self) -> None:
        safe_points.never_take_part()
        while not self._stopped.wait(self._every):
            try:
                self._check()
            except Exception as error:  # noqa: BLE001 - a device or the system may fail temporarily
                self._fail("memory could not be read", error)

    def _check(self) -> None:
        self._is_due = self._threshold.is_passed(self._gauge.read())
        if not self._is_due:
            safe_points.withdraw(self._attempt)
        elif safe_points.taking_part():
            self._readings_without_safe_point = 0
            safe_points.announce(self._attempt)
        else:
            self._readings_without_safe_point += 1
            if self._readings_without_safe_point == _READINGS_BEFORE_WARNING:
                self._warn_once(
                    "memory is above the threshold, but this program has no safe point yet, so nothing is "
                    "swept: put `with fastpurge.safe_point():` around the places where it waits for work"
                )

    def _attempt(self) -> None:
        """Sweep if memory is still too full. Called while all threads are at safe points."""
        try:
            if self._stopped.is_set() or not self._threshold.is_passed(self._gauge.read()):
                return
            # Do not wait for another sweep: this thread has the gate, and a finalizer in that sweep may wait
            # for it.
            check_keep(keep := self._keep())
            report = sweep_as(replace(self._request, keep=keep), wait=False)
            self._threshold.note_swept(self._gauge.read())
        except SweepUnderWayError:
            return  # announced again after the next reading
        except Exception as error:  # noqa: BLE001 - the thread at the safe point must continue
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
        let_go(error)  # or its traceback would keep local variables alive
        self.last_error = error
        self._warn_once(f"{what}: {reason_of(error)}")

    def _warn_once(self, what: str) -> None:
        """Give each warning once, at the line that started the watch."""
        if what not in self._warned:
            self._warned.add(what)
            try:
                warnings.warn_explicit(f"fastpurge.watch: {what}", RuntimeWarning, *self._place)
            except RuntimeWarning as warning:  # warnings are errors: do not raise in a safe point
                self.last_error = self.last_error or warning


def _check_callable(name: str, of: object) -> None:
    if is_a(of, torch.nn.Module):  # a module is callable
        raise TypeError(f"{name} must be a function, not the model: {name}=lambda: [model]")
    if not callable(of):
        raise TypeError(f"{name} must be callable, such as lambda: [model], not {type(of).__name__}")


_running: weakref.WeakSet[Watch] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop the threads before the interpreter exits: with a thread inside torch its destructors abort."""
    for one in [*_running]:
        one._end(_SECONDS_AT_EXIT)


def _stopped_by_fork() -> None:
    """Mark watches as stopped: a forked child has none of their threads, which may have locked events."""
    for one in [*_running]:
        one._stopped = threading.Event()
        one._stopped.set()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stopped_by_fork)
