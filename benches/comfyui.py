"""A purge with nothing to free in a real ComfyUI, compared with plain Python in the same process.

Run it with the interpreter of `make test-comfyui`: ``.nox/comfyui/bin/python benches/comfyui.py``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.comfyui.comfyui_process import Server, comfyui
from tests.comfyui.graphs import node

ROUNDS = 15


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, comfyui(Path(folder)) as server:
        plain = [server.run({"plain": node("PlainScan")}).outputs["plain"]["plain"][0] for _ in range(ROUNDS)]
        purges = [_purge(server, seed) for seed in range(ROUNDS)]
    scan, collect = (median(one[name] for one in plain) for name in ("scan", "collect"))
    ours = median(purges)
    print(f"{plain[-1]['objects']:,} objects in the process; medians of {ROUNDS}")
    print(f"plain Python: {scan * 1e3:.0f} ms to scan, {collect * 1e3:.0f} ms to collect")
    print(f"Purge & Pass, nothing to free: {ours * 1e3:.0f} ms, {(scan + collect) / ours:.1f} times faster")


def _purge(server: Server, seed: int) -> float:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=1),
        "purge": node("CleanMemory_PurgePass", data=("noise", 0), mode="RAM"),
        "end": node("Digest", image=("purge", 0)),
    }
    (said,) = server.run(graph).outputs["purge"]["fastpurge"]
    if said["released"]["count"]:
        raise RuntimeError("there was something to free")
    seconds: float = said["seconds"]
    return seconds


if __name__ == "__main__":
    main()
