"""The reference of the nodes lists each node with its inputs and outputs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastpurge.comfy.nodes import memory_report, purge_nodes

from tests.docs.blocks import ROOT

ROWS = re.findall(r"^\| (🧹.*)$", (ROOT / "docs" / "reference" / "nodes.md").read_text(), re.MULTILINE)
NAMES = purge_nodes.NODE_DISPLAY_NAME_MAPPINGS | memory_report.NODE_DISPLAY_NAME_MAPPINGS
CLASSES: dict[str, Any] = purge_nodes.NODE_CLASS_MAPPINGS | memory_report.NODE_CLASS_MAPPINGS


@pytest.mark.parametrize("key", CLASSES)
def test_a_node_is_in_the_reference_with_its_sockets(key: str) -> None:
    found = [[cell.strip() for cell in row.split("|")] for row in ROWS if f"`{key}`" in row]
    ((name, _, inputs, outputs, _),) = found
    asked = CLASSES[key].INPUT_TYPES()
    assert name == NAMES[key]
    assert set(re.findall(r"`(\w+)`", inputs)) == {*asked.get("required", ()), *asked.get("optional", ())}
    assert re.findall(r"`(\w+)`", outputs) == [*getattr(CLASSES[key], "RETURN_NAMES", ())]


def test_no_node_is_in_the_reference_that_is_not_there() -> None:
    assert len(ROWS) == len(CLASSES)
