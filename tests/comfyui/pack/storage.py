"""Nodes that store images outside of their outputs: in globals, by name, in leaks, in reference cycles."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from .leaks import leak, leaked
from .node import Node, count_run

# Another pack, which ComfyUI loads before this one.
keepers = next(module for name, module in sys.modules.items() if name.endswith("fastpurge_keepers"))


STORE: dict[str, Any] = {}


NAMES: list[str] = []


IMAGES: list[Any] = []


class Shelf(Node):
    """Stores images in one list and their names in another, at the same index."""

    REQUIRED = {"name": ("STRING", {"default": "a"}), "megapixels": ("INT", {"default": 1})}

    def run(self, name: str, megapixels: int) -> tuple[torch.Tensor]:
        count_run(self)
        if name not in NAMES:
            NAMES.append(name)
            IMAGES.append(torch.full((1, megapixels * 1024, 1024, 3), float(len(name))))
        return (IMAGES[NAMES.index(name)] * 1,)


class Put(Node):
    """Stores an image in a global dict, and returns its key."""

    REQUIRED = {"image": ("IMAGE",), "name": ("STRING",)}
    RETURN_TYPES = ("STRING",)

    def run(self, image: torch.Tensor, name: str) -> tuple[str]:
        count_run(self)
        STORE[name] = image.clone()
        return (name,)


class Fetch(Node):
    """Returns the image with a key, after another node has run."""

    REQUIRED = {"name": ("STRING", {"forceInput": True}), "after": ("IMAGE",)}

    def run(self, name: str, after: torch.Tensor) -> tuple[torch.Tensor]:
        count_run(self)
        return (STORE[name] * 1,)


class KeeperReader(Node):
    """Reads a global of another pack."""

    REQUIRED = {"way": ("STRING",), "image": ("IMAGE",), "after": ("IMAGE",)}

    def run(self, way: str, image: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor]:
        return (keepers.CACHE[way][:1024] * 1,)


class Leak(Node):
    """Leaks a tensor of that many MiB."""

    REQUIRED = {"image": ("IMAGE",), "mebibytes": ("INT", {"default": 400})}

    def run(self, image: torch.Tensor, mebibytes: int) -> tuple[torch.Tensor]:
        count_run(self)
        leak(torch.ones(mebibytes << 18))
        return (image,)


class Unforget(Node):
    """Uses the most recently leaked tensor."""

    REQUIRED = {"image": ("IMAGE",)}

    def run(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (image * leaked()[-1][:3],)


class Gated:
    """An image whose finalizer creates the file ``begun``, and blocks until there is a file ``go``."""

    def __init__(self, image: torch.Tensor, folder: str) -> None:
        self.image = image
        self.folder = Path(folder)

    def __del__(self) -> None:
        (self.folder / "begun").touch()
        while self.folder.exists() and not (self.folder / "go").exists():
            time.sleep(0.02)


class Gate(Node):
    """Returns an image that blocks a purge which evicts it."""

    REQUIRED = {"image": ("IMAGE",), "folder": ("STRING",)}
    RETURN_TYPES = ("GATED",)

    def run(self, image: torch.Tensor, folder: str) -> tuple[Any]:
        count_run(self)
        return (Gated(image.clone(), folder),)


class Ungate(Node):
    REQUIRED = {"gated": ("GATED",)}

    def run(self, gated: Gated) -> tuple[torch.Tensor]:
        count_run(self)
        return (gated.image * 1,)


class Frames:
    """Images of an object in a reference cycle."""

    def __init__(self, count: int) -> None:
        self.images = [torch.ones(1 << 20) for _ in range(count)]
        self.first = self


class Ring(Node):
    """Returns a reference cycle with images of 4 MiB."""

    REQUIRED = {"count": ("INT", {"default": 20})}
    RETURN_TYPES = ("RING",)

    def run(self, count: int) -> tuple[Any]:
        return (Frames(count),)


class RingSum(Node):
    REQUIRED = {"ring": ("RING",)}

    def run(self, ring: Any) -> tuple[torch.Tensor]:
        return (torch.full((1, 8, 8, 3), float(len(ring.images))),)


NODE_CLASSES = (
    Shelf,
    Put,
    Fetch,
    KeeperReader,
    Leak,
    Unforget,
    Gate,
    Ungate,
    Ring,
    RingSum,
)
