"""The routes on a real server: what they free, what they keep, and that prompts have the same results."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.comfyui.comfyui_process import PATIENCE, Server
from tests.comfyui.graphs import Graph, chain, node
from tests.comfyui.server.route_requests import (
    SWEEP,
    MiB,
    leak_graph,
    rss,
    send_sweep,
    sweep,
    sweep_result,
    wait_until_running,
    waiting_graph,
)


def test_leaks_and_finished_outputs_are_freed_and_later_prompts_are_the_same(
    server: Server, seed: int
) -> None:
    save = {"save": node("PreviewImage", images=("small", 0))}
    first = server.run({**chain(None, seed), **leak_graph(seed, 400), **save})
    history = server.get("/history")
    (picture,) = first.outputs["save"]["images"]
    before = rss(server)
    done = sweep_result(server)
    assert before - rss(server) > 0.9 * 400 * MiB
    assert done["purge"] == "ram"
    assert done["label"] == "POST /fastpurge/sweep"
    assert done["freed_by_device"]["cpu"] > 0.9 * 400 * MiB
    assert done["released"] == {"count": 1, "nbytes": 400 * MiB}
    assert {"FPT_Noise (node noise)", "FPT_Brighten (node bright)"} <= {*done["let_go"]}
    assert any(line.startswith("freed ") for line in done["lines"])
    assert "POST /fastpurge/sweep: freed " in server.log()
    assert server.get("/history") == history
    assert server.serves(f"/view?filename={picture['filename']}&type={picture['type']}")
    again = server.run(chain(None, seed))
    assert "noise" in again.ran
    assert again.digest() == first.digest()
    assert sweep_result(server, purge="vram")["let_go"] == []
    cached = server.run(chain(None, seed))
    assert cached.ran == []
    assert cached.digest() == first.digest()


@pytest.mark.parametrize("purge", ["vram", "ram", "all"])
def test_models_are_loaded_again_and_compute_the_same(server: Server, seed: int, purge: str) -> None:
    def graph(by: float) -> Graph:
        return {
            "noise": node("Noise", seed=seed, megapixels=2),
            "load": node("LoadModel", seed=seed),
            "own": node("OwnModel", image=("noise", 0), seed=1),  # the instance reuses one model
            "expand": node("Expand", image=("own", 0), steps=2, purge="no"),
            "run": node("RunModel", model=("load", 0), image=("expand", 0)),
            "bright": node("Brighten", image=("run", 0), by=by),
            "end": node("Digest", image=("bright", 0)),
        }

    expected = [server.run(graph(by)).digest() for by in (1.5, 1.0)]
    done = sweep_result(server, purge=purge)
    assert bool(done["unloaded"]) is (purge != "ram")
    assert [server.run(graph(by)).digest() for by in (1.5, 1.0)] == expected


def test_a_sweep_during_a_prompt_is_refused_or_waits(server: Server, seed: int, go: Path) -> None:
    expected = [server.run(chain(None, seed + at)).digest() for at in range(2)]
    with ThreadPoolExecutor(1) as pool:
        prompts = pool.submit(server.run_all, [waiting_graph(seed, go), waiting_graph(seed + 1, go)])
        wait_until_running(server)
        busy = sweep(server)
        assert busy.status_code == 409
        assert busy.json() == {"error": "a prompt is running; nothing was done"}
        assert int(busy.headers["Retry-After"]) > 0
        assert requests.get(server.url + "/fastpurge/census", timeout=PATIENCE).json()["count"] > 0
        # Sent from this thread: from another it might arrive during the request that is refused.
        patient = send_sweep(server, wait=60, label="patient")
        second = sweep(server)
        assert second.status_code == 409
        assert second.json() == {"error": "another purge is under way; nothing was done"}
        running = server.get("/queue")["queue_running"]
        assert len(running) == 1  # the same prompt is running, and the server answers
        go.touch()
        # Before the second prompt began:
        assert "FPT_WaitFor (node wait)" in json.load(patient.getresponse())["let_go"]
        assert [result.digest() for result in prompts.result(PATIENCE)] == expected


def test_concurrent_requests_run_in_turn_or_are_refused(server: Server, seed: int) -> None:
    first = server.run({**chain(None, seed), **leak_graph(seed, 100)}).digest()
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda _: sweep(server), range(6))]
    done = [answer.json() for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert sum(one["released"]["count"] for one in done) == 1
    assert server.run(chain(None, seed)).digest() == first


def test_tensors_below_min_bytes_are_kept(server: Server, seed: int) -> None:
    sweep_result(server, purge="all")
    server.run(leak_graph(seed, 8))
    assert sweep_result(server)["released"]["count"] == 0
    assert sweep_result(server, purge="all", min_bytes=9 * MiB)["released"]["count"] == 0
    assert sweep_result(server, min_bytes=4 * MiB)["released"]["count"] == 1


def test_the_error_of_a_released_tensor_names_the_label(server: Server, seed: int) -> None:
    server.run(leak_graph(seed, 100))
    sweep_result(server, label="night shift")
    graph = {
        "noise": node("Noise", seed=seed, megapixels=1),
        "unforget": node("Unforget", image=("noise", 0)),
        "end": node("Digest", image=("unforget", 0)),
    }
    assert "released by fastpurge (night shift)" in server.run(graph).error["exception_message"]


@pytest.mark.parametrize("purge", ["ram", "all"])
def test_objects_of_packs_are_kept_and_their_owner_is_named(server: Server, seed: int, purge: str) -> None:
    graph = {"shelf": node("Shelf", name=purge, megapixels=2), "end": node("Digest", image=("shelf", 0))}
    first = server.run(graph).digest()
    left = {one["where"]: one["nbytes"] for one in sweep_result(server, purge=purge)["left"]}
    assert left["fastpurge_tests.storage.IMAGES"] >= 24 * MiB
    assert server.run(graph).digest() == first


def test_a_server_without_a_cache_and_a_server_that_has_just_started(other: Server, seed: int) -> None:
    sweep_result(other, purge="all")
    first = other.run({**chain(None, seed), **leak_graph(seed, 100)}).digest()
    assert sweep_result(other)["released"]["count"] == 1
    other.post("/free", {"unload_models": True, "free_memory": True})
    sweep_result(other, purge="all")
    assert other.run(chain(None, seed)).digest() == first


def test_objects_of_packs_are_kept_on_a_server_without_a_cache(other: Server, seed: int) -> None:
    graph = {"keep": node("Keeper", way="in_a_dict", salt=seed), "end": node("Digest", image=("keep", 0))}
    first = other.run(graph).digest()
    assert any("keepers" in one["where"] for one in sweep_result(other)["left"])
    assert other.run(graph).digest() == first


def test_the_census_lists_the_largest_tensors(server: Server, seed: int) -> None:
    server.run(leak_graph(seed, 300))
    for path in ("/fastpurge/census", "/api/fastpurge/census"):
        census = server.get(f"{path}?top=2")
        assert len(census["largest"]) == 2
        assert census["largest"][0]["nbytes"] == 300 * MiB
        assert "leaked" in census["largest"][0]["path"]
    assert sweep(server, f"/api{SWEEP}").json()["released"]["count"] == 1


def test_a_cancelled_request_causes_no_error_in_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpurge.comfy.server.routes import _run_in_thread

    begun, go, threads = threading.Event(), threading.Event(), []
    errors: list[object] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)

    def work() -> None:
        threads.append(threading.current_thread())
        begun.set()
        go.wait()

    async def leave() -> None:
        task = asyncio.create_task(_run_in_thread(work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        go.set()

    # In another thread: after a browser test, an event loop is running in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, leave()).result()
    threads[0].join()
    assert errors == []
