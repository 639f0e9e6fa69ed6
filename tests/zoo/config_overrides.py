"""Fields by model type that must fit one another, which `small_configs` cannot derive from names."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

_IMAGE_ROPE: Fields = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
}
# Only the fourth layer has full attention, and the cache needs one such layer.
_HYBRID: Fields = {"num_hidden_layers": 4}
_MAMBA: Fields = {"mamba_n_heads": 4, "mamba_d_head": 16}
_RESNET: Fields = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_DETR: Fields = {"backbone_config": _RESNET}

OVERRIDES: dict[str, Fields] = {
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "conditional_detr": _DETR,
    "dab-detr": _DETR,
    "dac": {"encoder_hidden_size": 4, "decoder_hidden_size": 64, "n_codebooks": 2},
    "deformable_detr": _DETR,
    "detr": _DETR,
    "distilbert": {"dim": 32, "hidden_dim": 64},
    "encodec": {"num_filters": 4},
    "esm": {"vocab_size": 128, "pad_token_id": 1},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "glm4v_text": _IMAGE_ROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": _HYBRID,
    "lilt": {"hidden_size": 48},
    # It pads its input to a multiple of the window.
    "longformer": {"attention_window": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "mask2former": _DETR | {"feature_size": 32, "mask_feature_size": 32, "decoder_layers": 3},
    "mimi": {
        "num_filters": 8,
        "upsample_groups": 32,
        "num_quantizers": 8,
        "vector_quantization_hidden_dimension": 16,
        "codebook_dim": 16,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"],
        "mamba_num_heads": 8,
        "n_groups": 2,
    },
    "qwen2_5_vl_text": _IMAGE_ROPE,
    "qwen2_vl_text": _IMAGE_ROPE,
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [2, 4],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 4,
        # Without this seed it takes one from the operating system.
        "hash_seed": 0,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
    },
    "rt_detr": {
        "backbone_config": _RESNET | {"out_features": ["stage2", "stage3", "stage4"]},
        "encoder_in_channels": [16, 16, 16],
        "decoder_in_channels": [32, 32, 32],
    },
    "table-transformer": _DETR,
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_hidden_layers": 2},
}
