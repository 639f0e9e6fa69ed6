"""Architectures of transformers: every model type, shrunk by the same rules."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from .architecture import Inputs
from .small_configs import FIRST_SPECIAL_TOKEN, shrink

_Shape = tuple[int, ...]
_BATCH = 2
_TOKENS = 8
_MOST_TRIES = 40

CHOICE = """
    albert audio-spectrogram-transformer bamba bart beit bert big_bird blip bloom canine clip codegen
    convbert convnextv2 deberta-v2 deepseek_v3 deformable_detr detr dinov3_vit distilbert encodec esm
    falcon_mamba flava florence2 fnet focalnet gemma3_text gpt2 gpt_oss hubert idefics2 jamba layoutlmv3
    levit llama llama4_text llava longformer mamba2 mask2former mimi mixtral mobilevit modernbert
    moonshine mpt nystromformer olmo2 opt owlvit patchtst phi3 poolformer qwen2_vl qwen3_moe qwen3_next
    recurrent_gemma reformer regnet resnet roformer rt_detr rwkv sam sam3_vision_model segformer siglip
    speech_to_text squeezebert swinv2 switch_transformers t5 timesformer videomae vilt vit_mae wav2vec2
    whisper xlnet zamba2
""".split()
# These have more than thirty million parameters with any values of the fields.
_LARGE = """
    blt gemma3n_vision janus pe_audio_video pe_audio_video_encoder pe_video pe_video_encoder perceiver
    vibevoice vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder
    vibevoice_acoustic_tokenizer_encoder vibevoice_asr
""".split()


def everything() -> list[str]:
    """All model types except the large ones."""
    return [name for name in MODEL_MAPPING_NAMES if name not in _LARGE]


def make(model_type: str) -> torch.nn.Module:
    """A model with random weights."""
    model: torch.nn.Module = AutoModel.from_config(shrink(CONFIG_MAPPING[model_type]()))
    return model


def feeds(model: Any) -> Iterator[Inputs]:
    """Inputs to try: the required ones, then those that similar models also need."""
    parameters = inspect.signature(model.forward).parameters
    main = [model.main_input_name] if isinstance(model.main_input_name, str) else model.main_input_name
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    wanted = {
        tuple(dict.fromkeys(name for name in (*main, *required, *more) if name in parameters)): None
        for more in _WANTED
    }
    tries = (
        dict(zip(names, made, strict=True))
        for names in wanted
        for made in itertools.product(*(_made(name, model.config) for name in names))
    )
    return itertools.islice(tries, _MOST_TRIES)


def _made(name: str, config: Any) -> Iterator[torch.Tensor]:
    """Possible tensors for an input of this name."""
    if name.endswith("input_ids"):
        yield torch.randint(3, FIRST_SPECIAL_TOKEN, (_BATCH, _TOKENS))
    elif name == "bbox":
        yield torch.tensor([1, 2, 3, 5]).repeat(_BATCH, _TOKENS, 1)
    elif name in _SHAPES:
        for shape in _SHAPES[name](config):
            yield torch.randn(shape)


def _images(config: Any) -> Sequence[_Shape]:
    channels = _field(config, "num_channels", "in_channels", default=3)
    size = _field(config, "image_size", default=64)
    frames = _field(config, "num_frames", default=2)
    return (_BATCH, channels, size, size), (_BATCH, frames, channels, size, size)


def _waves(config: Any) -> Sequence[_Shape]:
    samples = 4096
    spectrum = _field(config, "max_length", default=64), _field(config, "num_mel_bins", default=80)
    return (_BATCH, samples), (_BATCH, 1, samples), (_BATCH, *spectrum)


def _spectra(config: Any) -> Sequence[_Shape]:
    mels = _field(config, "num_mel_bins", "feature_projection_input_dim", default=80)
    frames = 2 * _field(config, "max_source_positions", default=64)
    return (_BATCH, 64, mels), (_BATCH, mels, frames), (_BATCH, mels, 64), (_BATCH, 1, 64, mels)


def _series(config: Any) -> Sequence[_Shape]:
    shape = _BATCH, _field(config, "context_length", default=32)
    return (*shape, _field(config, "num_input_channels", default=1)), shape


_SHAPES: dict[str, Callable[[Any], Sequence[_Shape]]] = {
    "pixel_values": _images,
    "pixel_values_videos": _images,
    "input_values": _waves,
    "input_features": _spectra,
    "past_values": _series,
}
_WANTED: Sequence[Sequence[str]] = (
    (),
    ("decoder_input_ids",),
    ("pixel_values", "input_values", "input_features"),
    ("bbox",),
    ("bbox", "decoder_input_ids"),
    ("bbox", "pixel_values"),
    ("bbox", *_SHAPES),
)


def _field(config: Any, *names: str, default: int) -> int:
    """A number of the configuration or of a nested one; of a list, the first number."""
    for within in (config, *(getattr(config, key) for key in type(config).sub_configs)):
        for name in names:
            value = getattr(within, name, None)
            if isinstance(value, list | tuple) and value:
                value = value[0]
            if isinstance(value, int):
                return value
    return default
