"""Install the node pack into a ComfyUI, and remove it. Imports neither ComfyUI nor torch."""

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
    # ComfyUI logs this error, lists the pack as failed, and starts without the nodes.
    raise ImportError(
        "the fastpurge nodes need their wheel. Install it and start ComfyUI again: "
        f'"{sys.executable}" -m pip install torch-fastpurge'
    ) from None
'''


# Files that any version of `install` has written, and their byte code.
_FIRST_LINE = PACK.partition("\n")[0]
_WRITTEN = re.compile(r"__init__\.py|__pycache__|__pycache__/__init__\.[^/]+\.pyc")


class NotComfyUIError(ValueError):
    """The folder is not a ComfyUI, or its pack folder has other files."""


def install(comfyui: Path) -> Path:
    """Write the pack into the ``custom_nodes`` of a ComfyUI, and return its folder. A second call updates it.

    Raises:
        NotComfyUIError: the folder has no ``custom_nodes``, or the pack folder has other files.

    """
    folder = _folder(comfyui)
    if _exists(folder) and not _has_only_written_files(folder):
        raise NotComfyUIError(f"{folder} already exists with other files than this pack: a clone?")
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text(PACK, encoding="utf-8")
    return folder


def remove(comfyui: Path) -> Path | None:
    """Delete what `install` wrote, and return the pack folder; ``None`` if there is none.

    Raises:
        NotComfyUIError: the folder has no ``custom_nodes``, or the pack folder has other files. Nothing was
            deleted.

    """
    folder = _folder(comfyui)
    if not _exists(folder):
        return None
    if not _has_only_written_files(folder):
        raise NotComfyUIError(
            f"{folder} was not written by this command: a clone? Delete it by hand if you are sure"
        )
    # Delete files by name, and only empty folders: files that another process adds stay.
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


def _exists(folder: Path) -> bool:
    return folder.exists() or folder.is_symlink()


def _has_only_written_files(folder: Path) -> bool:
    """Whether the folder has only files that `install` writes. Symbolic links count as other files."""
    found = list(folder.rglob("*"))
    if not folder.is_dir() or any(one.is_symlink() for one in [folder, *found]):
        return False
    if not all(_WRITTEN.fullmatch(one.relative_to(folder).as_posix()) for one in found):
        return False
    code = folder / "__init__.py"
    return not code.exists() or code.read_text(encoding="utf-8", errors="replace").startswith(_FIRST_LINE)
