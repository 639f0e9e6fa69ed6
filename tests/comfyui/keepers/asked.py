"""A tensor that is created on import, behind a function."""

import torch

OTHER = torch.rand(5 << 20, generator=torch.Generator().manual_seed(2))


def kernel() -> torch.Tensor:
    """The tensor; it would not be created again."""
    return torch.zeros(1) if OTHER is None else OTHER
