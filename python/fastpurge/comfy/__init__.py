"""The ComfyUI node pack: six nodes that purge memory and never break a prompt.

Imported inside a ComfyUI process, by the ``__init__.py`` of the folder in ``custom_nodes``. It knows
ComfyUI by its features and not by its version, and nothing else in fastpurge knows of it.
"""

from fastpurge.comfy.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from fastpurge.comfy.setup import set_up

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

set_up()
