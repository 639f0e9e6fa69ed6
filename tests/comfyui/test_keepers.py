"""What custom nodes keep at module level goes, and is loaded again when it is next needed: no restart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .graphs import Graph, node
from .server import Server

_CODE = ast.parse((Path(__file__).parent / "keepers" / "__init__.py").read_text())


def _ways(listed: str) -> list[str]:
    """The functions that the pack lists under a name."""
    (of,) = (one for one in _CODE.body if ast.unparse(one).startswith(listed))
    return sorted({one.id for one in ast.walk(of) if isinstance(one, ast.Name)} & _FUNCTIONS)


_FUNCTIONS = {one.name for one in _CODE.body if isinstance(one, ast.FunctionDef)}


def _graph(way: str, salt: int) -> Graph:
    return {
        "keep": node("Keeper", way=way, salt=salt),
        "end": node("Digest", image=("keep", 0)),
    }


@pytest.mark.parametrize("way", _ways("_WAYS"))
def test_it_goes_and_comes_back(server: Server, seed: int, way: str) -> None:
    first = server.run(_graph(way, seed))
    purged = server.run({"purge": node("CleanMemory_PurgeRAM")}).said()
    assert "taken out of f" in purged
    again = server.run(_graph(way, seed + 1))
    assert again.digest() == first.digest()
    assert again.outputs["keep"]["loads"][0] == first.outputs["keep"]["loads"][0] + 1


@pytest.mark.parametrize("way", _ways("_MISSED"))
def test_what_would_not_be_loaded_again_is_left(server: Server, seed: int, way: str) -> None:
    first = server.run(_graph(way, seed))
    purged = server.run({"purge": node("CleanMemory_PurgeRAM")}).said()
    assert "left, since custom nodes would not load it again: " in purged
    again = server.run(_graph(way, seed + 1))
    assert again.digest() == first.digest()
    assert again.outputs["keep"]["loads"] == first.outputs["keep"]["loads"]


def test_a_purge_of_all_takes_that_too_and_it_says_what_became_of_it(server: Server, seed: int) -> None:
    server.run(_graph("in_a_constant", seed)).digest()
    assert "released" in server.run({"purge": node("CleanMemory_PurgeAll")}).said()
    message = server.run(_graph("in_a_constant", seed + 1)).error["exception_message"]
    assert "released by fastpurge (CleanMemory_PurgeAll (node purge))" in message
