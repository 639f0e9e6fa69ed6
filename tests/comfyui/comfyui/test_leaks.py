"""Leaks: what is forgotten in no place of a custom node is back at the OS, and says which node did it."""

from __future__ import annotations

from tests.comfyui.comfyui_process import Server
from tests.comfyui.graphs import Graph, node

MiB = 2**20


def _leak(seed: int, mebibytes: int) -> Graph:
    return {
        "noise": node("Noise", seed=seed, megapixels=1),
        "leak": node("Leak", image=("noise", 0), mebibytes=mebibytes),
        "end": node("Digest", image=("leak", 0)),
    }


def test_a_leak_is_gone_and_the_memory_is_back_at_the_os(server: Server, seed: int) -> None:
    before = server.run({"stats": node("Stats")}).outputs["stats"]["stats"][0]
    server.run(_leak(seed, 400))
    leaked = server.run({"stats": node("Stats")}).outputs["stats"]["stats"][0]
    assert leaked["rss"] - before["rss"] > 390 * MiB
    result = server.run({"purge": node("CleanMemory_PurgeRAM")})
    after = server.run({"stats": node("Stats")}).outputs["stats"]["stats"][0]
    assert leaked["rss"] - after["rss"] > 0.9 * 400 * MiB
    (data,) = result.outputs["purge"]["fastpurge"]
    assert data["freed_by_device"]["cpu"] > 0.9 * 400 * MiB
    assert "released 1 tensors, 400.0M" in result.said()
    assert after["tensors"] <= before["tensors"] + 4
    assert after["tombstones"] == 1  # in the list that held it


def test_what_is_small_is_left_alone(server: Server, seed: int) -> None:
    server.run(_leak(seed, 8))
    assert "released" not in server.run({"purge": node("CleanMemory_PurgeRAM")}).said()
    assert "released 1 tensors" in server.run({"purge": node("CleanMemory_PurgeAll")}).said()


def test_who_uses_a_leak_that_was_purged_is_told(server: Server, seed: int) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=1),
        "unforget": node("Unforget", image=("noise", 0)),
        "end": node("Digest", image=("unforget", 0)),
    }
    server.run(_leak(seed, 100))
    assert "released 1 tensors" in server.run({"purge": node("CleanMemory_PurgeRAM")}).said()
    message = server.run(graph).error["exception_message"]
    assert "released by fastpurge (CleanMemory_PurgeRAM (node purge))" in message


def test_what_a_pack_has_in_a_list_stays(server: Server) -> None:
    def graph(name: str, megapixels: int) -> Graph:
        return {
            "shelf": node("Shelf", name=name, megapixels=megapixels),
            "end": node("Digest", image=("shelf", 0)),
        }

    large = server.run(graph("large", 8)).digest()
    small = server.run(graph("s", 1)).digest()
    for key in ("CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"):
        said = server.run({"purge": node(key)}).said()
        assert "kept by custom nodes: fastpurge_tests.IMAGES (108.0M)" in said
        assert server.run(graph("s", 1)).digest() == small
        assert server.run(graph("large", 8)).digest() == large


def test_what_is_let_go_is_gone_though_it_is_in_a_cycle(server: Server) -> None:
    graph = {
        "ring": node("Ring", count=20),
        "sum": node("RingSum", ring=("ring", 0)),
        "purge": node("CleanMemory_PurgeRAM", anything=("sum", 0)),
    }
    (data,) = server.run(graph).outputs["purge"]["fastpurge"]
    assert data["let_go"] == ["FPT_Ring (node ring)"]
    assert data["freed_by_device"]["cpu"] > 0.9 * 80 * MiB
