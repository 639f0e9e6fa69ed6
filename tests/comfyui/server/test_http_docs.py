"""The page docs/http.md and the example orchestrate.py do what they describe."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.comfyui.comfyui_process import PATIENCE, REPOSITORY, Server, free_port
from tests.comfyui.server.route_requests import (
    MiB,
    leak_graph,
    sweep,
    sweep_result,
    wait_until_running,
    waiting_graph,
)


def orchestrate(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = REPOSITORY / "examples" / "comfyui" / "orchestrate.py"
    command = [sys.executable, str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_many_servers_are_purged_and_unreachable_ones_are_named(
    server: Server, other: Server, seed: int
) -> None:
    for one in (server, other):
        one.run(leak_graph(seed, 200))
    done = orchestrate("--json", server.url, other.url)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert json.loads(line)["freed"]["cpu"] > 0.9 * 200 * MiB
    nobody = f"http://127.0.0.1:{free_port()}"
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


def test_a_busy_server_is_retried(server: Server, seed: int, go: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        prompt = pool.submit(server.run, waiting_graph(seed, go))
        wait_until_running(server)
        once = orchestrate("--wait", "0", "--attempts", "1", server.url)
        assert once.returncode == 1
        assert once.stdout == f"{server.url}: not purged: a prompt is running; nothing was done\n"
        threading.Timer(3, go.touch).start()
        again = orchestrate("--wait", "0", "--attempts", "20", server.url)
        assert again.returncode == 0, again.stdout
        assert prompt.result(PATIENCE).status == "success"


def test_the_commands_of_the_page_work_and_its_tables_are_complete(server: Server) -> None:
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
    assert sweep_result(server).keys() <= fields
