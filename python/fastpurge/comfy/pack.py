"""What ComfyUI imports: the nodes.

Done once with it: telling ComfyUI's own modules from those of custom nodes, and adding routes to its server.
"""

import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from fastpurge.comfy.install import installed_packs
from fastpurge.comfy.nodes import memory_report, purge_nodes
from fastpurge.python_facts.library_folders import judge_folder
from fastpurge.python_facts.running_code import add_root_packages

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

# ComfyUI joins it to the folder of the pack (`load_custom_node` in its nodes.py), which an absolute path
# survives: the front end is always that of the wheel, as the nodes are.
WEB_DIRECTORY = str(Path(__file__).with_name("web"))

NODE_CLASS_MAPPINGS = {**purge_nodes.NODE_CLASS_MAPPINGS, **memory_report.NODE_CLASS_MAPPINGS}
NODE_DISPLAY_NAME_MAPPINGS = {
    **purge_nodes.NODE_DISPLAY_NAME_MAPPINGS,
    **memory_report.NODE_DISPLAY_NAME_MAPPINGS,
}

_log = logging.getLogger("fastpurge")


def _set_up() -> None:
    """Tell ComfyUI's own modules from those of custom nodes, and look for another pack of these nodes."""
    folder_paths: Any = import_module("folder_paths")
    judge_folder(Path(folder_paths.__file__).parent, is_library=True)
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        judge_folder(Path(folder), is_library=False)
        for rival in installed_packs.rivals(Path(folder)):
            _log.warning(
                "%s also defines the purge nodes, and the pack that is loaded last wins. Remove it from "
                "custom_nodes: workflows saved with it run with fastpurge as they are.",
                rival,
            )
    # The executor, its caches and the server are in the midst of every prompt, and hold every result.
    add_root_packages("comfy_execution", "execution", "server")


def _add_routes() -> None:
    """Put the routes on the server. A program that uses ComfyUI's nodes without one has none."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if (instance := getattr(server, "instance", None)) is not None:
        import_module("fastpurge.comfy.server.routes").add(instance.routes)


_set_up()
_add_routes()
if os.environ.get("FASTPURGE_WATCH"):
    import_module("fastpurge.comfy.server.automatic").start_if_asked()
