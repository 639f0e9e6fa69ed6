"""Safe points: where a thread says that it does not compute, so that a sweep cannot come in between.

A thread takes part from its first safe point on, until it ends. In asyncio a task does, and not the thread:
one task may wait at a safe point while another computes in the same thread.
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
    """Mark a place where this thread does not compute: a block in which it waits for work, or a moment.

    A sweep that a `fastpurge.watch` has found due runs as the block is entered, or while it lasts, and only
    if every other thread that has ever used a safe point is in such a block too. Leaving the block waits
    until that sweep is over. So let each thread that computes pass one before it begins.

    In a coroutine the task counts, and not its thread; the block may be held across an ``await``.

    Args:
        wait: if a sweep is due as the block is entered, wait up to so many seconds for the other threads to
            come to a safe point. 0: do not wait. A task of asyncio never waits.

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
        if _everyone.due:
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
            with _everyone.gate:
                self._leave(me)
        except BaseException:  # Ctrl-C while it waits for a sweep: from here on it computes
            if self._me is not None:
                self._leave(me)
            raise

    def _leave(self, me: "_Participant") -> None:
        self._me = None
        me.inside.remove(weakref.ref(self))


class _Participant:
    """A thread, or a task, that has used a safe point: its name, and in which it is.

    It holds none of them. One whose `__exit__` was never run is not counted once it is gone: Ctrl-C can come
    between the last line of a block and the first of `__exit__`.
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
        """Whether it is a task that has ended. Of a thread that has ended there is no participant left."""
        task = self.task() if self.task is not None else None
        return self.task is not None and (task is None or task.done())


class _Everyone:
    """Who takes part, who is to be called when all stand still, and what holds them meanwhile.

    Attributes:
        gate: held by who sweeps; to leave a safe point one has to have it for a moment. Reentrant, since a
            sweep runs other people's code: `keep`, finalizers.
        arrival: notified when a sweep is over.
        participants: without keeping them.
        due: what is to be called, each once.
        sweeper: the thread that does so now.

    """

    def __init__(self) -> None:
        self.gate = threading.RLock()
        self.arrival = threading.Condition(self.gate)
        self.participants: list[weakref.ref[_Participant]] = []
        self.due: dict[Callable[[], None], None] = {}
        self.sweeper: int | None = None


_everyone = _Everyone()
# The only strong references: a thread's goes with it, whatever way it ends, and a task's with the task.
_here = threading.local()
_tasks: "weakref.WeakKeyDictionary[asyncio.Task[Any], _Participant]" = weakref.WeakKeyDictionary()


def announce(attempt: Callable[[], None]) -> None:
    """Have this called once, when all that take part stand at a safe point: now if they do."""
    _everyone.due[attempt] = None
    sweep_what_is_due()


def withdraw(attempt: Callable[[], None]) -> None:
    """Take back what was announced. When this returns it does not run, unless this thread is what runs it."""
    with _everyone.gate:
        _everyone.due.pop(attempt, None)


def is_sweeping_here() -> bool:
    """Whether this thread is within what was announced."""
    return _everyone.sweeper == threading.get_ident()


def sweep_what_is_due() -> None:
    """Call what was announced, if all that take part stand at a safe point."""
    with _everyone.gate:
        if is_sweeping_here():
            return
        _everyone.sweeper = threading.get_ident()
        try:
            while _everyone.due and not outside():
                attempt = next(iter(_everyone.due))
                del _everyone.due[attempt]
                attempt()
        finally:
            _everyone.sweeper = None
            _everyone.arrival.notify_all()


def taking_part() -> list[_Participant]:
    """The threads and tasks that have used a safe point and have not ended."""
    alive = (one for one in (reference() for reference in [*_everyone.participants]) if one is not None)
    return [one for one in alive if not one.is_over()]


def outside() -> list[str]:
    """The names of those that are not at a safe point now."""
    return [one.name for one in taking_part() if not one.is_at_one()]


def never_take_part() -> None:
    """Let this thread use safe points without being waited for: it is a watch's own."""
    _here.participant = _Participant(threading.current_thread().name)


def _arrive(wait: float) -> None:
    sweep_what_is_due()
    if wait:
        with _everyone.arrival:
            _everyone.arrival.wait_for(lambda: not _everyone.due, wait)


def _participant() -> _Participant:
    """The task that runs in this thread, or the thread."""
    if _get_running_loop() is not None and (task := asyncio.current_task()) is not None:
        return _tasks.get(task) or _join(task)
    try:
        found: _Participant = _here.participant
    except AttributeError:
        return _join(None)
    return found


def _join(task: "asyncio.Task[Any] | None") -> _Participant:
    with _everyone.gate:  # if a sweep is under way, its first safe point begins when that is over
        if task is not None:
            me = _tasks[task] = _Participant(task.get_name(), weakref.ref(task))
        else:
            me = _here.participant = _Participant(threading.current_thread().name)
        _everyone.participants[:] = [*map(weakref.ref, taking_part()), weakref.ref(me)]
        return me


def _forget_other_threads() -> None:
    """In a forked child only the thread that has forked goes on, and the gate may have been another's."""
    _everyone.__init__()  # type: ignore[misc]
    mine = [getattr(_here, "participant", None), *_tasks.values()]
    _everyone.participants = [weakref.ref(one) for one in mine if one is not None]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
