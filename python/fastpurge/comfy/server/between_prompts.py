"""Purge between prompts, from any thread.

ComfyUI runs prompts in one worker thread (`prompt_worker` in main.py). It takes a prompt from the queue, runs
it, and then calls `get_flags` of the queue, which is how ``POST /free`` is carried out. This module wraps
`get_flags` and runs work there, in the worker thread. So no prompt can start meanwhile, and ComfyUI cannot
unload models or empty its cache at the same time. The lock of the queue stays free: the event loop of the
server needs it for most requests.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import wraps
from importlib import import_module
from time import monotonic
from typing import Any, Literal, TypeVar, get_args

from fastpurge.comfy.comfyui.prompt import last_prompt, unsupported_comfyui
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
"""In bytes. Smaller tensors do not fill a machine, and packs have small constants at module level."""

_DEFAULT_MIN_BYTES = {"ram": RAM_MIN_BYTES, "all": ALL_MIN_BYTES}
_PURGES = {"ram": purge_ram, "all": purge_all}

# In seconds. After a prompt the worker may unload models or collect garbage before it calls `get_flags`.
_WAKE_TIMEOUT = 30.0
_POLL_INTERVAL = 0.02

_T = TypeVar("_T")
_run_lock = threading.Lock()


class Busy(RuntimeError):  # noqa: N818 - a state, not a mistake
    """A prompt or another purge is running, as the message says. Nothing was done."""


def purge(kind: Kind, *, label: str, min_bytes: int | None = None, wait: float = 0.0) -> Outcome:
    """Purge between prompts, like a purge node with no input and no pending nodes.

    Large cached outputs of finished prompts are evicted. ComfyUI computes them again when it needs them, so
    the next prompt has the same result. This call blocks: do not call it on the server's event loop.

    Args:
        kind: ``"vram"`` unloads models; ``"ram"`` evicts outputs and releases leaks, on the CPU;
            ``"all"`` does both, on every device, and wipes.
        label: the name of this purge, which `PurgedError` shows.
        min_bytes: smaller tensors are kept. At least `LEAST_MIN_BYTES`; by default 16 MiB for ``"ram"`` and
            1 MiB for ``"all"``. Not allowed with ``"vram"``, which changes no data.
        wait: seconds to wait for a running prompt or another purge to end; ``math.inf`` for no limit. The
            purge then runs before the next queued prompt. With 0, a queued prompt that has not started runs
            first.

    Returns:
        What the purge did.

    Raises:
        Busy: a prompt or another purge is running. Nothing was done.
        RuntimeError: this version of ComfyUI is not supported. Nothing was done.
        TypeError, ValueError: an argument is invalid. Nothing was done.

    Example:
        ``purge("ram", label="nightly", wait=60).report.freed_by_device``

    """
    _check(kind, label, min_bytes)
    if kind == "vram":
        return run(lambda: purge_vram(last_prompt(label), ()), wait=wait)
    least = _DEFAULT_MIN_BYTES[kind] if min_bytes is None else min_bytes
    work = _PURGES[kind]
    return run(lambda: work(last_prompt(label), (), protect_pending=True, min_bytes=least), wait=wait)


def run(work: Callable[[], _T], *, wait: float = 0.0) -> _T:
    """Run work in the prompt worker thread while no prompt runs, and return its result or raise its error.

    Args:
        work: the function to call; the next prompt waits for it.
        wait: seconds, as for `purge`.

    Raises:
        Busy: a prompt or other work is running. The work was not run.

    """
    if type(wait) not in (int, float) or not wait >= 0:
        raise ValueError(f"wait: seconds, 0 or more, not {wait!r}")
    deadline = monotonic() + wait
    if not _run_lock.acquire(timeout=min(wait, threading.TIMEOUT_MAX)):
        raise Busy("another purge is under way")
    try:
        return _hook_of_queue().run(work, deadline)
    finally:
        _run_lock.release()


class _QueueHook:
    """Wraps `get_flags` of a prompt queue, to run work between prompts."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._waiting: tuple[Future[Any], Callable[[], Any]] | None = None
        get_flags = queue.get_flags

        @wraps(get_flags)
        def get_flags_between_prompts(*args: Any, **kwargs: Any) -> Any:
            self._run_waiting()
            return get_flags(*args, **kwargs)

        queue.get_flags = get_flags_between_prompts

    def run(self, work: Callable[[], _T], deadline: float) -> _T:
        future: Future[_T] = Future()
        self._waiting = (future, work)
        wake_deadline = monotonic() + _WAKE_TIMEOUT
        try:
            while not future.done():
                reason, give_up_at = "the prompt worker does not respond", max(deadline, wake_deadline)
                if self._is_running():
                    reason, give_up_at = "a prompt is running", deadline
                    wake_deadline = monotonic() + _WAKE_TIMEOUT
                if monotonic() >= give_up_at and future.cancel():
                    raise Busy(reason)
                wait_for([future], timeout=_POLL_INTERVAL)
            return future.result()
        finally:
            self._waiting = None

    def _is_running(self) -> bool:
        """Whether a prompt runs. Wakes the worker, so that it calls `get_flags` if it is idle."""
        with self._queue.mutex:
            # On every poll: the worker may have started to wait only now, and would for minutes.
            self._queue.not_empty.notify_all()
            return bool(self._queue.currently_running)

    def _run_waiting(self) -> None:
        with self._queue.mutex:
            if self._waiting is None or self._queue.currently_running:
                return
            (future, work), self._waiting = self._waiting, None
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised in the calling thread; the worker goes on
                future.set_exception(error)


def _hook_of_queue() -> _QueueHook:
    """The hook of the server's prompt queue, installed on the first call."""
    queue = import_module("server").PromptServer.instance.prompt_queue
    if any(not hasattr(queue, name) for name in ("get_flags", "mutex", "not_empty", "currently_running")):
        raise unsupported_comfyui("the prompt queue lacks an attribute")
    hook: _QueueHook | None = vars(queue).get("fastpurge_hook")
    if hook is None:
        hook = queue.fastpurge_hook = _QueueHook(queue)
    return hook


def _check(kind: object, label: object, min_bytes: object) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind: one of {', '.join(map(repr, get_args(Kind)))}, not {kind!r}")
    if type(label) is not str or not label:
        raise TypeError(f"label: a string that is not empty, not {label!r}")
    if min_bytes is None:
        return
    if kind == "vram":
        raise ValueError("min_bytes: not for 'vram', which changes no data")
    if type(min_bytes) is not int:
        raise TypeError(f"min_bytes: a number of bytes, not {min_bytes!r}")
    if min_bytes < LEAST_MIN_BYTES:
        raise ValueError(f"min_bytes: {LEAST_MIN_BYTES:,} or more, not {min_bytes:,}")
