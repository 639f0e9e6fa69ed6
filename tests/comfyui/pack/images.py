"""Nodes that compute images, lists of images and latents."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from .node import Node, count_run


class Noise(Node):
    """A random image of a given size; 12 bytes a pixel."""

    REQUIRED = {"seed": ("INT", {"default": 0}), "megapixels": ("INT", {"default": 8})}

    def run(self, seed: int, megapixels: int) -> tuple[torch.Tensor]:
        count_run(self)
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand((1, megapixels * 1024, 1024, 3), generator=generator),)


class Brighten(Node):
    REQUIRED = {"image": ("IMAGE",), "by": ("FLOAT", {"default": 1.1})}

    def run(self, image: torch.Tensor, by: float) -> tuple[torch.Tensor]:
        count_run(self)
        return (image * by,)


class Blend(Node):
    REQUIRED = {"a": ("IMAGE",), "b": ("IMAGE",)}

    def run(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor]:
        count_run(self)
        return ((a + b) / 2,)


class Digest(Node):
    """An output node that shows the SHA-256 of an image."""

    REQUIRED = {"image": ("IMAGE",)}
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    def run(self, image: torch.Tensor) -> dict[str, Any]:
        count_run(self)
        return {"ui": {"digest": [hashlib.sha256(image.numpy().tobytes()).hexdigest()]}, "result": ()}


class Batch(Node):
    """A list of images."""

    REQUIRED = {"seed": ("INT", {"default": 0}), "count": ("INT", {"default": 3})}
    OUTPUT_IS_LIST = (True,)

    def run(self, seed: int, count: int) -> tuple[list[torch.Tensor]]:
        count_run(self)
        made = (torch.Generator().manual_seed(seed + at) for at in range(count))
        return ([torch.rand((1, 1024, 1024, 3), generator=generator) for generator in made],)


class Pair(Node):
    """Two images as two outputs."""

    REQUIRED = {"seed": ("INT", {"default": 0})}
    RETURN_TYPES = ("IMAGE", "IMAGE")

    def run(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        count_run(self)
        return torch.full((1, 2048, 1024, 3), seed % 7), torch.full((1, 2048, 1024, 3), 0.5)


class Box(Node):
    """An image in a NumPy array of objects, which the garbage collector does not traverse."""

    REQUIRED = {"image": ("IMAGE",)}
    RETURN_TYPES = ("BOX",)

    def run(self, image: torch.Tensor) -> tuple[Any]:
        count_run(self)
        box = np.empty(1, dtype=object)
        box[0] = image.clone()
        return (box,)


class Unbox(Node):
    REQUIRED = {"box": ("BOX",)}

    def run(self, box: Any) -> tuple[torch.Tensor]:
        count_run(self)
        return (box[0] * 1,)


class Nothing(Node):
    REQUIRED = {"image": ("IMAGE",)}

    def run(self, image: torch.Tensor) -> tuple[None]:
        count_run(self)
        return (None,)


class Conditioning(Node):
    """Random conditioning in the format of Wan."""

    REQUIRED = {"text": ("STRING", {"default": ""})}
    RETURN_TYPES = ("CONDITIONING",)

    def run(self, text: str) -> tuple[Any]:
        generator = torch.Generator().manual_seed(len(text))
        return ([[torch.randn((1, 16, 4096), generator=generator), {}]],)


class Decode(Node):
    """The first channels of a latent as an image."""

    REQUIRED = {"samples": ("LATENT",)}

    def run(self, samples: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        video = samples["samples"][0, :3]
        return (video.permute(1, 2, 3, 0).contiguous(),)


NODE_CLASSES = (
    Noise,
    Brighten,
    Blend,
    Digest,
    Batch,
    Pair,
    Box,
    Unbox,
    Nothing,
    Conditioning,
    Decode,
)
