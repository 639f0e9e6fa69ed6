"""A server that purges by itself: between prompts, when memory is too full, and not over and over."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from tests.comfyui.comfyui_process import PATIENCE, Server, comfyui
from tests.comfyui.graphs import Graph, node

MIB = 1 << 20
ABOVE = 1500 * MIB  # an idle server has half of it
LABEL = f"FASTPURGE_WATCH={ABOVE}"
PURGED = rf"{LABEL}: [\d.]+[MG] -> [\d.]+[MG]; freed "


def leaking(seed: int, mebibytes: int, seconds: float) -> Graph:
    """A prompt that needs a while after something was forgotten."""
    return {
        "noise": node("Noise", seed=seed, megapixels=2),
        "leak": node("Leak", image=("noise", 0), mebibytes=mebibytes),
        "wait": node("Wait", image=("leak", 0), seconds=seconds),
        "bright": node("Brighten", image=("wait", 0), by=1.1),
        "end": node("Digest", image=("bright", 0)),
    }


def until_logged(server: Server, pattern: str, times: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(re.findall(pattern, server.log())) < times:
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.1)


def test_memory_that_is_too_full_is_purged_between_two_prompts_and_not_again_for_nothing(
    home: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPURGE_WATCH", str(ABOVE))
    with comfyui(home) as server:
        assert f"{LABEL}: memory is watched" in server.log()
        expected = server.run(leaking(seed, 1, 0)).digest()
        # The first takes longer than it takes to see that memory is full; the second is in the queue by then.
        results = server.run_all([leaking(seed, 1200, 12), leaking(seed, 1, 0.5)])
        assert [one.digest() for one in results] == [expected] * 2
        until_logged(server, PURGED, 1)
        log = server.log()
        assert log.count("Prompt executed") == 3
        purged = re.search(PURGED, log)
        assert purged is not None
        assert log[: purged.start()].count("Prompt executed") == 2
        assert re.search(PURGED + r"1\.\d+G cpu", log)
        assert server.run(leaking(seed, 1, 0)).digest() == expected
        time.sleep(6)  # it has looked again
        assert len(re.findall(PURGED, server.log())) == 1


def test_what_only_a_prompt_needed_is_no_reason_and_what_stays_is_none_to_purge_again(
    home: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPURGE_WATCH", str(ABOVE))
    with comfyui(home) as server:
        graph = leaking(seed, 1, 0)
        expected = server.run(graph).digest()
        graph["wait"] = node("Need", image=("leak", 0), seconds=7.0, mebibytes=1200)
        assert server.run(graph).digest() == expected
        server.run(
            {"shelf": node("Shelf", name="full", megapixels=100), "end": node("Digest", image=("shelf", 0))}
        )
        until_logged(server, PURGED, 1)
        log = server.log()
        purged = re.search(PURGED, log)
        assert purged is not None
        assert log[: purged.start()].count("Prompt executed") == 3
        assert "kept by custom nodes: fastpurge_tests.IMAGES (1.2G)" in log
        time.sleep(12)  # it has looked twice
        assert len(re.findall(PURGED, server.log())) == 1


def test_what_goes_wrong_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    from fastpurge.comfy.server import between_prompts, memory_watch

    errors = [
        OSError("not now"),
        between_prompts.Busy("a prompt is running"),
        OSError("not now"),
        OSError("never"),
    ]

    def look() -> None:
        raise errors.pop(0)

    attempt = memory_watch._log_each_error_once(look, "the watch")
    for _ in [*errors]:
        attempt()
    assert [record.getMessage() for record in caplog.records] == [
        "the watch: nothing was purged: OSError: not now",
        "the watch: nothing was purged: OSError: never",
    ]


def test_a_value_that_cannot_be_read_is_said_and_the_server_starts(
    home: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPURGE_WATCH", "lots")
    with comfyui(home) as server:
        assert "FASTPURGE_WATCH=lots: above must be a share between 0% and 100%" in server.log()
        assert server.run(leaking(seed, 1, 0)).status == "success"


@pytest.mark.parametrize("value", ["0", "0%", "100%", "-1", "1.5", "90", "ninety", "9" * 40 + "%"])
def test_what_is_no_amount_starts_nothing(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fastpurge.comfy.server import memory_watch

    before = threading.active_count()
    monkeypatch.setenv("FASTPURGE_WATCH", value)
    memory_watch.start_from_environment()
    assert threading.active_count() == before
    assert f"FASTPURGE_WATCH={value}: above must be " in caplog.text
