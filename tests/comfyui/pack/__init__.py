"""A pack with nodes like those of real packs. The key of a node is ``FPT_`` and its class name."""

from __future__ import annotations

from . import control_flow, dynamic, images, measurements, models, storage

_MODULES = (images, models, storage, control_flow, measurements)
NODE_CLASS_MAPPINGS = {
    **{f"FPT_{node.__name__}": node for module in _MODULES for node in module.NODE_CLASSES},
    **dynamic.NODE_CLASS_MAPPINGS,
}
