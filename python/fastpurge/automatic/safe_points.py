"""Safe points: places where a thread declares that it does not compute, so that a sweep can run.

A thread takes part from its first safe point until it ends. In asyncio each task takes part instead of the
thread: one task may wait at a safe point while another one computes in the same thread.
"""

import asyncio
import os
import threading
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable
from typing import Any

__all__ = ["SafePoint", "safe_point"]


def safe_point(*, wait: float = 0.0) -> "SafePoint":
    """Mark a block in which this thread does not compute, for example because it waits for work.

    If a `fastpurge.watch` has found that a sweep is due, it runs when the block is entered, or while it
    lasts, but only if every other thread that has ever used a safe point is in such a block too. Threads that
    leave a block wait for the sweep. Each thread that computes should pass a safe point before it begins.

    In a coroutine the task takes part instead of the thread. The block may contain ``await``.

    Args:
        wait: if a sweep is due when the block is entered, wait up to this many seconds for the other threads
            to reach a safe point. 0: do not wait. A task of asyncio never waits.

    Raises:
        TypeError: ``wait`` is not a number.
        ValueError: ``wait`` is negative or not finite.

    Examples:
        >>> import queue
        >>> jobs = queue.Queue()
        >>> jobs.put("a job")
        >>> with safe_point():
        ...     job = jobs.get()

    """
    if wait != 0:
        # Imported here, because it imports torch, and a library can mark safe points without torch.
        from fastpurge.arguments import check_seconds

        check_seconds("wait", wait, may_be_zero=True)
    return SafePoint(wait)


class SafePoint:
    """What `safe_point` returns: a context manager, entered by one thread at a time."""

    __slots__ = ("__weakref__", "_me", "_wait")

    def __init__(self, wait: float) -> None:
        self._me: _Participant | None = None
        self._wait = wait

    def __enter__(self) -> None:
        if self._me is not None:
            raise RuntimeError("this safe point is entered already; call safe_point() for another one")
        me = _participant()
        me.inside.append(weakref.ref(self))
        self._me = me
        if _shared.due:
            try:
                _arrive(self._wait if me.task is None else 0)
            except BaseException:
                self._leave(me)
                raise

    def __exit__(self, *_: object) -> None:
        me = self._me
        if me is None:
            return
        try:
            with _shared.gate:
                self._leave(me)
        except BaseException:  # Ctrl-C while it waits for a sweep: from now on this thread computes
            if self._me is not None:
                self._leave(me)
            raise

    def _leave(self, me: "_Participant") -> None:
        self._me = None
        me.inside.remove(weakref.ref(self))


class _Participant:
    """A thread or task that has used a safe point: its name, and the safe points in which it is.

    It references them weakly. Ctrl-C can come between the last line of a block and the first of `__exit__`:
    then a safe point no longer counts once it is deallocated.
    """

    __slots__ = ("__weakref__", "inside", "name", "task")

    def __init__(self, name: str, task: "weakref.ref[asyncio.Task[Any]] | None" = None) -> None:
        self.inside: list[weakref.ref[SafePoint]] = []
        self.name = name
        self.task = task

    def is_at_one(self) -> bool:
        """Whether it is at a safe point."""
        return any(point() is not None for point in [*self.inside])

    def is_over(self) -> bool:
        """Whether it is a task that has ended. When a thread ends, its participant is deallocated."""
        task = self.task() if self.task is not None else None
        return self.task is not None and (task is None or task.done())


class _SharedState:
    """The state that all threads share.

    Attributes:
        gate: locked during a sweep; leaving a safe point takes it for a moment. Reentrant, because a sweep
            runs foreign code: `keep`, finalizers.
        sweep_over: notified when a sweep is over.
        participants: weak references to the threads and tasks.
        due: the functions to call once all are at safe points, each once.
        sweeper: the thread that is calling them.

    """

    def __init__(self) -> None:
        self.gate = threading.RLock()
        self.sweep_over = threading.Condition(self.gate)
        self.participants: list[weakref.ref[_Participant]] = []
        self.due: dict[Callable[[], None], None] = {}
        self.sweeper: int | None = None


_shared = _SharedState()
# The only strong references to participants: they are dropped when the thread or task ends.
_here = threading.local()
_tasks: "weakref.WeakKeyDictionary[asyncio.Task[Any], _Participant]" = weakref.WeakKeyDictionary()


def announce(attempt: Callable[[], None]) -> None:
    """Have a function called once, as soon as all threads and tasks are at safe points; maybe now."""
    _shared.due[attempt] = None
    sweep_what_is_due()


def withdraw(attempt: Callable[[], None]) -> None:
    """Cancel a call. When this returns the function is not running, unless in this thread."""
    with _shared.gate:
        _shared.due.pop(attempt, None)


def is_sweeping_here() -> bool:
    """Whether this thread is inside an announced function."""
    return _shared.sweeper == threading.get_ident()


def sweep_what_is_due() -> None:
    """Call the announced functions if all threads and tasks are at safe points."""
    with _shared.gate:
        if is_sweeping_here():
            return
        _shared.sweeper = threading.get_ident()
        try:
            while _shared.due and not outside():
                attempt = next(iter(_shared.due))
                del _shared.due[attempt]
                attempt()
        finally:
            _shared.sweeper = None
            _shared.sweep_over.notify_all()


def taking_part() -> list[_Participant]:
    """The threads and tasks that have used a safe point and have not ended."""
    alive = (one for one in (reference() for reference in [*_shared.participants]) if one is not None)
    return [one for one in alive if not one.is_over()]


def outside() -> list[str]:
    """The names of the threads and tasks that are not at a safe point."""
    return [one.name for one in taking_part() if not one.is_at_one()]


def never_take_part() -> None:
    """Let this thread, which belongs to a watch, use safe points without taking part."""
    _here.participant = _Participant(threading.current_thread().name)


def _arrive(wait: float) -> None:
    sweep_what_is_due()
    if wait:
        with _shared.sweep_over:
            _shared.sweep_over.wait_for(lambda: not _shared.due, wait)


def _participant() -> _Participant:
    """The participant of the task that runs in this thread, or of the thread."""
    if _get_running_loop() is not None and (task := asyncio.current_task()) is not None:
        return _tasks.get(task) or _join(task)
    try:
        found: _Participant = _here.participant
    except AttributeError:
        return _join(None)
    return found


def _join(task: "asyncio.Task[Any] | None") -> _Participant:
    with _shared.gate:  # during a sweep a new participant waits until it is over
        if task is not None:
            me = _tasks[task] = _Participant(task.get_name(), weakref.ref(task))
        else:
            me = _here.participant = _Participant(threading.current_thread().name)
        _shared.participants[:] = [*map(weakref.ref, taking_part()), weakref.ref(me)]
        return me


def _forget_other_threads() -> None:
    """A forked child has only the thread that forked, and another one may have locked the gate."""
    _shared.__init__()  # type: ignore[misc]
    mine = [getattr(_here, "participant", None), *_tasks.values()]
    _shared.participants = [weakref.ref(one) for one in mine if one is not None]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
