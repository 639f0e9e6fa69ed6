"""Purging between prompts without being asked, once memory is too full."""

import logging
import os
import threading
from collections.abc import Callable

from fastpurge.allocators import pressure
from fastpurge.allocators.pressure import Gauge, Threshold
from fastpurge.comfy.comfyui.prompt import over
from fastpurge.comfy.nodes.outcome_text import tell
from fastpurge.comfy.nodes.purges import purge_ram
from fastpurge.comfy.server import between_prompts
from fastpurge.python_facts.object_types import reason_of
from fastpurge.reporting.text import human

VARIABLE = "FASTPURGE_WATCH"

_EVERY = 5.0
_WAIT = 60.0  # for the prompt that runs; then memory is read again

_log = logging.getLogger("fastpurge")


def start_if_asked() -> None:
    """Watch memory if the environment says so: ``FASTPURGE_WATCH="90%"``, or a number of bytes.

    What cannot be read is said in the log, and ComfyUI starts without a watch.
    """
    if asked := os.environ.get(VARIABLE, "").strip():
        try:
            gauge, mark = pressure.parse(int(asked) if asked.isdecimal() else asked, None, None)
        except ValueError as error:
            _log.error("%s=%s: %s. Nothing is purged by itself.", VARIABLE, asked, error)
        else:
            start(gauge, mark, label=f"{VARIABLE}={asked}")


def start(gauge: Gauge, mark: Threshold, *, label: str) -> threading.Thread:
    """Read memory from now on, and purge RAM between two prompts, or while none runs, if it is too full."""
    attempt = _once_each(lambda: _look(gauge, mark, label), label)

    def run() -> None:
        while True:
            threading.Event().wait(_EVERY)
            attempt()

    thread = threading.Thread(target=run, name="fastpurge.watch", daemon=True)
    thread.start()
    _log.info("%s: memory is watched, and purged between prompts", label)
    return thread


def _look(gauge: Gauge, mark: Threshold, label: str) -> None:
    if mark.is_passed(gauge.read()):
        between_prompts.do(lambda: _purge(gauge, mark, label), wait=_WAIT)


def _purge(gauge: Gauge, mark: Threshold, label: str) -> None:
    """Purge RAM as its node does, unless memory was only full while the prompt ran."""
    before = gauge.read()
    if mark.is_passed(before):
        outcome = purge_ram(over(label), (), protect_pending=True)
        after = gauge.read()
        mark.note_swept(after)
        _log.info(
            "%s: %s -> %s; %s", label, _said(before, gauge), _said(after, gauge), "; ".join(tell(outcome))
        )


def _once_each(look: Callable[[], None], label: str) -> Callable[[], None]:
    """Say what goes wrong, once of each thing: it is tried again in a moment."""
    said: set[str] = set()

    def attempt() -> None:
        try:
            look()
        except between_prompts.Busy:
            pass  # the prompt goes on, or somebody else purges
        except Exception as error:  # noqa: BLE001 - the server goes on
            if (reason := reason_of(error)) not in said:
                said.add(reason)
                _log.warning("%s: nothing was purged: %s", label, reason)

    return attempt


def _said(reading: float, gauge: Gauge) -> str:
    return f"{reading:.0f}%" if gauge.most == 100 else human(int(reading))  # noqa: PLR2004 - percent
