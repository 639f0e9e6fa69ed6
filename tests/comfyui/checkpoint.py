"""Write a tiny checkpoint of a real architecture, with random weights: ``python checkpoint.py COMFYUI FILE``.

For Wan 2.1 ComfyUI reads all sizes from the state dict (comfy/model_detection.py), so a small model loads.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file


def main(comfyui: str, file: str) -> None:
    sys.path.insert(0, comfyui)
    sys.argv = sys.argv[:1]  # ComfyUI reads it when it is imported
    from comfy.cli_args import args

    args.cpu = True
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    torch.manual_seed(0)
    model = WanModel(
        dim=256,
        ffn_dim=8192,
        num_heads=2,
        num_layers=2,
        operations=comfy.ops.manual_cast,
        dtype=torch.float32,
    )
    weights = {
        name: torch.randn(weight.shape) * 0.02 if weight.is_floating_point() else weight
        for name, weight in model.state_dict().items()
    }
    save_file({f"model.diffusion_model.{name}": weight for name, weight in weights.items()}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
