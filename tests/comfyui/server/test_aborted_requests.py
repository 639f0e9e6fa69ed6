"""What goes wrong around a purge: who asked for it leaves in the middle, the disk is full, many ask."""

from __future__ import annotations

import json
import resource
import signal
import socket
import struct
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

from tests.comfyui.comfyui_process import PATIENCE, Result, Server, comfyui, until
from tests.comfyui.graphs import PURGES, Graph, chain, node

SWEEP = "/fastpurge/sweep"
CLOSE, RESET = "with a goodbye", "without one"


def hang_up(connection: socket.socket, how: str) -> None:
    if how == RESET:  # as the kernel of a program that has crashed does
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Gate:
    """Where a purge stands still, in its middle, until it is opened: an image of which it lets go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def chain(self, purge: str | None, seed: int) -> Graph:
        """Gives what `chain` gives."""
        graph = purging(purge, seed)
        graph["gate"] = node("Gate", image=("noise", 0), folder=str(self.folder))
        graph["ungate"] = node("Ungate", gated=("gate", 0))
        graph["bright"]["inputs"]["image"] = ["ungate", 0]
        return graph

    def wait(self) -> None:
        until((self.folder / "begun").exists)

    def open(self) -> None:
        (self.folder / "go").touch()


def purging(purge: str | None, seed: int) -> Graph:
    """A chain with one of the purges in it."""
    return chain(None if purge is None else PURGES[purge], seed)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


def sweep(server: Server, **fields: Any) -> requests.Response:
    return requests.post(server.url + SWEEP, json=fields, timeout=PATIENCE)


def send(server: Server, body: bytes, length: int) -> socket.socket:
    """A request for a sweep of which so much has been sent."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), PATIENCE)
    head = f"POST {SWEEP} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
    return connection


def finished(server: Server, prompt: str) -> Result:
    until(lambda: server.get(f"/history/{prompt}"))
    return server._result(prompt, [], {})


# Who started a prompt leaves


@pytest.mark.parametrize("how", [CLOSE, RESET])
@pytest.mark.parametrize("purge", ["Pass RAM", "ALL"])
def test_who_started_a_prompt_may_leave_in_the_middle_of_a_purge(
    server: Server, seed: int, gate: Gate, purge: str, how: str
) -> None:
    expected = server.run(chain(None, seed)).digest()
    client = uuid.uuid4().hex
    channel = websocket.create_connection(f"{server.url.replace('http', 'ws')}/ws?clientId={client}")
    log = len(server.log())
    prompt = server._queue(gate.chain(purge, seed), client)
    gate.wait()
    hang_up(channel.sock, how)
    assert len(server.get("/queue")["queue_running"]) == 1  # and the server answers
    gate.open()
    result = finished(server, prompt)
    assert "dropped from the cache FPT_Gate (node gate)" in result.said()
    assert result.digest() == expected
    assert server.run(purging(purge, seed)).digest() == expected
    assert "Traceback" not in server.log()[log:]


# The disk is full


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """No file that the server writes grows any more."""
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux: a limit set from outside")
@pytest.mark.parametrize("purge", ["Pass RAM", "ALL"])
def test_on_a_full_disk_a_purge_is_done_and_what_cannot_be_written_is_the_error(
    server: Server, seed: int, purge: str
) -> None:
    leak = node("Leak", image=("noise", 0), mebibytes=100)
    leaking = {**chain(None, seed), "leak": leak, "last": node("Digest", image=("leak", 0))}
    expected = server.run(leaking).digest()
    graph = purging(purge, seed)
    save = {"save": node("SaveImage", images=("blend", 0), filename_prefix=f"full{seed}")}
    with full_disk(server):
        written = server.log()
        result = server.run(graph)
        assert result.said().startswith("freed ")
        assert result.digest() == expected
        failed = server.run({**graph, **save})
        done = sweep(server).json()
        assert server.log() == written
    assert "released 1 tensors, 100.0M" in result.said()
    assert done["let_go"]
    assert failed.status == "error"
    assert failed.error["node_id"] == "save"
    assert failed.error["exception_type"] == "OSError"
    again = server.run({**graph, **save})
    assert again.digest() == expected
    (picture,) = again.outputs["save"]["images"]
    assert server.serves(f"/view?filename={picture['filename']}&type=output")
    assert "PurgedError" not in server.log()


# Many ask at once, and some hang up


def test_whoever_asks_in_the_middle_of_a_sweep_is_told_and_a_prompt_comes_after_it(
    server: Server, seed: int, gate: Gate
) -> None:
    expected = server.run(gate.chain(None, seed)).digest()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(sweep, server)
        gate.wait()
        for fields in ({}, {"purge": "vram"}, {"wait": 60}):
            busy = sweep(server, **fields)
            assert busy.status_code == 409
            assert busy.json() == {"error": "another purge is under way; nothing was done"}
        prompt = pool.submit(server.run, chain(None, seed))
        until(lambda: server.get("/queue")["queue_pending"])
        assert server.get("/queue")["queue_running"] == []
        gate.open()
        assert "FPT_Gate (node gate)" in first.result(PATIENCE).json()["let_go"]
        assert prompt.result(PATIENCE).digest() == expected
    assert sweep(server).status_code == 200


@pytest.mark.parametrize("how", [CLOSE, RESET])
def test_who_hangs_up_before_all_of_a_request_is_there_has_asked_for_nothing(
    server: Server, seed: int, how: str
) -> None:
    server.run(chain(None, seed))
    log = len(server.log())
    for body, length in ((b"", 2), (b"{", 2), (b"{}", 200)):
        hang_up(send(server, body, length), how)
    for _ in range(20):
        server.get("/queue")
    assert server.run(chain(None, seed)).ran == []
    said = server.log()[log:]
    assert "freed" not in said
    assert "Traceback" not in said
    assert sweep(server).status_code == 200


@pytest.mark.parametrize("how", [CLOSE, RESET])
def test_a_sweep_is_done_though_who_asked_for_it_has_hung_up(
    server: Server, seed: int, gate: Gate, how: str
) -> None:
    expected = server.run(gate.chain(None, seed)).digest()
    body = json.dumps({"label": f"gone {seed}", "wait": 60}).encode()
    log = len(server.log())
    asked = send(server, body, len(body))
    gate.wait()
    hang_up(asked, how)
    assert sweep(server).status_code == 409
    gate.open()
    until(lambda: f"gone {seed}: freed " in server.log()[log:])
    assert "Traceback" not in server.log()[log:]
    assert server.run(chain(None, seed)).digest() == expected
    assert sweep(server).status_code == 200


def test_who_hangs_up_while_it_waits_for_a_prompt_harms_neither(
    server: Server, seed: int, gate: Gate
) -> None:
    expected = server.run(chain(None, seed)).digest()
    body = json.dumps({"label": f"patient {seed}", "wait": 60}).encode()
    with ThreadPoolExecutor(1) as pool:
        prompt = pool.submit(server.run, gate.chain("RAM", seed))
        gate.wait()  # in the purge of the prompt
        asked = send(server, body, len(body))
        until(lambda: sweep(server).json()["error"].startswith("another purge is under way"))
        hang_up(asked, RESET)
        assert "patient" not in server.log()
        gate.open()
        assert prompt.result(PATIENCE).digest() == expected
    until(lambda: f"patient {seed}: freed " in server.log())
    assert server.run(chain(None, seed)).digest() == expected


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A job in the background of a shell starts with SIGINT ignored, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_a_server_ends_though_a_sweep_waits_for_a_prompt(home: Path, seed: int, gate: Gate) -> None:
    with comfyui(home) as server:
        server.post("/prompt", {"prompt": gate.chain("RAM", seed)})
        gate.wait()
        asked = send(server, b'{"wait": 600}', 13)
        until(lambda: sweep(server).json()["error"].startswith("another purge is under way"))
        server.process.send_signal(signal.SIGINT)
        server.process.wait(PATIENCE)
        asked.close()
        assert "Stopped server" in server.log()
