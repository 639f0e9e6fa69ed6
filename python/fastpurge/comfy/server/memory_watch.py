"""Read memory every few seconds, and purge between prompts when usage is above a threshold."""

import logging
import os
import threading
from collections.abc import Callable

from fastpurge.allocators import pressure
from fastpurge.allocators.pressure import Gauge, Threshold
from fastpurge.comfy.comfyui.prompt import last_prompt
from fastpurge.comfy.nodes.format_outcome import to_lines
from fastpurge.comfy.nodes.purges import purge_ram
from fastpurge.comfy.server import between_prompts
from fastpurge.python_facts.object_types import reason_of
from fastpurge.reporting.text import human

VARIABLE = "FASTPURGE_WATCH"

_INTERVAL = 5.0
_MAX_WAIT = 60.0  # seconds to wait for the running prompt before memory is read again

_log = logging.getLogger("fastpurge")


def start_from_environment() -> None:
    """Start the watch if `FASTPURGE_WATCH` is set, to a percentage such as ``"90%"`` or a number of bytes.

    An invalid value is logged as an error, and ComfyUI starts without the watch.
    """
    if asked := os.environ.get(VARIABLE, "").strip():
        try:
            gauge, threshold = pressure.parse(int(asked) if asked.isdecimal() else asked, None, None)
        except ValueError as error:
            _log.error("%s=%s: %s. Automatic purges are off.", VARIABLE, asked, error)
        else:
            start(gauge, threshold, label=f"{VARIABLE}={asked}")


def start(gauge: Gauge, threshold: Threshold, *, label: str) -> threading.Thread:
    """Start a thread that reads memory, and purges RAM between prompts while usage is above the threshold."""
    attempt = _log_each_error_once(lambda: _check_memory(gauge, threshold, label), label)

    def run() -> None:
        while True:
            threading.Event().wait(_INTERVAL)
            attempt()

    thread = threading.Thread(target=run, name="fastpurge.watch", daemon=True)
    thread.start()
    _log.info("%s: watching memory; purges run between prompts", label)
    return thread


def _check_memory(gauge: Gauge, threshold: Threshold, label: str) -> None:
    if threshold.is_passed(gauge.read()):
        between_prompts.run(lambda: _purge(gauge, threshold, label), wait=_MAX_WAIT)


def _purge(gauge: Gauge, threshold: Threshold, label: str) -> None:
    """Purge RAM like its node, if memory is still full: the prompt may have needed it while it ran."""
    before = gauge.read()
    if threshold.is_passed(before):
        outcome = purge_ram(last_prompt(label), (), protect_pending=True)
        after = gauge.read()
        threshold.note_swept(after)
        _log.info(
            "%s: %s -> %s; %s",
            label,
            _format_reading(before, gauge),
            _format_reading(after, gauge),
            "; ".join(to_lines(outcome)),
        )


def _log_each_error_once(check: Callable[[], None], label: str) -> Callable[[], None]:
    """Wrap a check so that each error is logged once; the watch goes on."""
    logged: set[str] = set()

    def attempt() -> None:
        try:
            check()
        except between_prompts.Busy:
            pass  # a prompt or another purge is running
        except Exception as error:  # noqa: BLE001 - the watch goes on
            if (reason := reason_of(error)) not in logged:
                logged.add(reason)
                _log.warning("%s: nothing was purged: %s", label, reason)

    return attempt


def _format_reading(reading: float, gauge: Gauge) -> str:
    return f"{reading:.0f}%" if gauge.most == 100 else human(int(reading))  # noqa: PLR2004 - percent
