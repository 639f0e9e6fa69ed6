"""A custom node pack for the tests: nodes that do what people's custom nodes do, well and badly."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fastpurge
import numpy as np
import psutil
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder, is_link

from . import dynamic
from .dynamic import forget, forgotten

# A pack that builds on another: loaded before this one.
keepers = next(module for name, module in sys.modules.items() if name.endswith("fastpurge_keepers"))

MODELS: dict[str, Any] = {}
RUNS: dict[str, int] = {}
STORE: dict[str, Any] = {}


def _count(node: Any) -> None:
    name = type(node).__name__
    RUNS[name] = RUNS.get(name, 0) + 1


class _Node:
    CATEGORY = "fastpurge tests"
    FUNCTION = "run"
    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    REQUIRED: dict[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": cls.REQUIRED}


class Noise(_Node):
    """An image that can be computed again: 12 bytes a pixel."""

    REQUIRED = {"seed": ("INT", {"default": 0}), "megapixels": ("INT", {"default": 8})}

    def run(self, seed: int, megapixels: int) -> tuple[torch.Tensor]:
        _count(self)
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand((1, megapixels * 1024, 1024, 3), generator=generator),)


class Brighten(_Node):
    REQUIRED = {"image": ("IMAGE",), "by": ("FLOAT", {"default": 1.1})}

    def run(self, image: torch.Tensor, by: float) -> tuple[torch.Tensor]:
        _count(self)
        return (image * by,)


class Blend(_Node):
    REQUIRED = {"a": ("IMAGE",), "b": ("IMAGE",)}

    def run(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor]:
        _count(self)
        return ((a + b) / 2,)


class Digest(_Node):
    """The end of a branch: what came of it, bit for bit."""

    REQUIRED = {"image": ("IMAGE",)}
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    def run(self, image: torch.Tensor) -> dict[str, Any]:
        _count(self)
        return {"ui": {"digest": [hashlib.sha256(image.numpy().tobytes()).hexdigest()]}, "result": ()}


class Batch(_Node):
    """A list of images."""

    REQUIRED = {"seed": ("INT", {"default": 0}), "count": ("INT", {"default": 3})}
    OUTPUT_IS_LIST = (True,)

    def run(self, seed: int, count: int) -> tuple[list[torch.Tensor]]:
        _count(self)
        made = (torch.Generator().manual_seed(seed + at) for at in range(count))
        return ([torch.rand((1, 1024, 1024, 3), generator=generator) for generator in made],)


class Pair(_Node):
    """Two images, of which one may be wired to a purge."""

    REQUIRED = {"seed": ("INT", {"default": 0})}
    RETURN_TYPES = ("IMAGE", "IMAGE")

    def run(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        _count(self)
        return torch.full((1, 2048, 1024, 3), seed % 7), torch.full((1, 2048, 1024, 3), 0.5)


class Box(_Node):
    """An image where the collector does not see it: in a NumPy array of objects."""

    REQUIRED = {"image": ("IMAGE",)}
    RETURN_TYPES = ("BOX",)

    def run(self, image: torch.Tensor) -> tuple[Any]:
        _count(self)
        box = np.empty(1, dtype=object)
        box[0] = image.clone()
        return (box,)


class Unbox(_Node):
    REQUIRED = {"box": ("BOX",)}

    def run(self, box: Any) -> tuple[torch.Tensor]:
        _count(self)
        return (box[0] * 1,)


class Nothing(_Node):
    REQUIRED = {"image": ("IMAGE",)}

    def run(self, image: torch.Tensor) -> tuple[None]:
        _count(self)
        return (None,)


class LoadModel(_Node):
    """A model in ComfyUI's hands: a patcher, like a checkpoint loader's."""

    REQUIRED = {"seed": ("INT", {"default": 0})}
    RETURN_TYPES = ("MODEL",)

    def run(self, seed: int) -> tuple[Any]:
        _count(self)
        return (_patcher(seed),)


def _patcher(seed: int, width: int = 2304) -> Any:
    """A patcher around a model of 20 MiB."""
    import comfy.model_management
    import comfy.model_patcher

    with torch.inference_mode(False):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, 3))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


class RunModel(_Node):
    REQUIRED = {"model": ("MODEL",), "image": ("IMAGE",)}

    def run(self, model: Any, image: torch.Tensor) -> tuple[torch.Tensor]:
        import comfy.model_management

        _count(self)
        comfy.model_management.load_models_gpu([model])
        width = model.model[0].in_features
        row = image.flatten()[:width].to(model.load_device)
        return (image + model.model(row).to(image.device),)


class Conditioning(_Node):
    """What a text encoder of Wan would give, of noise."""

    REQUIRED = {"text": ("STRING", {"default": ""})}
    RETURN_TYPES = ("CONDITIONING",)

    def run(self, text: str) -> tuple[Any]:
        generator = torch.Generator().manual_seed(len(text))
        return ([[torch.randn((1, 16, 4096), generator=generator), {}]],)


class Decode(_Node):
    """The first channels of a latent as an image."""

    REQUIRED = {"samples": ("LATENT",)}

    def run(self, samples: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        video = samples["samples"][0, :3]
        return (video.permute(1, 2, 3, 0).contiguous(),)


class OwnModel(_Node):
    """Keeps its model on the node instance, as many do."""

    REQUIRED = {"image": ("IMAGE",), "seed": ("INT", {"default": 0})}

    def __init__(self) -> None:
        self.model: Any = None

    def run(self, image: torch.Tensor, seed: int) -> tuple[torch.Tensor]:
        _count(self)
        if self.model is None:
            RUNS["OwnModel.load"] = RUNS.get("OwnModel.load", 0) + 1
            self.model = _patcher(seed).model
        return (image + self.model(image.flatten()[:2304]),)


class ModuleModel(_Node):
    """Keeps its model at module level, as many do."""

    REQUIRED = {"image": ("IMAGE",), "seed": ("INT", {"default": 0})}

    def run(self, image: torch.Tensor, seed: int) -> tuple[torch.Tensor]:
        _count(self)
        if "model" not in MODELS:
            RUNS["ModuleModel.load"] = RUNS.get("ModuleModel.load", 0) + 1
            MODELS["model"] = _patcher(seed).model
        return (image + MODELS["model"](image.flatten()[:2304]),)


NAMES: list[str] = []
IMAGES: list[Any] = []


class Shelf(_Node):
    """Keeps images in one list and their names in another, and finds the one by the other."""

    REQUIRED = {"name": ("STRING", {"default": "a"}), "megapixels": ("INT", {"default": 1})}

    def run(self, name: str, megapixels: int) -> tuple[torch.Tensor]:
        _count(self)
        if name not in NAMES:
            NAMES.append(name)
            IMAGES.append(torch.full((1, megapixels * 1024, 1024, 3), float(len(name))))
        return (IMAGES[NAMES.index(name)] * 1,)


class LeakModel(_Node):
    """Loads a model and forgets it, with its patcher or without."""

    REQUIRED = {"image": ("IMAGE",), "seed": ("INT", {"default": 0}), "what": (["patcher", "model"],)}

    def run(self, image: torch.Tensor, seed: int, what: str) -> tuple[torch.Tensor]:
        import comfy.model_management

        _count(self)
        patcher = _patcher(seed)
        comfy.model_management.load_models_gpu([patcher])
        forget(patcher if what == "patcher" else patcher.model)
        return (image,)


class Gated:
    """An image; whoever lets it go says so by a file, and waits until there is another."""

    def __init__(self, image: torch.Tensor, folder: str) -> None:
        self.image = image
        self.folder = Path(folder)

    def __del__(self) -> None:
        (self.folder / "begun").touch()
        while self.folder.exists() and not (self.folder / "go").exists():
            time.sleep(0.02)


class Gate(_Node):
    """Gives an image that keeps a purge waiting which lets go of it."""

    REQUIRED = {"image": ("IMAGE",), "folder": ("STRING",)}
    RETURN_TYPES = ("GATED",)

    def run(self, image: torch.Tensor, folder: str) -> tuple[Any]:
        _count(self)
        return (Gated(image.clone(), folder),)


class Ungate(_Node):
    REQUIRED = {"gated": ("GATED",)}

    def run(self, gated: Gated) -> tuple[torch.Tensor]:
        _count(self)
        return (gated.image * 1,)


class Leak(_Node):
    """Forgets so many MiB."""

    REQUIRED = {"image": ("IMAGE",), "mebibytes": ("INT", {"default": 400})}

    def run(self, image: torch.Tensor, mebibytes: int) -> tuple[torch.Tensor]:
        _count(self)
        forget(torch.ones(mebibytes << 18))
        return (image,)


class Unforget(_Node):
    """Takes what was forgotten last."""

    REQUIRED = {"image": ("IMAGE",)}

    def run(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (image * forgotten()[-1][:3],)


class Model:
    """A model in a wrapper, as many packs hand theirs on."""

    def __init__(self, seed: int) -> None:
        self.patcher = _patcher(seed)


class Put(_Node):
    """Puts an image away and hands on the name that it is found by."""

    REQUIRED = {"image": ("IMAGE",), "name": ("STRING",)}
    RETURN_TYPES = ("STRING",)

    def run(self, image: torch.Tensor, name: str) -> tuple[str]:
        _count(self)
        STORE[name] = image.clone()
        return (name,)


class Fetch(_Node):
    """Takes out what was put away, and waits for something else first."""

    REQUIRED = {"name": ("STRING", {"forceInput": True}), "after": ("IMAGE",)}

    def run(self, name: str, after: torch.Tensor) -> tuple[torch.Tensor]:
        _count(self)
        return (STORE[name] * 1,)


class ExpandModel(_Node):
    """Becomes a sub-graph with a purge in it, and hands out a model beside."""

    REQUIRED = {"image": ("IMAGE",), "seed": ("INT", {"default": 0}), "purge": ("STRING", {"default": ""})}
    RETURN_TYPES = ("MODEL", "IMAGE")

    def run(self, image: torch.Tensor, seed: int, purge: str) -> dict[str, Any]:
        _count(self)
        graph = GraphBuilder()
        last = graph.node("FPT_Brighten", image=image, by=1.1).out(0)
        if purge:
            last = graph.node(purge, data=last, mode="RAM").out(0)
        return {"result": (_patcher(seed), last), "expand": graph.finalize()}


class SlowModel(_Node):
    """Loads models while other nodes run; the last of a list takes longest."""

    REQUIRED = {"seed": ("INT", {"default": 0}), "until": ("STRING", {"default": ""})}
    RETURN_TYPES = ("MODEL",)

    async def run(self, seed: int, until: str) -> tuple[Any]:
        wrapped = Model(seed)
        while until and until not in RUNS:
            await asyncio.sleep(0.02)
        return (wrapped.patcher,)


class Names(_Node):
    """What the models of a list wait for: the first for nothing, the second for a node to have run."""

    REQUIRED = {"until": ("STRING", {"default": ""})}
    RETURN_TYPES = ("STRING", "IMAGE")
    OUTPUT_IS_LIST = (True, False)

    def run(self, until: str) -> tuple[list[str], torch.Tensor]:
        return ["", until], torch.full((1, 2048, 1024, 3), 0.5)


class Mark(_Node):
    """Notes that it has run."""

    REQUIRED = {"image": ("IMAGE",), "name": ("STRING",)}

    def run(self, image: torch.Tensor, name: str) -> tuple[torch.Tensor]:
        RUNS[name] = 1
        return (image,)


class Inner(_Node):
    """Runs a prompt of its own, as nodes that queue other workflows do."""

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


class Expand(_Node):
    """Becomes a sub-graph: brightens in steps, and purges within if asked to."""

    REQUIRED = {
        "image": ("IMAGE",),
        "steps": ("INT", {"default": 3}),
        "purge": (["no", "CleanMemory_PurgePass", "CleanMemory_PurgePassMultiInput"],),
    }

    def run(self, image: torch.Tensor, steps: int, purge: str) -> dict[str, Any]:
        _count(self)
        graph = GraphBuilder()
        # A constant in the new graph, and nowhere else.
        last: Any = graph.node("FPT_Blend", a=image, b=image.flip(1)).out(0)
        for _ in range(steps):
            last = graph.node("FPT_Brighten", image=last, by=1.1).out(0)
            if purge != "no":
                wire = "data" if purge == "CleanMemory_PurgePass" else "data0"
                last = graph.node(purge, **{wire: last, "mode": "RAM"}).out(0)
        return {"result": (last,), "expand": graph.finalize()}


class Loop(_Node):
    """Runs the node before it again until it was run so many times, as loop packs do: by copies of it."""

    REQUIRED = {"image": ("IMAGE", {"rawLink": True}), "left": ("INT", {"default": 3})}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": cls.REQUIRED, "hidden": {"graph": "DYNPROMPT"}}

    def run(self, image: list[Any], left: int, graph: Any) -> dict[str, Any]:
        _count(self)
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
    """The same in the newer API."""

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


class Frames:
    """Images in a cycle of references."""

    def __init__(self, count: int) -> None:
        self.images = [torch.ones(1 << 20) for _ in range(count)]
        self.first = self


class Ring(_Node):
    """Gives a cycle of images of 4 MiB."""

    REQUIRED = {"count": ("INT", {"default": 20})}
    RETURN_TYPES = ("RING",)

    def run(self, count: int) -> tuple[Any]:
        return (Frames(count),)


class RingSum(_Node):
    REQUIRED = {"ring": ("RING",)}

    def run(self, ring: Any) -> tuple[torch.Tensor]:
        return (torch.full((1, 8, 8, 3), float(len(ring.images))),)


class KeeperReader(_Node):
    """Looks up what a node of another pack has kept."""

    REQUIRED = {"way": ("STRING",), "image": ("IMAGE",), "after": ("IMAGE",)}

    def run(self, way: str, image: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor]:
        return (keepers.CACHE[way][:1024] * 1,)


class Switch(_Node):
    """Takes one of two, and has the other not even computed."""

    REQUIRED = {"first": ("BOOLEAN",), "a": ("IMAGE", {"lazy": True}), "b": ("IMAGE", {"lazy": True})}

    def check_lazy_status(self, first: bool, a: Any = None, b: Any = None) -> list[str]:
        return ["a" if first else "b"]

    def run(self, first: bool, a: Any = None, b: Any = None) -> tuple[torch.Tensor]:
        _count(self)
        return (a if first else b,)


class Fail(_Node):
    REQUIRED = {"image": ("IMAGE",)}

    def run(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        raise ValueError("meant to fail")


class Wait(_Node):
    REQUIRED = {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0})}

    def run(self, image: torch.Tensor, seconds: float) -> tuple[torch.Tensor]:
        import comfy.model_management

        until = time.monotonic() + seconds
        while time.monotonic() < until:
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.02)
        return (image,)


class WaitFor(_Node):
    """Waits until there is a file."""

    REQUIRED = {"image": ("IMAGE",), "file": ("STRING",)}

    def run(self, image: torch.Tensor, file: str) -> tuple[torch.Tensor]:
        import comfy.model_management

        while not Path(file).exists():
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.02)
        return (image,)


class Need(Wait):
    """Needs so many MiB for a while."""

    REQUIRED = {**Wait.REQUIRED, "mebibytes": ("INT", {"default": 0})}

    def run(self, image: torch.Tensor, seconds: float, mebibytes: int = 0) -> tuple[torch.Tensor]:
        _needed = torch.ones(mebibytes << 18)
        return super().run(image, seconds)


class Stats(_Node):
    """What there is in the process."""

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


class Say(_Node):
    """Shows on the canvas what it is told to, in the place of a purge."""

    CATEGORY = "fastpurge"
    REQUIRED = {"output": ("STRING", {"default": "{}", "multiline": True})}
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    def run(self, output: str) -> dict[str, Any]:
        return {"ui": json.loads(output), "result": ()}


class PlainScan(_Node):
    """What the plain-Python way takes in this process: two passes over all objects, and a collection."""

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


_CLASSES = (
    *(
        Noise,
        Pair,
        Brighten,
        Blend,
        Digest,
        Batch,
        Box,
        Unbox,
        Nothing,
        LoadModel,
        RunModel,
        OwnModel,
        ModuleModel,
        Leak,
        Gate,
        Ungate,
    ),
    *(Shelf, LeakModel, Conditioning, Decode, Put, Fetch, ExpandModel, SlowModel, Names, Mark, Inner),
    *(V3Loop, Ring, RingSum, KeeperReader, Unforget),
    *(Expand, Loop, Switch, Fail, Wait, WaitFor, Need, Stats, Say, PlainScan),
)
NODE_CLASS_MAPPINGS = {**{f"FPT_{of.__name__}": of for of in _CLASSES}, **dynamic.NODE_CLASS_MAPPINGS}
