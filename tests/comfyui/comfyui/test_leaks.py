"""Leaks: tensors that custom nodes do not reach are released, and the memory goes to the OS."""

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


def test_the_memory_of_a_leak_is_returned_to_the_operating_system(server: Server, seed: int) -> None:
    before = server.run({"stats": node("Stats")}).outputs["stats"]["stats"][0]
    server.run(_leak(seed, 400))
    leaked = server.run({"stats": node("Stats")}).outputs["stats"]["stats"][0]
    assert leaked["rss"] - before["rss"] > 390 * MiB
    result = server.run({"purge": node("CleanMemory_PurgeRAM")})
    after = server.run({"stats": node("Stats")}).outputs["stats"]["stats"][0]
    assert leaked["rss"] - after["rss"] > 0.9 * 400 * MiB
    (data,) = result.outputs["purge"]["fastpurge"]
    assert data["freed_by_device"]["cpu"] > 0.9 * 400 * MiB
    assert "released 1 tensors, 400.0 MiB" in result.shown_text()
    assert after["tensors"] <= before["tensors"] + 4
    assert after["tombstones"] == 1  # in the list of leaks


def test_small_tensors_are_kept(server: Server, seed: int) -> None:
    server.run(_leak(seed, 8))
    assert "released" not in server.run({"purge": node("CleanMemory_PurgeRAM")}).shown_text()
    assert "released 1 tensors" in server.run({"purge": node("CleanMemory_PurgeAll")}).shown_text()


def test_using_a_released_leak_raises_an_error_that_names_the_node(server: Server, seed: int) -> None:
    graph = {
        "noise": node("Noise", seed=seed, megapixels=1),
        "unforget": node("Unforget", image=("noise", 0)),
        "end": node("Digest", image=("unforget", 0)),
    }
    server.run(_leak(seed, 100))
    assert "released 1 tensors" in server.run({"purge": node("CleanMemory_PurgeRAM")}).shown_text()
    message = server.run(graph).error["exception_message"]
    assert "released by fastpurge (CleanMemory_PurgeRAM (node purge))" in message


def test_a_list_of_a_pack_is_kept(server: Server) -> None:
    def graph(name: str, megapixels: int) -> Graph:
        return {
            "shelf": node("Shelf", name=name, megapixels=megapixels),
            "end": node("Digest", image=("shelf", 0)),
        }

    large = server.run(graph("large", 8)).digest()
    small = server.run(graph("s", 1)).digest()
    for key in ("CleanMemory_PurgeRAM", "CleanMemory_PurgeAll"):
        said = server.run({"purge": node(key)}).shown_text()
        assert "kept by custom nodes: fastpurge_tests.storage.IMAGES (108.0 MiB)" in said
        assert server.run(graph("s", 1)).digest() == small
        assert server.run(graph("large", 8)).digest() == large


def test_evicted_reference_cycles_are_freed(server: Server) -> None:
    graph = {
        "ring": node("Ring", count=20),
        "sum": node("RingSum", ring=("ring", 0)),
        "purge": node("CleanMemory_PurgeRAM", anything=("sum", 0)),
    }
    (data,) = server.run(graph).outputs["purge"]["fastpurge"]
    assert data["let_go"] == ["FPT_Ring (node ring)"]
    assert data["freed_by_device"]["cpu"] > 0.9 * 80 * MiB
