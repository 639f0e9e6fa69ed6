"""Invalid requests and requests of other origins are refused, and nothing is purged."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.comfyui.comfyui_process import Server, comfyui
from tests.comfyui.graphs import chain
from tests.comfyui.server.route_requests import (
    PAGE,
    SWEEP,
)

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
    """Invalid requests: name, response, expected status, and expected start of the error."""

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
        # ComfyUI itself refuses the first, because its host is a loopback name. The others have hosts that
        # are not loopback names, as after DNS rebinding.
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


def test_invalid_requests_are_refused_and_nothing_is_purged(server: Server, seed: int) -> None:
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


def test_requests_of_the_own_page_and_of_allowed_origins_are_accepted(server: Server, other: Server) -> None:
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
    # The CORS preflight that a browser sends before JSON.
    asked = requests.options(other.url + SWEEP, headers={"Origin": "https://evil.test"}, timeout=30)
    assert asked.headers["Access-Control-Allow-Origin"] == PAGE


def test_with_cors_for_all_origins_every_page_is_accepted(home: Path) -> None:
    with comfyui(home, "--enable-cors-header") as server:
        headers = {"Origin": "https://evil.test"}
        assert requests.post(server.url + SWEEP, json={}, headers=headers, timeout=30).status_code == 200
