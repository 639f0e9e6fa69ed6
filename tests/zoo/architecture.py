"""An architecture of any library, and the functions that run it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastpurge import PurgedError

Inputs = Mapping[str, Any]
Bits = tuple[tuple[int, ...], torch.dtype, str]


class UnfitError(Exception):
    """The library cannot build, run or train this architecture, with or without fastpurge."""


@dataclass(frozen=True)
class Architecture:
    """How to build a tiny model, and possible inputs, of which the first accepted ones are used."""

    make: Callable[[], torch.nn.Module]
    feeds: Callable[[Any], Iterator[Inputs]]

    def build(self) -> torch.nn.Module:
        """A model with the same random weights each time."""
        seed()
        try:
            return self.make()
        except PurgedError:
            raise
        except Exception as error:
            raise UnfitError(f"cannot be built: {error}") from error

    def inputs(self, model: torch.nn.Module) -> Inputs:
        """The first inputs that the model accepts."""
        problem: Exception | None = None
        for inputs in self.feeds(model):
            try:
                run(model, inputs)
            except PurgedError:
                raise
            except Exception as error:
                problem = error
            else:
                return inputs
        raise UnfitError(f"takes none of the inputs, the last of them because: {problem}")


def seed() -> None:
    """Seed every generator that models draw from."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def run(model: torch.nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """All tensors that the model computes from the inputs."""
    seed()
    with torch.no_grad():
        return list(tensors_in(model(**inputs)))


def tensors_in(output: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor in an output, once each, including those in containers and caches."""
    seen = set() if seen is None else seen
    if id(output) in seen or isinstance(output, type | torch.nn.Module):
        return
    seen.add(id(output))
    if isinstance(output, torch.Tensor):
        yield output
        return
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, list | tuple):
        parts = list(output)
    else:
        parts = list(getattr(output, "__dict__", {}).values())
    for part in parts:
        yield from tensors_in(part, seen)


def bits(tensor: torch.Tensor) -> Bits:
    """Shape, type, and a digest of the raw bytes: NaN equals itself, and 0.0 differs from -0.0."""
    # A clone: a storage that `numpy` has exported cannot be resized, and a sweep treats it differently.
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1).clone()
    raw = flat.view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), tensor.dtype, hashlib.sha256(raw).hexdigest()
