"""Purges with clients that disconnect, concurrent requests, and a full disk."""

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

import pytest
import websocket

from tests.comfyui.comfyui_process import PATIENCE, Result, Server, comfyui, wait_until
from tests.comfyui.graphs import PURGES, Graph, chain, node
from tests.comfyui.server.route_requests import SWEEP, sweep

CLOSE, RESET = "FIN", "RST"


def disconnect(connection: socket.socket, how: str) -> None:
    if how == RESET:  # as the kernel of a program that has crashed does
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Gate:
    """Blocks a purge in its middle, through the finalizer of an image that it evicts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def chain(self, purge: str | None, seed: int) -> Graph:
        """The graph `chain`, with an image that blocks its eviction."""
        graph = chain_with(purge, seed)
        graph["gate"] = node("Gate", image=("noise", 0), folder=str(self.folder))
        graph["ungate"] = node("Ungate", gated=("gate", 0))
        graph["bright"]["inputs"]["image"] = ["ungate", 0]
        return graph

    def wait(self) -> None:
        wait_until((self.folder / "begun").exists)

    def open(self) -> None:
        (self.folder / "go").touch()


def chain_with(purge: str | None, seed: int) -> Graph:
    """The graph `chain` with one of the purges."""
    return chain(None if purge is None else PURGES[purge], seed)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


def send(server: Server, body: bytes, length: int) -> socket.socket:
    """Send the head of a request for a sweep, and a part of its body."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), PATIENCE)
    head = f"POST {SWEEP} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
    return connection


def wait_for_result(server: Server, prompt: str) -> Result:
    wait_until(lambda: server.get(f"/history/{prompt}"))
    return server._result(prompt, [], {})


# A client disconnects during its prompt


@pytest.mark.parametrize("how", [CLOSE, RESET])
@pytest.mark.parametrize("purge", ["Pass RAM", "ALL"])
def test_a_client_may_disconnect_during_the_purge_of_its_prompt(
    server: Server, seed: int, gate: Gate, purge: str, how: str
) -> None:
    expected = server.run(chain(None, seed)).digest()
    client = uuid.uuid4().hex
    channel = websocket.create_connection(f"{server.url.replace('http', 'ws')}/ws?clientId={client}")
    log = len(server.log())
    prompt = server._queue(gate.chain(purge, seed), client)
    gate.wait()
    disconnect(channel.sock, how)
    assert len(server.get("/queue")["queue_running"]) == 1  # and the server answers
    gate.open()
    result = wait_for_result(server, prompt)
    assert "dropped from the cache FPT_Gate (node gate)" in result.shown_text()
    assert result.digest() == expected
    assert server.run(chain_with(purge, seed)).digest() == expected
    assert "Traceback" not in server.log()[log:]


# The disk is full


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """Every write to a file of the server fails."""
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux: a limit set from outside")
@pytest.mark.parametrize("purge", ["Pass RAM", "ALL"])
def test_on_a_full_disk_purges_succeed_and_only_writing_fails(server: Server, seed: int, purge: str) -> None:
    leak = node("Leak", image=("noise", 0), mebibytes=100)
    leaking = {**chain(None, seed), "leak": leak, "last": node("Digest", image=("leak", 0))}
    expected = server.run(leaking).digest()
    graph = chain_with(purge, seed)
    save = {"save": node("SaveImage", images=("blend", 0), filename_prefix=f"full{seed}")}
    with full_disk(server):
        written = server.log()
        result = server.run(graph)
        assert result.shown_text().startswith("freed ")
        assert result.digest() == expected
        failed = server.run({**graph, **save})
        done = sweep(server).json()
        assert server.log() == written
    assert "released 1 tensors, 100.0 MiB" in result.shown_text()
    assert done["let_go"]
    assert failed.status == "error"
    assert failed.error["node_id"] == "save"
    assert failed.error["exception_type"] == "OSError"
    again = server.run({**graph, **save})
    assert again.digest() == expected
    (picture,) = again.outputs["save"]["images"]
    assert server.serves(f"/view?filename={picture['filename']}&type=output")
    assert "PurgedError" not in server.log()


# Concurrent requests and disconnecting clients


def test_requests_during_a_sweep_are_refused_and_prompts_wait_for_it(
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
        wait_until(lambda: server.get("/queue")["queue_pending"])
        assert server.get("/queue")["queue_running"] == []
        gate.open()
        assert "FPT_Gate (node gate)" in first.result(PATIENCE).json()["let_go"]
        assert prompt.result(PATIENCE).digest() == expected
    assert sweep(server).status_code == 200


@pytest.mark.parametrize("how", [CLOSE, RESET])
def test_incomplete_requests_are_ignored(server: Server, seed: int, how: str) -> None:
    server.run(chain(None, seed))
    log = len(server.log())
    for body, length in ((b"", 2), (b"{", 2), (b"{}", 200)):
        disconnect(send(server, body, length), how)
    for _ in range(20):
        server.get("/queue")
    assert server.run(chain(None, seed)).ran == []
    said = server.log()[log:]
    assert "freed" not in said
    assert "Traceback" not in said
    assert sweep(server).status_code == 200


@pytest.mark.parametrize("how", [CLOSE, RESET])
def test_a_sweep_ends_after_its_client_has_disconnected(
    server: Server, seed: int, gate: Gate, how: str
) -> None:
    expected = server.run(gate.chain(None, seed)).digest()
    body = json.dumps({"label": f"gone {seed}", "wait": 60}).encode()
    log = len(server.log())
    asked = send(server, body, len(body))
    gate.wait()
    disconnect(asked, how)
    assert sweep(server).status_code == 409
    gate.open()
    wait_until(lambda: f"gone {seed}: freed " in server.log()[log:])
    assert "Traceback" not in server.log()[log:]
    assert server.run(chain(None, seed)).digest() == expected
    assert sweep(server).status_code == 200


def test_a_client_may_disconnect_while_its_sweep_waits_for_a_prompt(
    server: Server, seed: int, gate: Gate
) -> None:
    expected = server.run(chain(None, seed)).digest()
    body = json.dumps({"label": f"patient {seed}", "wait": 60}).encode()
    with ThreadPoolExecutor(1) as pool:
        prompt = pool.submit(server.run, gate.chain("RAM", seed))
        gate.wait()  # in the purge of the prompt
        asked = send(server, body, len(body))
        wait_until(lambda: sweep(server).json()["error"].startswith("another purge is under way"))
        disconnect(asked, RESET)
        assert "patient" not in server.log()
        gate.open()
        assert prompt.result(PATIENCE).digest() == expected
    wait_until(lambda: f"patient {seed}: freed " in server.log())
    assert server.run(chain(None, seed)).digest() == expected


@pytest.fixture
def _default_sigint() -> Iterator[None]:
    """Shells start background jobs with SIGINT ignored, and child processes inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_sigint")
def test_a_waiting_sweep_does_not_delay_the_exit_of_the_server(home: Path, seed: int, gate: Gate) -> None:
    with comfyui(home) as server:
        server.post("/prompt", {"prompt": gate.chain("RAM", seed)})
        gate.wait()
        asked = send(server, b'{"wait": 600}', 13)
        wait_until(lambda: sweep(server).json()["error"].startswith("another purge is under way"))
        server.process.send_signal(signal.SIGINT)
        server.process.wait(PATIENCE)
        asked.close()
        assert "Stopped server" in server.log()
