"""The routes on a real server: what they do, what they refuse, and that prompts come to no harm."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.comfyui.comfyui_process import PATIENCE, REPOSITORY, Server, _free_port, comfyui, until
from tests.comfyui.graphs import Graph, chain, node

MiB = 2**20
SWEEP = "/fastpurge/sweep"
PAGE = "https://page.test"


@pytest.fixture(scope="module")
def other(home: Path) -> Iterator[Server]:
    """A server that lets a page of another origin in, and caches nothing."""
    with comfyui(home, "--enable-cors-header", PAGE, "--cache-none") as running:
        yield running


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """What a prompt waits for; no test leaves one waiting."""
    yield tmp_path / "go"
    (tmp_path / "go").touch()


def sweep(server: Server, path: str = SWEEP, /, **fields: Any) -> requests.Response:
    return requests.post(server.url + path, json=fields, timeout=PATIENCE)


def swept(server: Server, **fields: Any) -> dict[str, Any]:
    answer = sweep(server, **fields)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


def leak(seed: int, mebibytes: int) -> Graph:
    return {
        "small": node("Noise", seed=seed, megapixels=1),
        "leak": node("Leak", image=("small", 0), mebibytes=mebibytes),
        "last": node("Digest", image=("leak", 0)),
    }


def waiting(seed: int, go: Path) -> Graph:
    """Gives what `chain` gives, once there is a file."""
    graph = chain(None, seed)
    graph["wait"] = node("WaitFor", image=("noise", 0), file=str(go))
    graph["blend"]["inputs"]["a"] = ["wait", 0]
    return graph


def rss(server: Server) -> int:
    resident: int = psutil.Process(server.process.pid).memory_info().rss
    return resident


def wait_until_running(server: Server) -> None:
    until(lambda: server.get("/queue")["queue_running"])


def ask(server: Server, **fields: Any) -> HTTPConnection:
    """Send a request for a sweep, and leave the answer for later."""
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("POST", SWEEP, json.dumps(fields), {"Content-Type": "application/json"})
    return connection


def test_leaks_and_finished_results_go_and_the_next_prompts_give_the_same(server: Server, seed: int) -> None:
    save = {"save": node("PreviewImage", images=("small", 0))}
    first = server.run({**chain(None, seed), **leak(seed, 400), **save})
    history = server.get("/history")
    (picture,) = first.outputs["save"]["images"]
    before = rss(server)
    done = swept(server)
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
    assert swept(server, purge="vram")["let_go"] == []
    cached = server.run(chain(None, seed))
    assert cached.ran == []
    assert cached.digest() == first.digest()


@pytest.mark.parametrize("purge", ["vram", "ram", "all"])
def test_models_are_loaded_again_and_compute_the_same(server: Server, seed: int, purge: str) -> None:
    def graph(by: float) -> Graph:
        return {
            "noise": node("Noise", seed=seed, megapixels=2),
            "load": node("LoadModel", seed=seed),
            "own": node("OwnModel", image=("noise", 0), seed=1),  # an instance keeps its model for every seed
            "expand": node("Expand", image=("own", 0), steps=2, purge="no"),
            "run": node("RunModel", model=("load", 0), image=("expand", 0)),
            "bright": node("Brighten", image=("run", 0), by=by),
            "end": node("Digest", image=("bright", 0)),
        }

    expected = [server.run(graph(by)).digest() for by in (1.5, 1.0)]
    done = swept(server, purge=purge)
    assert bool(done["unloaded"]) is (purge != "ram")
    assert [server.run(graph(by)).digest() for by in (1.5, 1.0)] == expected


def test_a_prompt_that_runs_is_left_alone_or_waited_for(server: Server, seed: int, go: Path) -> None:
    expected = [server.run(chain(None, seed + at)).digest() for at in range(2)]
    with ThreadPoolExecutor(1) as pool:
        prompts = pool.submit(server.run_all, [waiting(seed, go), waiting(seed + 1, go)])
        wait_until_running(server)
        busy = sweep(server)
        assert busy.status_code == 409
        assert busy.json() == {"error": "a prompt is running; nothing was done"}
        assert int(busy.headers["Retry-After"]) > 0
        assert requests.get(server.url + "/fastpurge/census", timeout=PATIENCE).json()["count"] > 0
        # Asked for here and not in a thread of its own, or it may come while another is being refused.
        patient = ask(server, wait=60, label="patient")
        second = sweep(server)
        assert second.status_code == 409
        assert second.json() == {"error": "another purge is under way; nothing was done"}
        running = server.get("/queue")["queue_running"]
        assert len(running) == 1  # the same prompt still, and the server has answered
        go.touch()
        # Before the second prompt began:
        assert "FPT_WaitFor (node wait)" in json.load(patient.getresponse())["let_go"]
        assert [result.digest() for result in prompts.result(PATIENCE)] == expected


def test_requests_that_come_at_once_purge_one_after_the_other_or_are_refused(
    server: Server, seed: int
) -> None:
    first = server.run({**chain(None, seed), **leak(seed, 100)}).digest()
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda _: sweep(server), range(6))]
    done = [answer.json() for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert sum(one["released"]["count"] for one in done) == 1
    assert server.run(chain(None, seed)).digest() == first


def test_what_is_smaller_than_asked_for_stays(server: Server, seed: int) -> None:
    swept(server, purge="all")
    server.run(leak(seed, 8))
    assert swept(server)["released"]["count"] == 0
    assert swept(server, purge="all", min_bytes=9 * MiB)["released"]["count"] == 0
    assert swept(server, min_bytes=4 * MiB)["released"]["count"] == 1


def test_who_uses_what_was_released_is_told_the_label(server: Server, seed: int) -> None:
    server.run(leak(seed, 100))
    swept(server, label="night shift")
    graph = {
        "noise": node("Noise", seed=seed, megapixels=1),
        "unforget": node("Unforget", image=("noise", 0)),
        "end": node("Digest", image=("unforget", 0)),
    }
    assert "released by fastpurge (night shift)" in server.run(graph).error["exception_message"]


@pytest.mark.parametrize("purge", ["ram", "all"])
def test_what_a_pack_keeps_is_left_and_it_says_where(server: Server, seed: int, purge: str) -> None:
    graph = {"shelf": node("Shelf", name=purge, megapixels=2), "end": node("Digest", image=("shelf", 0))}
    first = server.run(graph).digest()
    left = {one["where"]: one["nbytes"] for one in swept(server, purge=purge)["left"]}
    assert left["fastpurge_tests.IMAGES"] >= 24 * MiB
    assert server.run(graph).digest() == first


BODIES: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "the body: not JSON"),
    "no JSON": ("purge=ram", "the body: not JSON"),
    "no text": (b"\xff\xff", "the body: not JSON"),
    "deep": ("[" * 50_000, "the body: not JSON"),
    "a list": ("[]", "the body: a JSON object"),
    "twice": ('{"purge": "ram", "purge": "all"}', '"purge": more than once'),
    "unknown": ('{"keep": []}', "keep: no such field"),
    "kind": ('{"purge": "everything"}', "purge: one of vram, ram, all"),
    "kind of kind": ('{"purge": ["ram"]}', "purge: one of vram, ram, all"),
    "little": ('{"min_bytes": 1048575}', "min_bytes: a whole number from 1048576"),
    "much": ('{"min_bytes": 4611686018427387905}', "min_bytes: a whole number from 1048576"),
    "half": ('{"min_bytes": 2000000.5}', "min_bytes: a whole number"),
    "no number": ('{"min_bytes": true}', "min_bytes: a whole number"),
    "of no use": ('{"purge": "vram", "min_bytes": 2000000}', "min_bytes: not with a purge of vram"),
    "too long": ('{"wait": 601}', "wait: a whole number from 0 to 600"),
    "endless": ('{"wait": 1e999}', "wait: a whole number"),
    "two lines": (r'{"label": "a\nb"}', "label: one line"),
    "nobody": ('{"label": ""}', "label: one line"),
    "long": (json.dumps({"label": "a" * 201}), "label: one line"),
    "null": ('{"label": null}', "label: one line"),
}


def _refusals(server: Server) -> Iterator[tuple[str, requests.Response, int, str]]:
    """Requests that are not what they have to be; the status, and what the error says."""

    def request(method: str, path: str, body: bytes | str = "{}", **headers: str) -> requests.Response:
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return requests.request(method, server.url + path, data=body, headers=headers, timeout=30)

    for name, (body, error) in BODIES.items():
        yield name, request("POST", SWEEP, body), 400, error
    yield "large", request("POST", SWEEP, " " * 65_537), 413, "the body: 65,536 bytes"
    bomb = gzip.compress(b" " * 1_000_000)
    yield "bomb", request("POST", SWEEP, bomb, Content_Encoding="gzip"), 413, "the body: 65,536 bytes"
    yield "packed", request("POST", SWEEP, Content_Encoding="gzip"), 400, "the body: "
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        error = "Content-Type: application/json, not "
        yield kind, request("POST", SWEEP, Content_Type=kind), 415, error
    yield "address", request("POST", f"{SWEEP}?purge=all"), 400, "purge: must be in the JSON body"
    for path in (SWEEP, f"/api{SWEEP}"):
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            yield f"{method} {path}", request(method, path), 405, f"{path} is for POST, not for {method}"
        origin = "http://evil.test"
        # ComfyUI refuses the first, which calls the server by a loopback name. The second has a name that
        # leads here, as any name can be made to; the third its own page by such a name.
        yield "page", request("POST", path, Origin=origin), 403, ""
        for other in ("http://10.0.0.9:8188", origin, "null"):
            host = "evil.test" if other == origin else "10.0.0.8:8188"
            yield (
                other,
                request("POST", path, Origin=other, Host=host),
                403,
                f"cross-origin request from {other}",
            )
    yield "census", request("POST", "/fastpurge/census"), 405, "/fastpurge/census is for GET"
    for top in ("-1", "1001", "x", "1.5", "", "٣", "9" * 5000):
        path = f"/fastpurge/census?top={top}"
        yield f"top={top}", request("GET", path), 400, "top: a whole number from 0 to 1000"
    yield "bottom", request("GET", "/fastpurge/census?bottom=1"), 400, "bottom: no such parameter"


def test_what_is_not_as_it_has_to_be_is_refused_and_nothing_is_done(server: Server, seed: int) -> None:
    server.run(chain(None, seed))
    log = len(server.log())
    wrong = [
        (name, answer.status_code, answer.text)
        for name, answer, status, error in _refusals(server)
        if answer.status_code != status
        or (error and not answer.json()["error"].startswith(error))
        or (status == 405 and answer.headers["Allow"] not in error)
    ]
    assert wrong == []
    assert "freed" not in server.log()[log:]
    assert f"{SWEEP} failed" not in server.log()[log:]
    assert server.run(chain(None, seed)).ran == []


def test_the_servers_own_page_may_and_so_may_one_that_comfyui_lets_in(server: Server, other: Server) -> None:
    local = server.url.replace("127.0.0.1", "localhost")
    own = {"Origin": local, "Host": local.removeprefix("http://")}
    for at, headers, status in (
        (server, {"Origin": server.url}, 200),
        (server, own, 200),
        (other, {"Origin": PAGE}, 200),
        (other, {"Origin": "https://evil.test"}, 403),
        (other, {"Origin": "http://["}, 403),
    ):
        assert requests.post(at.url + SWEEP, json={}, headers=headers, timeout=30).status_code == status
    # Before a browser sends JSON for a page, it asks.
    asked = requests.options(other.url + SWEEP, headers={"Origin": "https://evil.test"}, timeout=30)
    assert asked.headers["Access-Control-Allow-Origin"] == PAGE


def test_where_comfyui_lets_in_every_page_the_routes_do(home: Path) -> None:
    with comfyui(home, "--enable-cors-header") as server:
        headers = {"Origin": "https://evil.test"}
        assert requests.post(server.url + SWEEP, json={}, headers=headers, timeout=30).status_code == 200


def test_a_server_that_caches_nothing_and_one_that_has_just_started(other: Server, seed: int) -> None:
    swept(other, purge="all")
    first = other.run({**chain(None, seed), **leak(seed, 100)}).digest()
    assert swept(other)["released"]["count"] == 1
    other.post("/free", {"unload_models": True, "free_memory": True})
    swept(other, purge="all")
    assert other.run(chain(None, seed)).digest() == first


def test_what_a_pack_keeps_stays_where_nothing_is_cached(other: Server, seed: int) -> None:
    graph = {"keep": node("Keeper", way="in_a_dict", salt=seed), "end": node("Digest", image=("keep", 0))}
    first = other.run(graph).digest()
    assert any("keepers" in one["where"] for one in swept(other)["left"])
    assert other.run(graph).digest() == first


def test_the_census_names_the_largest(server: Server, seed: int) -> None:
    server.run(leak(seed, 300))
    for path in ("/fastpurge/census", "/api/fastpurge/census"):
        census = server.get(f"{path}?top=2")
        assert len(census["largest"]) == 2
        assert census["largest"][0]["nbytes"] == 300 * MiB
        assert "forgotten" in census["largest"][0]["path"]
    assert sweep(server, f"/api{SWEEP}").json()["released"]["count"] == 1


def orchestrate(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = REPOSITORY / "examples" / "comfyui" / "orchestrate.py"
    command = [sys.executable, str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_many_servers_are_purged_and_one_that_is_not_there_is_named(
    server: Server, other: Server, seed: int
) -> None:
    for one in (server, other):
        one.run(leak(seed, 200))
    done = orchestrate("--json", server.url, other.url)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert json.loads(line)["freed"]["cpu"] > 0.9 * 200 * MiB
    nobody = f"http://127.0.0.1:{_free_port()}"
    some = orchestrate(nobody, server.url)
    assert some.returncode == 1
    first, second = some.stdout.splitlines()
    assert re.fullmatch(rf"{nobody}: no answer: .*refused.*", first)
    assert second.startswith(f"{server.url}: freed ")
    wrong = orchestrate("10.0.0.1:8188")
    assert wrong.returncode == 2
    assert "such as http://10.0.0.1:8188" in wrong.stderr
    elsewhere = orchestrate(f"{server.url}/elsewhere")
    assert "is the fastpurge pack installed?" in elsewhere.stdout


def test_a_server_that_is_busy_is_asked_again(server: Server, seed: int, go: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        prompt = pool.submit(server.run, waiting(seed, go))
        wait_until_running(server)
        once = orchestrate("--wait", "0", "--attempts", "1", server.url)
        assert once.returncode == 1
        assert once.stdout == f"{server.url}: not purged: a prompt is running; nothing was done\n"
        threading.Timer(3, go.touch).start()
        again = orchestrate("--wait", "0", "--attempts", "20", server.url)
        assert again.returncode == 0, again.stdout
        assert prompt.result(PATIENCE).status == "success"


def test_the_page_of_the_routes_does_what_it_says(server: Server) -> None:
    page = (REPOSITORY / "docs" / "http.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assert len(blocks) == 4
    for block in blocks:
        command = re.sub(r"http://127\.0\.0\.1:\d+", server.url, block)
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=REPOSITORY,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode in (0, 1 if "orchestrate" in block else 0), done.stdout + done.stderr
        assert "freed" in done.stdout or '"largest"' in done.stdout
    (purged,) = re.findall(r'`\{"error": "(.*?)"\}`', page)
    assert sweep(server, wait=-1).json()["error"] == purged
    fields = {name for row in re.findall(r"(?m)^\| (`.*?) \|", page) for name in re.findall(r"`(\w+)`", row)}
    assert swept(server).keys() <= fields


def test_who_does_not_wait_for_the_answer_leaves_no_error_behind(monkeypatch: pytest.MonkeyPatch) -> None:
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

    # In a thread of its own: where a browser was driven before, this one has a loop that runs.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, leave()).result()
    threads[0].join()
    assert errors == []
