"""What custom nodes keep at module level goes, and is loaded again when it is next needed: no restart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .graphs import Graph, node
from .server import Server

_CODE = ast.parse((Path(__file__).parent / "keepers" / "__init__.py").read_text())
WAYS = sorted(
    one.name for one in _CODE.body if isinstance(one, ast.FunctionDef) and one.name.startswith("in_")
)


def _graph(way: str, salt: int) -> Graph:
    return {
        "keep": node("Keeper", way=way, salt=salt),
        "end": node("Digest", image=("keep", 0)),
    }


@pytest.mark.parametrize("way", [way for way in WAYS if way != "in_a_constant"])
def test_it_goes_and_comes_back(server: Server, seed: int, way: str) -> None:
    first = server.run(_graph(way, seed))
    purged = server.run({"purge": node("CleanMemory_PurgeRAM")}).said()
    assert "taken out of f" in purged
    again = server.run(_graph(way, seed + 1))
    assert again.digest() == first.digest()
    assert again.outputs["keep"]["loads"][0] == first.outputs["keep"]["loads"][0] + 1


def test_what_was_made_on_import_says_what_became_of_it(server: Server, seed: int) -> None:
    server.run({"purge": node("CleanMemory_PurgeRAM")})
    server.run(_graph("in_a_constant", seed)).digest()
    purged = server.run({"purge": node("CleanMemory_PurgeRAM")}).said()
    assert "released 1 tensors, 20.0M" in purged
    assert "taken out of" not in purged
    message = server.run(_graph("in_a_constant", seed + 1)).error["exception_message"]
    assert "released by fastpurge (CleanMemory_PurgeRAM (node purge))" in message
