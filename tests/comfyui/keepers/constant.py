"""A tensor that is created on import and never again."""

import torch

KERNEL = torch.rand(5 << 20, generator=torch.Generator().manual_seed(1))
