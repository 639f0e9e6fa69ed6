"""A training step in halves, so that something can come between forward and backward."""

from __future__ import annotations

import torch
from fastpurge import PurgedError

from .architecture import Architecture, Bits, UnfitError, bits, seed, tensors_in


class Training:
    """A model, its optimizer with a state, and the loss of a step that is half done."""

    def __init__(self, architecture: Architecture) -> None:
        self.model = architecture.build().eval()
        self._inputs = architecture.inputs(self.model)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.loss = torch.zeros(())

    def start(self) -> None:
        """Make one whole step, and the second one up to the loss."""
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
        """Make the rest of the step."""
        self.loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Bits]:
        """Every parameter and buffer, to the bit."""
        return {
            name: bits(tensor)
            for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers())
        }

    def _forward(self) -> None:
        self.optimizer.zero_grad()
        outputs = [one for one in tensors_in(self.model(**self._inputs)) if one.requires_grad]
        if not outputs:
            raise UnfitError("computes nothing that requires a gradient")
        # A plain sum of what a LayerNorm has normalized is constant, and trains nothing.
        self.loss = torch.stack([one.abs().float().sin().sum() for one in outputs]).sum()
