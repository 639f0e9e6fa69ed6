"""A training step in two halves, so that a sweep can run between forward and backward."""

from __future__ import annotations

import torch
from fastpurge import PurgedError

from .architecture import Architecture, Bits, UnfitError, bits, seed, tensors_in


class Training:
    """A model, its optimizer with state, and the loss of a step before its backward."""

    def __init__(self, architecture: Architecture) -> None:
        self.model = architecture.build().eval()
        self._inputs = architecture.inputs(self.model)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.loss = torch.zeros(())

    def start(self) -> None:
        """Run a whole step, and the second one up to the loss."""
        seed()
        try:
            self._forward()
            self.finish()
            self._forward()
        except PurgedError:
            raise
        except Exception as error:
            raise UnfitError(f"cannot be trained: {error}") from error

    def finish(self) -> None:
        """Run backward and the optimizer."""
        self.loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Bits]:
        """A digest of the bits of every parameter and buffer."""
        return {
            name: bits(tensor)
            for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers())
        }

    def _forward(self) -> None:
        self.optimizer.zero_grad()
        outputs = [one for one in tensors_in(self.model(**self._inputs)) if one.requires_grad]
        if not outputs:
            raise UnfitError("computes nothing that requires a gradient")
        # The plain sum of the output of a LayerNorm is constant, and has no gradient.
        self.loss = torch.stack([one.abs().float().sin().sum() for one in outputs]).sum()
