"""The report node: the largest owners of memory as text and as an image, and free memory in bytes."""

import logging
from typing import Any

import numpy as np
import torch

import fastpurge
from fastpurge.comfy.nodes import free_memory
from fastpurge.comfy.nodes.census_image import draw
from fastpurge.comfy.nodes.purge_nodes import ANY
from fastpurge.python_facts.object_types import reason_of
from fastpurge.reporting.text import human

_log = logging.getLogger("fastpurge")


class MemoryReport:
    """Report the largest owners of memory. The input is passed through unchanged; a list is one value."""

    CATEGORY = "fastpurge"
    DESCRIPTION = (
        "Lists the largest owners of memory, and the free memory: now, and before the last purge of this "
        "prompt. Changes nothing. Wire a value through it to choose when it runs."
    )
    FUNCTION = "report"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    RETURN_TYPES = (ANY, "STRING", "IMAGE", "INT", "INT", "INT", "INT")
    RETURN_NAMES = (
        "anything",
        "report",
        "picture",
        "free_ram_before",
        "free_ram_after",
        "free_vram_before",
        "free_vram_after",
    )
    OUTPUT_IS_LIST = (True, *[False] * 6)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the API's name
        """One input to pass through, the number of items to list, and when to run."""
        return {
            "required": {
                "top": (
                    "INT",
                    {
                        "default": 10,
                        "min": 0,
                        "max": 100,
                        "tooltip": "How many of the largest tensors to list.",
                    },
                ),
                "every_queue": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Run on every queue, with all nodes downstream of this one. "
                        "Off: run only if something upstream has changed.",
                    },
                ),
            },
            "optional": {"anything": (ANY,)},
            "hidden": {"dynprompt": "DYNPROMPT"},
        }

    @classmethod
    def IS_CHANGED(cls, every_queue: Any = (False,), **_: Any) -> float:  # noqa: N802 - the API's name
        """A new NaN, which never equals the cached value, if the node is to run on every queue."""
        return float("nan") if every_queue[0] else 0.0

    def report(
        self, top: list[int], every_queue: list[bool], dynprompt: Any = None, anything: Any = None
    ) -> dict[str, Any]:
        """Take a census, read the free memory, and pass the input through."""
        del every_queue  # only `IS_CHANGED` uses it
        wired = anything if anything is not None else [None]
        try:
            shown, result = _report(top[0], dynprompt[0])
        except Exception as error:  # noqa: BLE001 - the data is passed through whatever happens
            _log.exception("a memory report failed; its input was passed through")
            shown = {"text": [f"failed: {reason_of(error)}"], "census": []}
            result = ("", torch.zeros(1, 64, 64, 3), 0, 0, 0, 0)
        return {"ui": shown, "result": (wired, *result)}


def _report(top: int, graph: Any) -> tuple[dict[str, list[Any]], tuple[Any, ...]]:
    """The result for the canvas and the history, and the outputs."""
    after = free_memory.read()
    before = free_memory.recorded(graph) or after
    census = fastpurge.census(top=top)
    picture = torch.from_numpy(np.asarray(draw(census, after), dtype=np.float32) / 255)[None]
    lines = [after.to_text(), f"{human(census.nbytes)} in {census.count:,} live tensors and arrays"]
    shown: dict[str, list[Any]] = {"text": lines, "census": [_largest(census.to_dict())]}
    return shown, (str(census), picture, before.ram, after.ram, before.vram, after.vram)


_SHARES = 20


def _largest(census: dict[str, Any]) -> dict[str, Any]:
    """A census whose lists are short enough for the history."""
    return {name: of[:_SHARES] if name.startswith("by_") else of for name, of in census.items()}


NODE_CLASS_MAPPINGS = {"FastPurge_MemoryReport": MemoryReport}

NODE_DISPLAY_NAME_MAPPINGS = {"FastPurge_MemoryReport": "🧹Memory Report"}
