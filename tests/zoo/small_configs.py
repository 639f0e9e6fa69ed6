"""Shrink any configuration of transformers, by the names of its fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any
from zlib import crc32

from .config_overrides import OVERRIDES

VOCABULARY = 128
# Inputs are random tokens below; special tokens outside of the vocabulary move above.
FIRST_SPECIAL_TOKEN = 64
_WIDEST = 64

# The first pattern that matches the whole name gives the limit of the number.
_LIMITS = {
    re.compile(pattern): limit
    for pattern, limit in {
        r".*vocab_size.*|codebook_size": VOCABULARY,
        r"(.*_)?max_position_embeddings|max_(source|target)_positions|n_positions": 128,
        r"(.*_)?(num_key_value_heads|n_kv_heads|kv_heads)": 2,
        r"(.*_)?(attention_heads|attn_heads|num_heads|n_heads?|linear_num_\w+_heads)": 4,
        r"(.*_)?(num_hidden_layers|num_layers|n_layers?|layers|depth|num_blocks)": 2,
        r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size|feedforward_dim|d_ff|n_inner|d_inner)": 64,
        r"(.*_)?(hidden_size|hidden_dim|d_model|n_embd|(embedding|emb)_size|emb(ed)?_dim|num_filters)": 32,
        r"(.*_)?(projection_dim|output_channels|encoder_hidden_dim|decoder_hidden_size|tdnn_dim)": 32,
        r"(.*_)?(head_dim|d_kv|d_head|head_size)": 8,
        r"rotary_dim": 4,
        r"num_pos_feats": 16,
        r"(num|n)_(local_|routed_)?experts|moe_num_experts": 4,
        r"num_experts_per_tok|moe_topk|top_k|moe_k": 2,
        r"(.*_)?image_size": 64,
        r"num_queries|num_query_tokens": 8,
        r"num_conv_pos_embeddings": 16,
        r"num_conv_pos_embedding_groups": 4,
    }.items()
}
_DEPTHS = re.compile(r"(.*_)?(depths|num_blocks|layers_per_stage|block_repeats)|depth|layers|num_layers")
_WIDTHS = re.compile(
    r"(.*_)?(hidden_sizes|embed_dims?|(hidden|conv|tdnn|fpn|stem|stage)_(dims?|channels)|dims"
    r"|(in|out)_channels)"
)
_HEADS = re.compile(r"(.*_)?(num_heads|num_attention_heads|num_head)")


def shrink(config: Any) -> Any:
    """A tiny configuration of the same class."""
    kind = type(config)
    small: dict[str, Any] = {}
    for field in fields(kind):
        value = getattr(config, field.name, None)
        if value is None or (field.default is None and field.name not in kind.sub_configs):
            continue  # the class derives it from the others
        less = shrink(value) if field.name in kind.sub_configs else _less(field.name, value)
        if field.default is MISSING or less != field.default:
            small[field.name] = less
    if "num_key_value_heads" in small and _attends_without_groups(kind):
        small["num_key_value_heads"] = small["num_attention_heads"]
    return kind(**(small | OVERRIDES.get(kind.model_type, {})))


def _attends_without_groups(kind: Any) -> bool:
    defaults = {field.name: field.default for field in fields(kind)}
    return bool(defaults["num_key_value_heads"] == defaults.get("num_attention_heads"))


def _less(name: str, value: Any) -> Any:
    if type(value) is int:
        return _less_number(name, value)
    if isinstance(value, list | tuple) and value and all(type(one) is int for one in value):
        return type(value)(_less_numbers(name, value))
    return value


def _less_number(name: str, value: int) -> int:
    if re.fullmatch(r".*_token_(id|index)", name):
        return value if value < VOCABULARY else FIRST_SPECIAL_TOKEN + crc32(name.encode()) % 60
    limits = (limit for pattern, limit in _LIMITS.items() if pattern.fullmatch(name))
    return min(value, next(limits, value))


def _less_numbers(name: str, values: Sequence[int]) -> Sequence[int]:
    if _DEPTHS.fullmatch(name):
        return [min(value, 2) for value in values]
    if _WIDTHS.fullmatch(name):
        divisor = max(1, max(values) // _WIDEST)
        return [max(1, value // divisor) for value in values]
    if _HEADS.fullmatch(name):
        return [max(1, value // min(values)) for value in values]
    return values
