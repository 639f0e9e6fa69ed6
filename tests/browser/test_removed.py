"""Workflows still work after the pack is removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.comfyui.comfyui_process import comfyui, prepare

from .canvas import EXAMPLES, Canvas

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WORKFLOW = EXAMPLES / "image_batches.json"
KIND = "CleanMemory_PurgePass"


def test_without_the_pack_a_workflow_loads_and_is_saved_unchanged(browser: Browser, tmp_path: Path) -> None:
    custom_nodes = prepare(tmp_path)
    shutil.rmtree(custom_nodes / "fastpurge")
    picture = custom_nodes.with_name("input") / "example.png"
    picture.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(picture)
    [was] = [node for node in json.loads(WORKFLOW.read_text())["nodes"] if node["type"] == KIND]
    with comfyui(tmp_path) as server:
        canvas = Canvas(browser.new_page(), server)
        canvas.open()
        canvas.load(WORKFLOW)
        canvas.page.get_by_text(KIND).first.wait_for()
        saved = canvas.saved(KIND)
        canvas.page.close()
    assert canvas.console_errors == []
    assert {name: saved[name] for name in ("id", "inputs", "widgets_values")} == {
        name: was[name] for name in ("id", "inputs", "widgets_values")
    }
