"""Nodes for a ComfyUI with dynamic model patchers: see tests/comfyui/dynamic_patchers.py."""

from __future__ import annotations

from typing import Any

import torch

from .leaks import leak, leaked


def _patcher(seed: int) -> Any:
    """A dynamic patcher around a model of 20 MiB."""
    import comfy.model_patcher

    with torch.inference_mode(False):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(2304, 2304), torch.nn.Linear(2304, 3))
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcherDynamic(model, device, device)


class LoadDynamic:
    CATEGORY = "fastpurge tests"
    FUNCTION = "run"
    RETURN_TYPES: tuple[str, ...] = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0})}}

    def run(self, seed: int) -> tuple[Any]:
        return (_patcher(seed),)


class LeakDynamic(LoadDynamic):
    """Leaks a patcher, or drops all leaks if the seed is 0."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")

    def run(self, seed: int) -> Any:
        import comfy.model_patcher

        if seed:
            leak(_patcher(seed))
        else:
            leaked().clear()
        return {"ui": {"pinned": [comfy.model_patcher.PINNED["bytes"]]}, "result": ()}


NODE_CLASS_MAPPINGS = {"FPT_LoadDynamic": LoadDynamic, "FPT_LeakDynamic": LeakDynamic}
