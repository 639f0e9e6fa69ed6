"""The six purge nodes, for ComfyUI's V1 API: inputs, outputs, and the result shown on the canvas.

Saved workflows contain the class keys and the names of the inputs: they must not change.
"""

import logging
from contextlib import suppress
from importlib import import_module
from typing import Any, ClassVar

from fastpurge.comfy.comfyui import prompt
from fastpurge.comfy.nodes import free_memory
from fastpurge.comfy.nodes.format_outcome import to_dict, to_lines
from fastpurge.comfy.nodes.purges import Outcome, purge_all, purge_ram, purge_vram
from fastpurge.comfy.nodes.thresholds import Memory, reason_to_skip
from fastpurge.python_facts.object_types import reason_of

_log = logging.getLogger("fastpurge")
_FOUR_INPUTS = ("data0", "data1", "data2", "data3")


class AnyType(str):
    """A socket type that matches every type: it compares equal to all of them."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = AnyType("*")
_PROTECTED_TEXT = (
    "Protected: everything wired in, inputs of the nodes still to run, and objects of custom nodes."
)
_HIDDEN = {"dynprompt": "DYNPROMPT", "unique_id": "UNIQUE_ID"}
_MODE = (["VRAM", "RAM"], {"default": "RAM"})
_PROTECT = (
    "BOOLEAN",
    {
        "default": True,
        "tooltip": "Protect the inputs of nodes still to run, wired in or not. Off: those nodes may fail.",
    },
)
_ONLY_ABOVE = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 99,
        "tooltip": "Purge only if memory usage is above this percentage: of RAM; for a VRAM purge, of the "
        "device's memory; for Purge ALL, of either. 0: always purge.",
    },
)
# A workflow saves the values of widgets by position: new widgets must come last.
_COMMON_WIDGETS = {"protect_pending": _PROTECT, "only_above": _ONLY_ABOVE}


class _PurgeNode:
    """Base class of the six nodes. A list on a wire is one value: one purge, and passed through whole."""

    NEVER_EXPANDS = True  # for `prompt`: takes the graph as an input, but does not expand
    CATEGORY = "fastpurge"
    FUNCTION = "purge"
    INPUT_IS_LIST = True
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    WIRES: ClassVar[tuple[str, ...]] = ("anything",)

    def purge(self, dynprompt: Any = None, unique_id: Any = None, **inputs: Any) -> dict[str, Any]:
        """Purge, and return the inputs unchanged, with the result for the canvas. An error is shown there."""
        wires = {name: inputs[name] for name in self.WIRES if inputs.get(name) is not None}
        options = {name: of[0] for name, of in inputs.items() if name not in self.WIRES and of}
        with suppress(Exception):  # only the report node needs it
            free_memory.record(dynprompt[0])
        try:
            lines, data = self._purge(dynprompt[0], unique_id[0], (*wires.values(),), options)
        except Exception as error:  # noqa: BLE001 - the data is passed through whatever happens
            lines, data = _describe_failure(error), []
        result = tuple(wires.get(name, [None]) for name in self.WIRES) if self.RETURN_TYPES else ()
        return {"ui": {"text": lines, "fastpurge": data}, "result": result}

    def _purge(
        self, graph: Any, node_id: str, wired: tuple[object, ...], options: dict[str, Any]
    ) -> tuple[list[str], list[dict[str, Any]]]:
        reason = reason_to_skip(options.get("only_above", 0), self.measured_memory(options))
        if reason is not None:
            _log.info("node %s: %s", node_id, reason)
            return [reason], []
        running = prompt.find_running(graph, node_id)
        outcome = self.run(running, wired, options)
        lines = to_lines(outcome)
        _log.info("%s: %s", running.title, "; ".join(lines))
        return lines, [to_dict(outcome)]

    def measured_memory(self, _options: dict[str, Any]) -> tuple[Memory, ...]:
        """The kinds of memory that ``only_above`` refers to."""
        return ("RAM",)

    def run(self, running: prompt.Prompt, wired: tuple[object, ...], options: dict[str, Any]) -> Outcome:
        """Run the purge of this node."""
        raise NotImplementedError


class _TerminalNode(_PurgeNode):
    """A node without outputs, which purges in every queued prompt."""

    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802 - the API's name
        """A new NaN, which never equals the cached value: the node always runs."""
        return float("nan")  # not `math.nan`: containers compare by identity first


class _PassNode(_PurgeNode):
    """A node that passes its inputs through."""

    def measured_memory(self, options: dict[str, Any]) -> tuple[Memory, ...]:
        """RAM or VRAM, by the mode."""
        return ("VRAM",) if options.get("mode") == "VRAM" else ("RAM",)

    def run(self, running: prompt.Prompt, wired: tuple[object, ...], options: dict[str, Any]) -> Outcome:
        """Purge RAM or VRAM, by the mode. A model that is wired in stays loaded."""
        if options.get("mode") == "VRAM":
            return purge_vram(running, wired)
        return purge_ram(running, wired, protect_pending=_protects_pending(options))


class PurgeVRAM(_TerminalNode):
    """Unload all models and trim the caches of all devices."""

    DESCRIPTION = "Unloads all models from the device and empties its memory cache. Changes no data."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One input, which decides when the node runs."""
        return {"optional": {"anything": (ANY,), "only_above": _ONLY_ABOVE}, "hidden": _HIDDEN}

    def measured_memory(self, _options: dict[str, Any]) -> tuple[Memory, ...]:
        """VRAM."""
        return ("VRAM",)

    def run(self, running: prompt.Prompt, _wired: tuple[object, ...], _options: dict[str, Any]) -> Outcome:
        """Unload all models, those that are wired in as well."""
        return purge_vram(running, ())


class PurgeRAM(_TerminalNode):
    """Evict finished outputs, then release large unprotected objects on the CPU."""

    DESCRIPTION = (
        "Drops cached outputs that no node still to run needs, then releases leaks: large tensors and "
        f"models on the CPU that are still referenced and not protected. {_PROTECTED_TEXT}"
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One protected input, which also decides when the node runs."""
        return {"optional": {"anything": (ANY,), **_COMMON_WIDGETS}, "hidden": _HIDDEN}

    def run(self, running: prompt.Prompt, wired: tuple[object, ...], options: dict[str, Any]) -> Outcome:
        """Purge host memory."""
        return purge_ram(running, wired, protect_pending=_protects_pending(options))


class PurgeAll(_TerminalNode):
    """Like `PurgeRAM`, but on every device, from 1 MiB; unloads models and wipes memory."""

    DESCRIPTION = (
        "For severe leaks: unloads and strips models, wipes and releases unprotected tensors on every "
        f"device. {_PROTECTED_TEXT}"
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One protected input, which also decides when the node runs."""
        return {"optional": {"anything": (ANY,), **_COMMON_WIDGETS}, "hidden": _HIDDEN}

    def measured_memory(self, _options: dict[str, Any]) -> tuple[Memory, ...]:
        """RAM and VRAM: the fuller one counts."""
        return ("RAM", "VRAM")

    def run(self, running: prompt.Prompt, wired: tuple[object, ...], options: dict[str, Any]) -> Outcome:
        """Purge everything."""
        return purge_all(running, wired, protect_pending=_protects_pending(options))


class PurgePass(_PassNode):
    """Purge RAM or VRAM, and pass one input through."""

    DESCRIPTION = "Purges VRAM or RAM, and passes its input through unchanged."
    WIRES = ("data",)
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("data",)
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One input to pass through."""
        return {
            "required": {"data": (ANY,), "mode": _MODE},
            "optional": _COMMON_WIDGETS,
            "hidden": _HIDDEN,
        }


class PurgeRAMMulti(PurgeRAM):
    """Purge RAM; up to four inputs are protected."""

    WIRES = _FOUR_INPUTS

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Up to four protected inputs, which also decide when the node runs."""
        return {
            "required": {"data0": (ANY,)},
            "optional": {**dict.fromkeys(_FOUR_INPUTS[1:], (ANY,)), **_COMMON_WIDGETS},
            "hidden": _HIDDEN,
        }


class PurgePassMulti(_PassNode):
    """Purge RAM or VRAM, and pass up to four inputs through."""

    DESCRIPTION = "Purges VRAM or RAM, and passes up to four inputs through unchanged."
    WIRES = _FOUR_INPUTS
    RETURN_TYPES = (ANY,) * 4
    RETURN_NAMES = _FOUR_INPUTS
    OUTPUT_IS_LIST = (True,) * 4

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Up to four inputs to pass through."""
        return {
            "required": {"data0": (ANY,), "mode": _MODE},
            "optional": {**dict.fromkeys(_FOUR_INPUTS[1:], (ANY,)), **_COMMON_WIDGETS},
            "hidden": _HIDDEN,
        }


def _protects_pending(options: dict[str, Any]) -> bool:
    return bool(options.get("protect_pending", True))


def _describe_failure(error: Exception) -> list[str]:
    management = import_module("comfy.model_management")
    if isinstance(error, management.InterruptProcessingException):
        management.interrupt_current_processing(
            True
        )  # the prompt stops at the next node: this one still passes its inputs through
        return ["interrupted: the purge was not finished"]
    _log.exception("a purge failed; its inputs were passed through")
    return [f"failed: {reason_of(error)}"]


NODE_CLASS_MAPPINGS = {
    "CleanMemory_PurgeVRAM": PurgeVRAM,
    "CleanMemory_PurgeRAM": PurgeRAM,
    "CleanMemory_PurgeAll": PurgeAll,
    "CleanMemory_PurgePass": PurgePass,
    "CleanMemory_PurgeRAMProtectedMulti": PurgeRAMMulti,
    "CleanMemory_PurgePassMultiInput": PurgePassMulti,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "CleanMemory_PurgeVRAM": "🧹Purge VRAM",
    "CleanMemory_PurgeRAM": "🧹Purge RAM (Protected)",
    "CleanMemory_PurgeAll": "🧹Purge ALL",
    "CleanMemory_PurgePass": "🧹Purge & Pass",
    "CleanMemory_PurgeRAMProtectedMulti": "🧹Purge RAM Multi",
    "CleanMemory_PurgePassMultiInput": "🧹Purge & Pass Multi",
}
