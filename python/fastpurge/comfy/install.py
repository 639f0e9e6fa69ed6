"""Putting the node pack into a ComfyUI. Imports neither ComfyUI nor torch."""

from pathlib import Path

NAME = "fastpurge"

PACK = '''"""The fastpurge nodes, from the wheel that ``fastpurge comfyui install`` belongs to."""

import sys

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

try:
    from fastpurge.comfy.pack import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY
except ModuleNotFoundError as error:
    if error.name not in ("fastpurge", "fastpurge.comfy", "fastpurge.comfy.pack", "fastpurge._core"):
        raise
    # ComfyUI shows this in its log and in its list of imports, and starts without the nodes.
    raise ImportError(
        "the fastpurge nodes need their wheel. Install it and start ComfyUI again: "
        f'"{sys.executable}" -m pip install torch-fastpurge'
    ) from None
'''


class NotComfyUIError(ValueError):
    """The folder is not a ComfyUI."""


def install(comfyui: Path) -> Path:
    """Put the pack into the ``custom_nodes`` of a ComfyUI and return its folder. Doing it again renews it.

    Raises:
        NotComfyUIError: the folder has no ``custom_nodes``, or something else is there by this name.

    """
    custom_nodes = comfyui / "custom_nodes"
    if not custom_nodes.is_dir():
        raise NotComfyUIError(f"{comfyui} is not a ComfyUI: it has no folder custom_nodes")
    folder = custom_nodes / NAME
    if folder.exists() and {file.name for file in folder.iterdir()} - {"__init__.py", "__pycache__"}:
        raise NotComfyUIError(f"{folder} is there already and holds more than this pack: a clone?")
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text(PACK, encoding="utf-8")
    return folder
