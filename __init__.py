"""fastpurge as a ComfyUI node pack: a clone of the repository in ``custom_nodes`` is one.

The nodes themselves are in the wheel, ``torch-fastpurge``, with its compiled core.
"""

import sys

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

if "folder_paths" in sys.modules:  # a test runner imports this file as well, outside of ComfyUI
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
