"""A real KSampler on a real architecture: the image is the same with and without a purge."""

from __future__ import annotations

from typing import Any

import pytest

from tests.comfyui.comfyui_process import Server
from tests.comfyui.graphs import PURGES, Graph, insert, node


def _sampling(checkpoint: str, seed: int) -> Graph:
    return {
        "load": node("UNETLoader", unet_name=checkpoint, weight_dtype="default"),
        "good": node("Conditioning", text="a castle"),
        "bad": node("Conditioning", text="bad hands"),
        "empty": node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1),
        "first": _sampler(seed, "empty", 1.0),
        "second": _sampler(seed, "first", 0.5),
        "decode": node("Decode", samples=("second", 0)),
        "end": node("Digest", image=("decode", 0)),
    }


def _sampler(seed: int, latent: str, denoise: float) -> dict[str, Any]:
    return node(
        "KSampler",
        model=("load", 0),
        seed=seed,
        steps=3,
        cfg=5.0,
        sampler_name="euler",
        scheduler="simple",
        positive=("good", 0),
        negative=("bad", 0),
        latent_image=(latent, 0),
        denoise=denoise,
    )


@pytest.fixture(scope="module")
def expected(checkpoint: str, server: Server) -> str:
    return server.run(_sampling(checkpoint, 1)).digest()


PLACES = {
    "the model, before it is used": ("load", "first", "model"),
    "the latent between two samplers": ("first", "second", "latent_image"),
    "a conditioning": ("good", "second", "positive"),
    "the latent at the end": ("second", "decode", "samples"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=[*PLACES])
@pytest.mark.parametrize("purge", PURGES.values(), ids=[*PURGES])
def test_a_sampled_image_is_the_same(
    server: Server, checkpoint: str, expected: str, purge: Any, place: tuple[str, str, str]
) -> None:
    source, to, socket = place
    graph = _sampling(checkpoint, 1)
    graph["end"]["inputs"]["image"] = ["decode", 0]
    insert(graph, purge, (source, 0), to, socket)
    assert server.run(graph).digest() == expected
    graph["end"] = node("Digest", image=("decode", 0))
    assert server.run(graph).digest() == expected
    assert server.run(_sampling(checkpoint, 1)).digest() == expected


def test_an_evicted_checkpoint_is_loaded_again(server: Server, checkpoint: str) -> None:
    graph = _sampling(checkpoint, 2)
    graph["purge"] = node("CleanMemory_PurgeAll", anything=("second", 0))
    first = server.run(graph)
    assert "UNETLoader (node load)" in first.shown_text()
    graph["second"]["inputs"]["steps"] = 4
    del graph["purge"]
    again = server.run(graph)
    assert "load" in again.ran
    assert again.digest() != first.digest()
    server.run(_sampling(checkpoint, 3))
    assert server.run(graph).digest() == again.digest()
