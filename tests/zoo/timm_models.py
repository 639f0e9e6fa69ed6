"""Architectures of timm: the smallest of each family, cut down further where the family takes sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch

from .architecture import Inputs

_SIZE = 64
_VIT: dict[str, Any] = {"img_size": _SIZE, "embed_dim": 32, "depth": 2, "num_heads": 4}
_SWIN: dict[str, Any] = {
    "img_size": _SIZE,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (1, 2),
}
_STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "num_heads": (1, 2, 2, 2)}

_CUT: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": _VIT,
    "cait_xxs24_224": _VIT,
    "coat_lite_tiny": {"img_size": _SIZE, "embed_dims": (16, 16, 32, 32)},
    "convit_tiny": _VIT | {"local_up_to_layer": 1},
    "deit_tiny_distilled_patch16_224": _VIT,
    "eva02_tiny_patch14_224": _VIT,
    "fasternet_t0": {"embed_dim": 16, "depths": (1, 1, 1, 1)},
    "hiera_tiny_224": {"img_size": _SIZE, "embed_dim": 16, "stages": (1, 1, 1, 1)},
    "naflexvit_base_patch16_gap": {"embed_dim": 32, "depth": 2, "num_heads": 4},
    "samvit_base_patch16_224": _VIT,
    "sequencer2d_s": {
        "img_size": _SIZE,
        "layers": (1, 1, 1, 1),
        "embed_dims": (16, 16, 16, 16),
        "hidden_sizes": (8, 8, 8, 8),
    },
    "swin_tiny_patch4_window7_224": _SWIN,
    "swinv2_cr_tiny_224": _SWIN,
    "swinv2_tiny_window8_256": _SWIN,
    "twins_svt_small": {"img_size": _SIZE} | _STAGES,
    "vit_tiny_r_s16_p8_224": {"img_size": _SIZE, "embed_dim": 48, "depth": 2},
    "xcit_nano_12_p16_224": {"img_size": _SIZE, "depth": 2},
}
CHOICE = [
    *_CUT,
    *"""
    edgenext_xx_small lcnet_035 mobilenetv3_small_050 mobilevit_xxs starnet_s050 test_byobnet test_convnext
    test_efficientnet test_mambaout test_nfnet test_resnet test_vit
    """.split(),
]
_OTHERS = """
    coat_tiny cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny densenet121
    dla46x_c dpn48b efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0
    fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_b
    hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto inception_v3 lcnetv2_small legacy_seresnet18
    legacy_xception levit_128s lowformer_b0 mobilevitv2_050 mvitv2_tiny nest_tiny pit_ti_224 poolformer_s12
    pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100
    sam2_hiera_tiny shvit_s1 skresnet18 swiftformer_xs test_coatnet test_maxvit test_vit_relpos
    tiny_vit_5m_224 tnt_s_patch16_224 visformer_tiny vitamin_small_224 volo_d1_224
    ese_vovnet19b_slim_dw xception41
""".split()


def everything() -> list[str]:
    """One architecture of every family that has one of at most thirty million parameters."""
    return [*CHOICE, *_OTHERS]


def make(name: str) -> torch.nn.Module:
    """A model with random weights."""
    model: torch.nn.Module = timm.create_model(name, num_classes=10, **_CUT.get(name, {}))
    return model


def feeds(model: Any) -> Iterator[Inputs]:
    """Small images, or images of the only size that the model accepts."""
    for size in (_SIZE, model.default_cfg["input_size"][-1]):
        yield {"x": torch.randn(2, 3, size, size)}
