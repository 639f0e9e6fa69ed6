"""Requests to the routes, and prompts for their tests."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.comfyui.comfyui_process import PATIENCE, Server, wait_until
from tests.comfyui.graphs import Graph, chain, node

MiB = 2**20


SWEEP = "/fastpurge/sweep"


PAGE = "https://page.test"


def sweep(server: Server, path: str = SWEEP, /, **fields: Any) -> requests.Response:
    return requests.post(server.url + path, json=fields, timeout=PATIENCE)


def sweep_result(server: Server, **fields: Any) -> dict[str, Any]:
    answer = sweep(server, **fields)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


def send_sweep(server: Server, **fields: Any) -> HTTPConnection:
    """Send a request for a sweep without reading the response."""
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("POST", SWEEP, json.dumps(fields), {"Content-Type": "application/json"})
    return connection


def leak_graph(seed: int, mebibytes: int) -> Graph:
    return {
        "small": node("Noise", seed=seed, megapixels=1),
        "leak": node("Leak", image=("small", 0), mebibytes=mebibytes),
        "last": node("Digest", image=("leak", 0)),
    }


def waiting_graph(seed: int, go: Path) -> Graph:
    """The graph `chain`, which waits until a file exists."""
    graph = chain(None, seed)
    graph["wait"] = node("WaitFor", image=("noise", 0), file=str(go))
    graph["blend"]["inputs"]["a"] = ["wait", 0]
    return graph


def rss(server: Server) -> int:
    resident: int = psutil.Process(server.process.pid).memory_info().rss
    return resident


def wait_until_running(server: Server) -> None:
    wait_until(lambda: server.get("/queue")["queue_running"])
