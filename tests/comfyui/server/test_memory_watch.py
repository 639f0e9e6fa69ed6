"""A server that purges between prompts when memory usage is above a threshold."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from tests.comfyui.comfyui_process import PATIENCE, Server, comfyui
from tests.comfyui.graphs import Graph, node

MIB = 1 << 20
ABOVE = 1500 * MIB  # an idle server uses half of it
LABEL = f"FASTPURGE_WATCH={ABOVE}"
PURGED = rf"{LABEL}: [\d.]+ [MG]iB -> [\d.]+ [MG]iB; freed "


def leak_and_wait(seed: int, mebibytes: int, seconds: float) -> Graph:
    """A prompt that leaks a tensor and then waits."""
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


def test_full_memory_is_purged_between_two_prompts_once(
    home: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPURGE_WATCH", str(ABOVE))
    with comfyui(home) as server:
        assert f"{LABEL}: watching memory" in server.log()
        expected = server.run(leak_and_wait(seed, 1, 0)).digest()
        # The first prompt runs for longer than the interval of the watch; the second is queued by then.
        results = server.run_all([leak_and_wait(seed, 1200, 12), leak_and_wait(seed, 1, 0.5)])
        assert [one.digest() for one in results] == [expected] * 2
        until_logged(server, PURGED, 1)
        log = server.log()
        assert log.count("Prompt executed") == 3
        purged = re.search(PURGED, log)
        assert purged is not None
        assert log[: purged.start()].count("Prompt executed") == 2
        assert re.search(PURGED + r"1\.\d+ GiB cpu", log)
        assert server.run(leak_and_wait(seed, 1, 0)).digest() == expected
        time.sleep(6)  # longer than the interval of the watch
        assert len(re.findall(PURGED, server.log())) == 1


def test_a_temporary_peak_triggers_no_purge_and_kept_memory_no_second_one(
    home: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPURGE_WATCH", str(ABOVE))
    with comfyui(home) as server:
        graph = leak_and_wait(seed, 1, 0)
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
        assert "kept by custom nodes: fastpurge_tests.storage.IMAGES (1.2 GiB)" in log
        time.sleep(12)  # twice the interval of the watch
        assert len(re.findall(PURGED, server.log())) == 1


def test_each_error_is_logged_once_and_the_watch_goes_on(caplog: pytest.LogCaptureFixture) -> None:
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


def test_an_invalid_threshold_is_logged_and_the_server_starts(
    home: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPURGE_WATCH", "lots")
    with comfyui(home) as server:
        assert "FASTPURGE_WATCH=lots: above must be a share between 0% and 100%" in server.log()
        assert server.run(leak_and_wait(seed, 1, 0)).status == "success"


@pytest.mark.parametrize("value", ["0", "0%", "100%", "-1", "1.5", "90", "ninety", "9" * 40 + "%"])
def test_an_invalid_threshold_starts_no_watch(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fastpurge.comfy.server import memory_watch

    before = threading.active_count()
    monkeypatch.setenv("FASTPURGE_WATCH", value)
    memory_watch.start_from_environment()
    assert threading.active_count() == before
    assert f"FASTPURGE_WATCH={value}: above must be " in caplog.text
