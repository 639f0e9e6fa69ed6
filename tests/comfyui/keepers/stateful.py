"""Nodes that store data for other nodes and for later prompts; it is never computed again."""

from __future__ import annotations

from typing import Any

import torch


class _Node:
    CATEGORY = "fastpurge tests"
    FUNCTION = "run"
    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    REQUIRED: dict[str, Any] = {"name": ("STRING",)}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": cls.REQUIRED, "optional": {"after": ("IMAGE,HANDLE",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")


_WITH_IMAGE = {"name": ("STRING",), "image": ("IMAGE",)}
_NOTHING = torch.zeros(1, 8, 8, 3)

# A loop: each iteration adds frames, and a node after the loop returns them all.
FRAMES: dict[str, torch.Tensor] = {}


class CollectFrames(_Node):
    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        if name not in FRAMES:
            FRAMES[name] = image
        else:
            FRAMES[name] = torch.cat([FRAMES[name], image])
        return (image,)


class TakeFrames(_Node):
    def run(self, name: str, after: Any = None) -> dict[str, Any]:
        frames = FRAMES.pop(name, _NOTHING)
        return {"ui": {"frames": [len(frames)]}, "result": (frames,)}


# A store: a node of one prompt writes to it, a node of another reads it.
MEMORY: dict[str, Any] = {}


class Remember(_Node):
    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        MEMORY[name] = {"image": image.clone()}
        return (image,)


class Recall(_Node):
    def run(self, name: str, after: Any = None) -> tuple[torch.Tensor]:
        found = MEMORY.get(name)
        return (found["image"] if found is not None else _NOTHING,)


# A cache for whole workflows, with a tag to each entry.
BACKEND: dict[str, tuple[str, list[Any]]] = {}


def _update(name: str, tag: str, value: Any) -> None:
    if BACKEND.get(name) is None or BACKEND[name][0] != tag:
        BACKEND[name] = (tag, [value])


class CacheBackend(_Node):
    REQUIRED = {**_WITH_IMAGE, "tag": ("STRING",)}

    def run(self, name: str, image: torch.Tensor, tag: str, after: Any = None) -> tuple[torch.Tensor]:
        _update(name, tag, image.clone())
        return (image,)


class FromBackend(_Node):
    def run(self, name: str, after: Any = None) -> dict[str, Any]:
        tag, values = BACKEND.get(name) or (None, [_NOTHING])
        return {"ui": {"tag": [tag]}, "result": (values[0],)}


SUMS: dict[str, Any] = {}


class RunningSum(_Node):
    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        SUMS[name] = SUMS.get(name, 0) + image
        return (SUMS[name] * 1,)


# Two dicts with the same keys: code that finds a key in one expects it in the other.
WEIGHTS: dict[str, torch.Tensor] = {}
SETTINGS: dict[str, dict[str, float]] = {}


class LoadTwo(_Node):
    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        if name not in SETTINGS:
            WEIGHTS[name], SETTINGS[name] = torch.full((5 << 20,), 3.0), {"scale": 2.0}
        return (image * WEIGHTS[name][:3] * SETTINGS[name]["scale"],)


# Membership in a set decides whether another dict has the key.
KNOWN: set[str] = set()
BUFFERS: dict[str, torch.Tensor] = {}


class Buffer(_Node):
    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        if name in KNOWN:
            return (BUFFERS[name] + image,)
        KNOWN.add(name)
        BUFFERS[name] = image.clone()
        return (image,)


class Pipeline:
    """A model, and a flag that it is loaded."""

    def __init__(self) -> None:
        self.is_loaded = False
        self.model = torch.empty(0)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if not self.is_loaded:
            self.model, self.is_loaded = torch.full((5 << 20,), 1.5), True
        return image * self.model[:3]


PIPELINES: dict[str, Pipeline] = {}


class RunPipeline(_Node):
    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        return (PIPELINES.setdefault(name, Pipeline())(image),)


class OnItself(_Node):
    """Collects images on the node instance, which ComfyUI caches between prompts."""

    REQUIRED = _WITH_IMAGE

    def __init__(self) -> None:
        self.frames: list[torch.Tensor] = []

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        self.frames.append(image)
        return (torch.cat(self.frames),)


ERRORS: list[BaseException] = []


class KeepError(_Node):
    """Keeps an exception. Its traceback reaches ComfyUI's executor."""

    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        try:
            raise ValueError(name)
        except ValueError as error:
            ERRORS.append(error)
        return (image[:, :8] * 1,)


class Handle:
    """The value on a wire, with an image."""

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image


HANDLES: dict[str, Any] = {}


class Lend(_Node):
    """Returns an object that only ComfyUI's cache keeps alive, and that a weak dictionary finds."""

    REQUIRED = {"name": ("STRING",), "seed": ("INT",)}
    RETURN_TYPES = ("HANDLE",)

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return 0.0

    def run(self, name: str, seed: int, after: Any = None) -> tuple[Any]:
        import weakref

        handle = Handle(torch.full((1, 2048, 1024, 3), float(seed)))
        HANDLES.setdefault("all", weakref.WeakValueDictionary())[name] = handle
        return (handle,)


class Borrow(_Node):
    def run(self, name: str, after: Any = None) -> tuple[torch.Tensor]:
        handle = HANDLES["all"].get(name)
        return (handle.image * 1 if handle is not None else _NOTHING,)


_CLASSES = (
    *(CollectFrames, TakeFrames, Remember, Recall, CacheBackend, FromBackend, RunningSum, LoadTwo, Buffer),
    *(RunPipeline, OnItself, KeepError, Lend, Borrow),
)
NODE_CLASS_MAPPINGS = {f"FPT_{of.__name__}": of for of in _CLASSES}
