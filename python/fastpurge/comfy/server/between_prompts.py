"""Purging between prompts, from any thread.

ComfyUI has one thread that runs prompts. It takes the next from a queue, runs it, and asks the queue for
flags: that is how ``POST /free`` is done (`prompt_worker` in main.py). What is done here is done as those
flags are asked for, by that thread. So no prompt can start meanwhile, ComfyUI cannot unload models or empty
its cache at the same time, and the lock of the queue stays free: the server takes it on its event loop, for
most requests.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import wraps
from importlib import import_module
from time import monotonic
from typing import Any, Literal, TypeVar, get_args

from fastpurge.comfy.comfyui.prompt import not_understood, over
from fastpurge.comfy.nodes.purges import (
    ALL_MIN_BYTES,
    RAM_MIN_BYTES,
    Outcome,
    purge_all,
    purge_ram,
    purge_vram,
)

Kind = Literal["vram", "ram", "all"]

LEAST_MIN_BYTES = 1 << 20
"""Smaller things do not fill a machine, and custom node packs keep constants at module level."""

_DEFAULT_MIN_BYTES = {"ram": RAM_MIN_BYTES, "all": ALL_MIN_BYTES}
_PURGES = {"ram": purge_ram, "all": purge_all}

# Seconds. After a prompt the thread may be unloading models or collecting garbage before it comes round.
_COMES_ROUND = 30.0
_LOOKS_AGAIN = 0.02

_T = TypeVar("_T")
_one_at_a_time = threading.Lock()


class Busy(RuntimeError):  # noqa: N818 - a state, not a mistake
    """It cannot be done now, and nothing was done. The message says why."""


def purge(kind: Kind, *, label: str, min_bytes: int | None = None, wait: float = 0.0) -> Outcome:
    """Purge between prompts, as the node of the kind does that has nothing wired in and no node still to run.

    What finished prompts have left in the cache goes if it is large, and is computed again when it is needed:
    the next prompt gives what it would have given. Blocks, so do not call it on the server's event loop.

    Args:
        kind: ``"vram"`` unloads models; ``"ram"`` lets go of results and releases leaks, on the CPU;
            ``"all"`` does both, on every device, and wipes.
        label: who purges. `PurgedError` names it to whoever uses what was released.
        min_bytes: what is smaller stays. `LEAST_MIN_BYTES` or more; by default 16 MiB for ``"ram"`` and 1 MiB
            for ``"all"``. Not for ``"vram"``, which touches no data.
        wait: seconds to wait for a prompt that runs, or another purge, to end; ``math.inf`` for as long as it
            takes. It is done before the next prompt that is in the queue. With 0 a prompt that is in the
            queue and has not begun comes first.

    Returns:
        What was done.

    Raises:
        Busy: a prompt runs, or another purge. Nothing was done.
        RuntimeError: this ComfyUI is made otherwise than those that are known. Nothing was done.
        TypeError, ValueError: an argument is not what it has to be. Nothing was done.

    """
    _check(kind, label, min_bytes)
    if kind == "vram":
        return do(lambda: purge_vram(over(label), ()), wait=wait)
    least = _DEFAULT_MIN_BYTES[kind] if min_bytes is None else min_bytes
    work = _PURGES[kind]
    return do(lambda: work(over(label), (), protect_pending=True, min_bytes=least), wait=wait)


def do(work: Callable[[], _T], *, wait: float = 0.0) -> _T:
    """Have the thread that runs prompts do something while no prompt runs, and return what comes of it.

    Args:
        work: what to do; the next prompt waits for it.
        wait: as for `purge`.

    Raises:
        Busy: a prompt runs, or the work of somebody else. It was not done.

    """
    if type(wait) not in (int, float) or not wait >= 0:
        raise ValueError(f"wait: seconds, 0 or more, not {wait!r}")
    until = monotonic() + wait
    if not _one_at_a_time.acquire(timeout=min(wait, threading.TIMEOUT_MAX)):
        raise Busy("another purge is under way")
    try:
        return _gaps().do(work, until)
    finally:
        _one_at_a_time.release()


class _Gaps:
    """The gaps between the prompts of a queue."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._waiting: tuple[Future[Any], Callable[[], Any]] | None = None
        get_flags = queue.get_flags

        @wraps(get_flags)
        def get_flags_between_prompts(*args: Any, **kwargs: Any) -> Any:
            self._do_what_waits()
            return get_flags(*args, **kwargs)

        queue.get_flags = get_flags_between_prompts

    def do(self, work: Callable[[], _T], until: float) -> _T:
        future: Future[_T] = Future()
        self._waiting = (future, work)
        comes_round = monotonic() + _COMES_ROUND
        try:
            while not future.done():
                reason, late = "the thread that runs prompts does not come round", max(until, comes_round)
                if self._is_running():
                    reason, late = "a prompt is running", until
                    comes_round = monotonic() + _COMES_ROUND
                if monotonic() >= late and future.cancel():
                    raise Busy(reason)
                wait_for([future], timeout=_LOOKS_AGAIN)
            return future.result()
        finally:
            self._waiting = None

    def _is_running(self) -> bool:
        """Whether a prompt runs. If none does, the thread that runs them is told to come round."""
        with self._queue.mutex:
            # Again and again: it may have begun to wait just now, and would for minutes.
            self._queue.not_empty.notify_all()
            return bool(self._queue.currently_running)

    def _do_what_waits(self) -> None:
        with self._queue.mutex:
            if self._waiting is None or self._queue.currently_running:
                return
            (future, work), self._waiting = self._waiting, None
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for: prompts go on
                future.set_exception(error)


def _gaps() -> _Gaps:
    """Those of the server's queue."""
    queue = import_module("server").PromptServer.instance.prompt_queue
    if any(not hasattr(queue, name) for name in ("get_flags", "mutex", "not_empty", "currently_running")):
        raise not_understood("the queue of prompts is made otherwise")
    gaps: _Gaps | None = vars(queue).get("fastpurge_gaps")
    if gaps is None:
        gaps = queue.fastpurge_gaps = _Gaps(queue)
    return gaps


def _check(kind: object, label: object, min_bytes: object) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind: one of {', '.join(map(repr, get_args(Kind)))}, not {kind!r}")
    if type(label) is not str or not label:
        raise TypeError(f"label: a text that is not empty, not {label!r}")
    if min_bytes is None:
        return
    if kind == "vram":
        raise ValueError("min_bytes: not for 'vram', which touches no data")
    if type(min_bytes) is not int:
        raise TypeError(f"min_bytes: a number of bytes, not {min_bytes!r}")
    if min_bytes < LEAST_MIN_BYTES:
        raise ValueError(f"min_bytes: {LEAST_MIN_BYTES:,} or more, not {min_bytes:,}")
