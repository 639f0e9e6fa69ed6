"""Putting the node pack into a ComfyUI, and taking it out. Imports neither ComfyUI nor torch."""

import re
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


# What `install` has written, by whatever version, and what Python has made of it.
_FIRST_LINE = PACK.partition("\n")[0]
_WRITTEN = re.compile(r"__init__\.py|__pycache__|__pycache__/__init__\.[^/]+\.pyc")


class NotComfyUIError(ValueError):
    """The folder is not a ComfyUI, or not one with this pack."""


def install(comfyui: Path) -> Path:
    """Put the pack into the ``custom_nodes`` of a ComfyUI and return its folder. Doing it again renews it.

    Raises:
        NotComfyUIError: the folder has no ``custom_nodes``, or something else is there by this name.

    """
    folder = _folder(comfyui)
    if _is_there(folder) and not _is_own(folder):
        raise NotComfyUIError(f"{folder} is there already and holds more than this pack: a clone?")
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text(PACK, encoding="utf-8")
    return folder


def remove(comfyui: Path) -> Path | None:
    """Take out what `install` has put in, and return its folder; ``None`` if it was not there.

    Raises:
        NotComfyUIError: the folder has no ``custom_nodes``, or what is there by this name is not what
            `install` has put there. Then nothing is deleted.

    """
    folder = _folder(comfyui)
    if not _is_there(folder):
        return None
    if not _is_own(folder):
        raise NotComfyUIError(
            f"{folder} is not what this command has put there: a clone? Delete it by hand if you mean it"
        )
    # Files by name and folders only when empty: what comes in meanwhile stays.
    for file in [*folder.glob("__pycache__/__init__.*.pyc"), folder / "__init__.py"]:
        file.unlink(missing_ok=True)
    for emptied in (folder / "__pycache__", folder):
        if emptied.is_dir():
            emptied.rmdir()
    return folder


def _folder(comfyui: Path) -> Path:
    custom_nodes = comfyui / "custom_nodes"
    if not custom_nodes.is_dir():
        raise NotComfyUIError(f"{comfyui} is not a ComfyUI: it has no folder custom_nodes")
    return custom_nodes / NAME


def _is_there(folder: Path) -> bool:
    return folder.exists() or folder.is_symlink()


def _is_own(folder: Path) -> bool:
    """Whether there is nothing but what `install` writes. What a link leads to is somebody else's."""
    held = list(folder.rglob("*"))
    if not folder.is_dir() or any(one.is_symlink() for one in [folder, *held]):
        return False
    if not all(_WRITTEN.fullmatch(one.relative_to(folder).as_posix()) for one in held):
        return False
    code = folder / "__init__.py"
    return not code.exists() or code.read_text(encoding="utf-8", errors="replace").startswith(_FIRST_LINE)
