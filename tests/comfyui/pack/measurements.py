"""Nodes that report figures of the process, or show a given output."""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import fastpurge
import psutil
import torch

from .node import RUNS, Node


class Stats(Node):
    """Shows counts and sizes of the process."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"optional": {"after": ("IMAGE",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")

    def run(self, after: Any = None) -> dict[str, Any]:
        import comfy.model_management

        gc.collect()
        objects = gc.get_objects()
        stats = {
            "rss": psutil.Process().memory_info().rss,
            "handles": psutil.Process().num_fds(),
            "threads": psutil.Process().num_threads(),
            "objects": len(objects),
            "tensors": sum(issubclass(type(one), torch.Tensor) for one in objects),
            "tombstones": sum(fastpurge.is_purged(one) for one in objects),
            "runs": dict(RUNS),
            "loaded": len(comfy.model_management.current_loaded_models),
            "on_device": [one.model_loaded_memory() for one in comfy.model_management.current_loaded_models],
        }
        return {"ui": {"stats": [stats]}, "result": ()}


class Say(Node):
    """Shows a given output on the canvas, like a purge node."""

    CATEGORY = "fastpurge"
    REQUIRED = {"output": ("STRING", {"default": "{}", "multiline": True})}
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    def run(self, output: str) -> dict[str, Any]:
        return {"ui": json.loads(output), "result": ()}


class PlainScan(Node):
    """Measures the plain Python scan: two passes over all objects, and a collection."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls) -> float:
        return float("nan")

    def run(self) -> dict[str, Any]:
        started = time.perf_counter()
        kept = {id(one) for one in gc.get_objects() if torch.is_tensor(one)}
        found = [one for one in gc.get_objects() if isinstance(one, torch.nn.Module) and id(one) not in kept]
        scanned = time.perf_counter()
        gc.collect()
        data = {
            "scan": scanned - started,
            "collect": time.perf_counter() - scanned,
            "found": len(found),
            "objects": len(gc.get_objects()),
        }
        return {"ui": {"plain": [data]}, "result": ()}


NODE_CLASSES = (
    Stats,
    Say,
    PlainScan,
)
