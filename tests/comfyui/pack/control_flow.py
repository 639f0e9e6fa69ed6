"""Nodes that expand, loop, run other prompts, wait and fail."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder, is_link

from .node import RUNS, Node, count_run


class Mark(Node):
    """Records under a name that it has run."""

    REQUIRED = {"image": ("IMAGE",), "name": ("STRING",)}

    def run(self, image: torch.Tensor, name: str) -> tuple[torch.Tensor]:
        RUNS[name] = 1
        return (image,)


class Inner(Node):
    """Runs another prompt inside its own."""

    REQUIRED = {"image": ("IMAGE",), "purge": ("STRING", {"default": ""})}

    def run(self, image: torch.Tensor, purge: str) -> tuple[torch.Tensor]:
        import execution
        import server

        graph = {
            "noise": {"class_type": "FPT_Noise", "inputs": {"seed": 7, "megapixels": 2}},
            "end": {
                "class_type": purge or "FPT_Digest",
                "inputs": {"anything" if purge else "image": ["noise", 0]},
            },
        }
        executor = execution.PromptExecutor(
            server.PromptServer.instance,
            cache_type=execution.CacheType.CLASSIC,
            cache_args={"lru": 0, "ram": 0},
        )
        client = {"client_id": server.PromptServer.instance.client_id}
        thread = threading.Thread(target=executor.execute, args=(graph, "inner", client, ["end"]))
        thread.start()
        thread.join()
        assert executor.success
        return (image * 1,)


class Expand(Node):
    """Expands into a sub-graph that brightens in steps, with a purge after each if wanted."""

    REQUIRED = {
        "image": ("IMAGE",),
        "steps": ("INT", {"default": 3}),
        "purge": (["no", "CleanMemory_PurgePass", "CleanMemory_PurgePassMultiInput"],),
    }

    def run(self, image: torch.Tensor, steps: int, purge: str) -> dict[str, Any]:
        count_run(self)
        graph = GraphBuilder()
        # A constant that only the new graph refers to.
        last: Any = graph.node("FPT_Blend", a=image, b=image.flip(1)).out(0)
        for _ in range(steps):
            last = graph.node("FPT_Brighten", image=last, by=1.1).out(0)
            if purge != "no":
                wire = "data" if purge == "CleanMemory_PurgePass" else "data0"
                last = graph.node(purge, **{wire: last, "mode": "RAM"}).out(0)
        return {"result": (last,), "expand": graph.finalize()}


class Loop(Node):
    """Repeats its upstream node by expanding into copies of it, like loop packs."""

    REQUIRED = {"image": ("IMAGE", {"rawLink": True}), "left": ("INT", {"default": 3})}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": cls.REQUIRED, "hidden": {"graph": "DYNPROMPT"}}

    def run(self, image: list[Any], left: int, graph: Any) -> dict[str, Any]:
        count_run(self)
        if left == 0:
            return {"result": (image,), "expand": {}}
        source = graph.get_node(image[0])
        builder = GraphBuilder()
        again = builder.node(source["class_type"], **source["inputs"])
        wire = next(name for name, value in source["inputs"].items() if is_link(value))
        again.set_input(wire, image)
        return {
            "result": (builder.node("FPT_Loop", image=again.out(0), left=left - 1).out(0),),
            "expand": builder.finalize(),
        }


class V3Loop(io.ComfyNode):  # type: ignore[misc]
    """`Loop` in the V3 API."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FPT_V3Loop",
            category="fastpurge tests",
            enable_expand=True,
            inputs=[io.Image.Input("image", extra_dict={"rawLink": True}), io.Int.Input("left", default=3)],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, image: list[Any], left: int) -> Any:
        made = Loop().run(image, left, cls.hidden.dynprompt)
        return io.NodeOutput(*made["result"], expand=made["expand"])


class Switch(Node):
    """Returns one of two lazy inputs."""

    REQUIRED = {"first": ("BOOLEAN",), "a": ("IMAGE", {"lazy": True}), "b": ("IMAGE", {"lazy": True})}

    def check_lazy_status(self, first: bool, a: Any = None, b: Any = None) -> list[str]:
        return ["a" if first else "b"]

    def run(self, first: bool, a: Any = None, b: Any = None) -> tuple[torch.Tensor]:
        count_run(self)
        return (a if first else b,)


class Fail(Node):
    REQUIRED = {"image": ("IMAGE",)}

    def run(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        raise ValueError("meant to fail")


class Wait(Node):
    REQUIRED = {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0})}

    def run(self, image: torch.Tensor, seconds: float) -> tuple[torch.Tensor]:
        import comfy.model_management

        until = time.monotonic() + seconds
        while time.monotonic() < until:
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.02)
        return (image,)


class WaitFor(Node):
    """Waits until a file exists."""

    REQUIRED = {"image": ("IMAGE",), "file": ("STRING",)}

    def run(self, image: torch.Tensor, file: str) -> tuple[torch.Tensor]:
        import comfy.model_management

        while not Path(file).exists():
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.02)
        return (image,)


class Need(Wait):
    """Allocates that many MiB while it waits."""

    REQUIRED = {**Wait.REQUIRED, "mebibytes": ("INT", {"default": 0})}

    def run(self, image: torch.Tensor, seconds: float, mebibytes: int = 0) -> tuple[torch.Tensor]:
        _needed = torch.ones(mebibytes << 18)
        return super().run(image, seconds)


NODE_CLASSES = (
    Mark,
    Inner,
    Expand,
    Loop,
    V3Loop,
    Switch,
    Fail,
    Wait,
    WaitFor,
    Need,
)
