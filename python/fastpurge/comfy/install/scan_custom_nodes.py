"""Find packs with the purge nodes in a folder ``custom_nodes``, from their source text.

Imports neither ComfyUI nor torch.
"""

import re
from pathlib import Path

KEYS = (
    "CleanMemory_PurgeVRAM",
    "CleanMemory_PurgeRAM",
    "CleanMemory_PurgeAll",
    "CleanMemory_PurgePass",
    "CleanMemory_PurgeRAMProtectedMulti",
    "CleanMemory_PurgePassMultiInput",
)
"""The class keys of the six nodes in saved workflows, in this pack and in the older one."""

_IMPORTS_FASTPURGE = re.compile(rb"\bfastpurge\.comfy\.pack\b")
_MAPS_A_KEY = re.compile(rf"""["']({"|".join(KEYS)})["']\s*:""".encode())


def find_fastpurge(custom_nodes: Path) -> list[Path]:
    """The folders of this pack: written by ``fastpurge comfyui install``, or clones."""
    return _packs_with(_IMPORTS_FASTPURGE, custom_nodes)


def find_conflicts(custom_nodes: Path) -> list[Path]:
    """Other packs whose code maps one of `KEYS` to a class."""
    return _packs_with(_MAPS_A_KEY, custom_nodes)


def _packs_with(code: re.Pattern[bytes], custom_nodes: Path) -> list[Path]:
    packs = [pack for pack in sorted(custom_nodes.iterdir()) if not pack.name.endswith(".disabled")]
    return [pack for pack in packs if any(code.search(_read(file)) for file in _python_files(pack))]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # not readable by this user
        return b""


def _python_files(pack: Path) -> list[Path]:
    files = pack.glob("*.py") if pack.is_dir() else [pack]
    return [file for file in files if file.is_file() and file.suffix == ".py"]
