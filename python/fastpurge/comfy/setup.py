"""What the pack does once, when ComfyUI imports it."""

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from fastpurge import keep
from fastpurge.comfy.nodes import NODE_CLASS_MAPPINGS

_log = logging.getLogger("fastpurge")


def set_up() -> None:
    """Tell ComfyUI's own modules from those of custom nodes, and look for another pack of these nodes."""
    folder_paths: Any = import_module("folder_paths")
    keep.judge_folder(Path(folder_paths.__file__).parent, is_library=True)
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        keep.judge_folder(Path(folder), is_library=False)
        for rival in _rivals(Path(folder)):
            _log.warning(
                "%s also defines the purge nodes, and the pack that is loaded last wins. Remove it from "
                "custom_nodes: workflows saved with it run with fastpurge as they are.",
                rival,
            )


def _rivals(custom_nodes: Path) -> list[Path]:
    """Other packs whose code names one of these nodes."""
    keys = [key.encode() for key in NODE_CLASS_MAPPINGS]
    packs = [pack for pack in custom_nodes.iterdir() if not pack.name.endswith(".disabled")]
    return [pack for pack in packs if _defines(pack, keys)]


def _defines(pack: Path, keys: list[bytes]) -> bool:
    files = [*pack.glob("*.py")] if pack.is_dir() else [pack]
    codes = [file.read_bytes() for file in files if file.suffix == ".py"]
    return any(key in code for code in codes for key in keys)
