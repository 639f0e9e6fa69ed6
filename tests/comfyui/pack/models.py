"""Nodes that load, run, cache and leak models."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from comfy_execution.graph_utils import GraphBuilder

from .leaks import leak
from .node import RUNS, Node, count_run

MODELS: dict[str, Any] = {}


def make_patcher(seed: int, width: int = 2304) -> Any:
    """A patcher around a model of 20 MiB."""
    import comfy.model_management
    import comfy.model_patcher

    with torch.inference_mode(False):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, 3))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


class LoadModel(Node):
    """A model in a `ModelPatcher`, as a checkpoint loader returns it."""

    REQUIRED = {"seed": ("INT", {"default": 0})}
    RETURN_TYPES = ("MODEL",)

    def run(self, seed: int) -> tuple[Any]:
        count_run(self)
        return (make_patcher(seed),)


class RunModel(Node):
    REQUIRED = {"model": ("MODEL",), "image": ("IMAGE",)}

    def run(self, model: Any, image: torch.Tensor) -> tuple[torch.Tensor]:
        import comfy.model_management

        count_run(self)
        comfy.model_management.load_models_gpu([model])
        width = model.model[0].in_features
        row = image.flatten()[:width].to(model.load_device)
        return (image + model.model(row).to(image.device),)


class OwnModel(Node):
    """Stores its model in an attribute of the node instance."""

    REQUIRED = {"image": ("IMAGE",), "seed": ("INT", {"default": 0})}

    def __init__(self) -> None:
        self.model: Any = None

    def run(self, image: torch.Tensor, seed: int) -> tuple[torch.Tensor]:
        count_run(self)
        if self.model is None:
            RUNS["OwnModel.load"] = RUNS.get("OwnModel.load", 0) + 1
            self.model = make_patcher(seed).model
        return (image + self.model(image.flatten()[:2304]),)


class ModuleModel(Node):
    """Stores its model in a global."""

    REQUIRED = {"image": ("IMAGE",), "seed": ("INT", {"default": 0})}

    def run(self, image: torch.Tensor, seed: int) -> tuple[torch.Tensor]:
        count_run(self)
        if "model" not in MODELS:
            RUNS["ModuleModel.load"] = RUNS.get("ModuleModel.load", 0) + 1
            MODELS["model"] = make_patcher(seed).model
        return (image + MODELS["model"](image.flatten()[:2304]),)


class LeakModel(Node):
    """Leaks a loaded model, with its patcher or without."""

    REQUIRED = {"image": ("IMAGE",), "seed": ("INT", {"default": 0}), "what": (["patcher", "model"],)}

    def run(self, image: torch.Tensor, seed: int, what: str) -> tuple[torch.Tensor]:
        import comfy.model_management

        count_run(self)
        patcher = make_patcher(seed)
        comfy.model_management.load_models_gpu([patcher])
        leak(patcher if what == "patcher" else patcher.model)
        return (image,)


class ExpandModel(Node):
    """Expands into a sub-graph with a purge, and returns a model besides."""

    REQUIRED = {"image": ("IMAGE",), "seed": ("INT", {"default": 0}), "purge": ("STRING", {"default": ""})}
    RETURN_TYPES = ("MODEL", "IMAGE")

    def run(self, image: torch.Tensor, seed: int, purge: str) -> dict[str, Any]:
        count_run(self)
        graph = GraphBuilder()
        last = graph.node("FPT_Brighten", image=image, by=1.1).out(0)
        if purge:
            last = graph.node(purge, data=last, mode="RAM").out(0)
        return {"result": (make_patcher(seed), last), "expand": graph.finalize()}


class Model:
    """A wrapper around a model patcher."""

    def __init__(self, seed: int) -> None:
        self.patcher = make_patcher(seed)


class SlowModel(Node):
    """An async node: returns its model once the node that ``until`` names has run."""

    REQUIRED = {"seed": ("INT", {"default": 0}), "until": ("STRING", {"default": ""})}
    RETURN_TYPES = ("MODEL",)

    async def run(self, seed: int, until: str) -> tuple[Any]:
        wrapped = Model(seed)
        while until and until not in RUNS:
            await asyncio.sleep(0.02)
        return (wrapped.patcher,)


class Names(Node):
    """A list of inputs for `SlowModel`: the first model waits for nothing, the second for a node."""

    REQUIRED = {"until": ("STRING", {"default": ""})}
    RETURN_TYPES = ("STRING", "IMAGE")
    OUTPUT_IS_LIST = (True, False)

    def run(self, until: str) -> tuple[list[str], torch.Tensor]:
        return ["", until], torch.full((1, 2048, 1024, 3), 0.5)


NODE_CLASSES = (
    LoadModel,
    RunModel,
    OwnModel,
    ModuleModel,
    LeakModel,
    ExpandModel,
    SlowModel,
    Names,
)
