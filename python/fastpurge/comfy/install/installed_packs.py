"""What lies in a folder ``custom_nodes``, read from its files. Imports neither ComfyUI nor torch."""

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
"""The names by which workflows know the six nodes, in this pack and in the older one."""

_OWN = re.compile(rb"\bfastpurge\.comfy\.pack\b")
_ENTRY = re.compile(rf"""["']({"|".join(KEYS)})["']\s*:""".encode())


def own(custom_nodes: Path) -> list[Path]:
    """Where this pack is: what the command has put there, and clones."""
    return _packs_with(_OWN, custom_nodes)


def rivals(custom_nodes: Path) -> list[Path]:
    """Other packs whose code maps one of these keys to a class."""
    return _packs_with(_ENTRY, custom_nodes)


def _packs_with(code: re.Pattern[bytes], custom_nodes: Path) -> list[Path]:
    packs = [pack for pack in sorted(custom_nodes.iterdir()) if not pack.name.endswith(".disabled")]
    return [pack for pack in packs if any(code.search(_text(file)) for file in _code(pack))]


def _text(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # somebody else's, and not for us to read
        return b""


def _code(pack: Path) -> list[Path]:
    files = pack.glob("*.py") if pack.is_dir() else [pack]
    return [file for file in files if file.is_file() and file.suffix == ".py"]
