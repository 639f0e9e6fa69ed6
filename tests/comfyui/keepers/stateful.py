"""Nodes that keep for other nodes, and for the next prompt, what would never come back if it were taken."""

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

# A loop: each turn adds its frames, and what comes after the loop takes them all.
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


# A memory: a node of one prompt puts something there, a node of another asks for it.
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


# Two under one key: who finds the one relies on the other.
WEIGHTS: dict[str, torch.Tensor] = {}
SETTINGS: dict[str, dict[str, float]] = {}


class LoadTwo(_Node):
    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        if name not in SETTINGS:
            WEIGHTS[name], SETTINGS[name] = torch.full((5 << 20,), 3.0), {"scale": 2.0}
        return (image * WEIGHTS[name][:3] * SETTINGS[name]["scale"],)


# `in`, about something else.
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
    """A flag beside a model."""

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
    """Collects on the instance, which ComfyUI keeps from one prompt to the next."""

    REQUIRED = _WITH_IMAGE

    def __init__(self) -> None:
        self.frames: list[torch.Tensor] = []

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        self.frames.append(image)
        return (torch.cat(self.frames),)


ERRORS: list[BaseException] = []


class KeepError(_Node):
    """Keeps an exception, and with it all that its traceback leads to: ComfyUI's executor, for one."""

    REQUIRED = _WITH_IMAGE

    def run(self, name: str, image: torch.Tensor, after: Any = None) -> tuple[torch.Tensor]:
        try:
            raise ValueError(name)
        except ValueError as error:
            ERRORS.append(error)
        return (image[:, :8] * 1,)


class Handle:
    """What goes over a wire; the image is found by it."""

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image


HANDLES: dict[str, Any] = {}


class Lend(_Node):
    """Gives out what only ComfyUI's cache then holds, and a weak reference finds."""

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
