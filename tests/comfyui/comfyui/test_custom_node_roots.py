"""Objects of custom nodes are kept, whatever refers to them, and their owners are listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.comfyui.comfyui_process import Server
from tests.comfyui.graphs import Graph, node

MIB = 1 << 20
_FOLDER = Path(__file__).parents[1] / "keepers"


def _ways(file: str, first: str) -> list[str]:
    """The ways to keep a model that a module of the pack `keepers` lists."""
    _, listed = (_FOLDER / file).read_text().split(first)
    return re.findall(r"\b(?:in|known|deep|behind|on)_\w+", listed.partition("\n)\n")[0])


WAYS = [*_ways("__init__.py", "\n_WAYS: "), *_ways("deep.py", "\nWAYS: ")]
PLACES = {
    "in_a_global": "_model",
    "in_a_tuple": "_pair",
    "in_a_dict": "CACHE",
    "in_a_class": "Registry.current",
    "in_an_lru_cache": "in_an_lru_cache",
    "in_a_module_found_elsewhere": "fpt_kept_elsewhere._kept",
    "in_a_constant": "constant.KERNEL",
    "in_a_default_argument": "deep.in_a_default_argument",
    "deep_in_objects": "deep.SESSION",
}


def _graph(way: str, salt: int) -> Graph:
    return {
        "keep": node("Keeper", way=way, salt=salt),
        "end": node("Digest", image=("keep", 0)),
    }


def test_the_keepers_pack_has_many_ways() -> None:
    assert len(WAYS) == len({*WAYS}) > 35


@pytest.mark.parametrize("key", ["CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"])
def test_models_of_packs_are_kept_unchanged(server: Server, seed: int, key: str) -> None:
    first = [server.run(_graph(way, seed + at)) for at, way in enumerate(WAYS)]
    for _ in range(2):
        assert "kept by custom nodes: " in server.run({"purge": node(key)}).shown_text()
    for at, (way, before) in enumerate(zip(WAYS, first, strict=True)):
        again = server.run(_graph(way, seed + 500 + at))
        assert again.status == "success", (way, again.error)
        assert (again.digest(), again.outputs["keep"]) == (before.digest(), before.outputs["keep"]), way


def test_owners_and_sizes_are_listed(server: Server, seed: int) -> None:
    for at, way in enumerate(WAYS):
        server.run(_graph(way, seed + at))
    purged = server.run({"purge": node("CleanMemory_PurgeRAM")})
    (data,) = purged.outputs["purge"]["fastpurge"]
    sizes = {one["where"]: one["nbytes"] for one in data["left"]}
    assert {
        f"fastpurge_keepers.{place}": sizes.get(f"fastpurge_keepers.{place}") for place in PLACES.values()
    } == {f"fastpurge_keepers.{place}": 20 * MIB for place in PLACES.values()}
    assert sum(sizes.values()) >= 20 * MIB * (len(WAYS) - 1)
    assert data["released"]["count"] == 0
