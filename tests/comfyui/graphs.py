"""Prompts in ComfyUI's API format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Graph = dict[str, dict[str, Any]]


TEST_NODES = frozenset(
    """
    Batch Blend Borrow Box Brighten Buffer CacheBackend CollectFrames Conditioning Decode Digest Expand
    ExpandModel Fail Fetch FromBackend Gate Inner KeepError Keeper KeeperReader Leak LeakDynamic LeakModel
    Lend LoadDynamic LoadModel LoadTwo Loop Mark ModuleModel Names Need Noise Nothing OnItself OwnModel Pair
    PlainScan Put Recall Remember Ring RingSum RunModel RunPipeline RunningSum Say Shelf SlowModel Stats
    Switch TakeFrames Unbox Unforget Ungate V3Loop Wait WaitFor
    """.split()
)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node; a pair of a node id and an output index is a link."""
    links = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    kind = f"FPT_{class_type}" if class_type in TEST_NODES else class_type
    return {"class_type": kind, "inputs": links, "_meta": {"title": kind}}


Wire = tuple[str, int]

PURGES: dict[str, Callable[[Wire], dict[str, Any]]] = {
    "VRAM": lambda wire: node("CleanMemory_PurgeVRAM", anything=wire),
    "RAM": lambda wire: node("CleanMemory_PurgeRAM", anything=wire),
    "ALL": lambda wire: node("CleanMemory_PurgeAll", anything=wire),
    "Pass VRAM": lambda wire: node("CleanMemory_PurgePass", data=wire, mode="VRAM"),
    "Pass RAM": lambda wire: node("CleanMemory_PurgePass", data=wire, mode="RAM"),
    "RAM Multi": lambda wire: node("CleanMemory_PurgeRAMProtectedMulti", data0=wire),
    "Pass Multi VRAM": lambda wire: node("CleanMemory_PurgePassMultiInput", data0=wire, mode="VRAM"),
    "Pass Multi RAM": lambda wire: node("CleanMemory_PurgePassMultiInput", data0=wire, mode="RAM"),
}


def chain(purge: Callable[[Wire], dict[str, Any]] | None = None, seed: int = 0) -> Graph:
    """A graph: noise, brightened noise, and a blend of both; a purge on the wire of the second."""
    graph = {
        "noise": node("Noise", seed=seed, megapixels=2),
        "bright": node("Brighten", image=("noise", 0), by=1.1),
        "blend": node("Blend", a=("noise", 0), b=("bright", 0)),
        "end": node("Digest", image=("blend", 0)),
    }
    if purge is not None:
        insert(graph, purge, ("bright", 0), "blend", "b")
    return graph


def insert(graph: Graph, purge: Callable[[Wire], dict[str, Any]], wire: Wire, to: str, socket: str) -> None:
    """Add a purge node: into the wire if it passes its input through, else at the same output."""
    graph["purge"] = purge(wire)
    if "Pass" in graph["purge"]["class_type"]:
        graph[to]["inputs"][socket] = ["purge", 0]
