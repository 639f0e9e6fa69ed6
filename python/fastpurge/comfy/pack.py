"""The entry point that ComfyUI imports: node mappings and the web folder.

The import also classifies ComfyUI's folders as library or user code, and adds the HTTP routes to its server.
"""

import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from fastpurge.comfy.install import scan_custom_nodes
from fastpurge.comfy.nodes import memory_report, purge_nodes
from fastpurge.python_facts.library_folders import judge_folder
from fastpurge.python_facts.running_code import add_root_packages

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

# ComfyUI joins this to the folder of the pack (`load_custom_node` in its nodes.py). Joining keeps an absolute
# path as it is, so the web files come from the wheel, like the nodes.
WEB_DIRECTORY = str(Path(__file__).with_name("web"))

NODE_CLASS_MAPPINGS = {**purge_nodes.NODE_CLASS_MAPPINGS, **memory_report.NODE_CLASS_MAPPINGS}
NODE_DISPLAY_NAME_MAPPINGS = {
    **purge_nodes.NODE_DISPLAY_NAME_MAPPINGS,
    **memory_report.NODE_DISPLAY_NAME_MAPPINGS,
}

_log = logging.getLogger("fastpurge")


def _classify_folders() -> None:
    """Classify ComfyUI as a library and custom nodes as user code; warn about packs with the same nodes."""
    folder_paths: Any = import_module("folder_paths")
    judge_folder(Path(folder_paths.__file__).parent, is_library=True)
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        judge_folder(Path(folder), is_library=False)
        for conflict in scan_custom_nodes.find_conflicts(Path(folder)):
            _log.warning(
                "%s also defines the purge nodes, and ComfyUI uses the pack that it loads last. Remove it "
                "from custom_nodes: its saved workflows run with fastpurge unchanged.",
                conflict,
            )
    # Frames of the executor, its caches and the server are on the stack of every prompt and reach every
    # result: they are not running code that the guard protects.
    add_root_packages("comfy_execution", "execution", "server")


def _add_routes() -> None:
    """Add the routes if there is a server. Some programs use ComfyUI's nodes without one."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if (instance := getattr(server, "instance", None)) is not None:
        import_module("fastpurge.comfy.server.routes").add_routes(instance.routes)


_classify_folders()
_add_routes()
if os.environ.get("FASTPURGE_WATCH"):
    import_module("fastpurge.comfy.server.memory_watch").start_from_environment()
