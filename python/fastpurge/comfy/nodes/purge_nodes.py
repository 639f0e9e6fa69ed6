"""The six nodes, for the V1 API: their inputs and outputs, and what they show on the canvas.

The class keys and the names of inputs are those of saved workflows.
"""

import logging
from contextlib import suppress
from importlib import import_module
from typing import Any, ClassVar

from fastpurge.comfy.comfyui import prompt
from fastpurge.comfy.nodes import free_memory
from fastpurge.comfy.nodes.outcome_text import tell, to_dict
from fastpurge.comfy.nodes.purges import Outcome, purge_all, purge_ram, purge_vram
from fastpurge.comfy.nodes.thresholds import Memory, why_not
from fastpurge.python_facts.object_types import reason_of

_log = logging.getLogger("fastpurge")
_FOUR = ("data0", "data1", "data2", "data3")


class Anything(str):
    """The type of a socket that takes and gives any type: it differs from none."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = Anything("*")
_PROTECTED = "What is wired in, what nodes still to run will read, and what custom nodes keep is protected."
_HIDDEN = {"dynprompt": "DYNPROMPT", "unique_id": "UNIQUE_ID"}
_MODE = (["VRAM", "RAM"], {"default": "RAM"})
_PROTECT = (
    "BOOLEAN",
    {
        "default": True,
        "tooltip": "Protect what nodes still to run will read, wired in or not. Off: they may fail.",
    },
)
_ONLY_ABOVE = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 99,
        "tooltip": "Purge only if more than so many percent are in use: of RAM; for a purge of VRAM, of the "
        "device's memory; for Purge ALL, of either. 0: always.",
    },
)
# A workflow saves the values of widgets by their order alone: new ones go last.
_LAST = {"protect_pending": _PROTECT, "only_above": _ONLY_ABOVE}


class _Purge:
    """What the six have in common. A list on a wire is one value: purged for once, and handed on whole."""

    PURGES = True  # by this `prompt` knows that such a node looks at the graph and never expands
    CATEGORY = "fastpurge"
    FUNCTION = "purge"
    INPUT_IS_LIST = True
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    WIRES: ClassVar[tuple[str, ...]] = ("anything",)

    def purge(self, dynprompt: Any = None, unique_id: Any = None, **inputs: Any) -> dict[str, Any]:
        """Purge, whatever comes of it hand on what came in, and say on the canvas what was done."""
        wires = {name: inputs[name] for name in self.WIRES if inputs.get(name) is not None}
        options = {name: of[0] for name, of in inputs.items() if name not in self.WIRES and of}
        with suppress(Exception):  # it is for a report
            free_memory.note(dynprompt[0])
        try:
            lines, data = self._purge(dynprompt[0], unique_id[0], (*wires.values(),), options)
        except Exception as error:  # noqa: BLE001 - an error in the purge is no reason to lose the data
            lines, data = _failed(error), []
        result = tuple(wires.get(name, [None]) for name in self.WIRES) if self.RETURN_TYPES else ()
        return {"ui": {"text": lines, "fastpurge": data}, "result": result}

    def _purge(
        self, graph: Any, node_id: str, wired: tuple[object, ...], options: dict[str, Any]
    ) -> tuple[list[str], list[dict[str, Any]]]:
        reason = why_not(options.get("only_above", 0), self.measured(options))
        if reason is not None:
            _log.info("node %s: %s", node_id, reason)
            return [reason], []
        running = prompt.running(graph, node_id)
        outcome = self.run(running, wired, options)
        lines = tell(outcome)
        _log.info("%s: %s", running.title, "; ".join(lines))
        return lines, [to_dict(outcome)]

    def measured(self, _options: dict[str, Any]) -> tuple[Memory, ...]:
        """The memory that this node looks at, if it is to purge only when that is full."""
        return ("RAM",)

    def run(self, running: prompt.Prompt, wired: tuple[object, ...], options: dict[str, Any]) -> Outcome:
        """Do what this node is for."""
        raise NotImplementedError


class _Terminal(_Purge):
    """A node that ends a branch, and purges whenever a prompt is queued."""

    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802 - the API's name
        """A new NaN, which equals nothing: the node is never taken from the cache."""
        return float("nan")  # not `math.nan`: in a container the same object equals itself


class _Pass(_Purge):
    """A node that hands on what came in."""

    def measured(self, options: dict[str, Any]) -> tuple[Memory, ...]:
        """As the mode says."""
        return ("VRAM",) if options.get("mode") == "VRAM" else ("RAM",)

    def run(self, running: prompt.Prompt, wired: tuple[object, ...], options: dict[str, Any]) -> Outcome:
        """As the mode says. A model that is wired in stays loaded."""
        if options.get("mode") == "VRAM":
            return purge_vram(running, wired)
        return purge_ram(running, wired, protect_pending=_protects(options))


class PurgeVRAM(_Terminal):
    """Unload every model and give every device cache back."""

    DESCRIPTION = "Unloads all models from the device and gives its caches back. Touches no data."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One wire, to say when."""
        return {"optional": {"anything": (ANY,), "only_above": _ONLY_ABOVE}, "hidden": _HIDDEN}

    def measured(self, _options: dict[str, Any]) -> tuple[Memory, ...]:
        """The device alone."""
        return ("VRAM",)

    def run(self, running: prompt.Prompt, _wired: tuple[object, ...], _options: dict[str, Any]) -> Outcome:
        """Unload all: what is wired in only says when."""
        return purge_vram(running, ())


class PurgeRAM(_Terminal):
    """Drop finished outputs, then release what is large, on the CPU and unprotected."""

    DESCRIPTION = (
        "Drops cached results that no node still to run needs, then releases large tensors and models on "
        f"the CPU that are still alive and not protected: leaks. {_PROTECTED}"
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One wire: what to protect, and when."""
        return {"optional": {"anything": (ANY,), **_LAST}, "hidden": _HIDDEN}

    def run(self, running: prompt.Prompt, wired: tuple[object, ...], options: dict[str, Any]) -> Outcome:
        """Purge host memory."""
        return purge_ram(running, wired, protect_pending=_protects(options))


class PurgeAll(_Terminal):
    """The same on every device, down to small things, with models unloaded and memory wiped."""

    DESCRIPTION = (
        "For severe leaks: unloads and strips models, wipes and releases every unprotected tensor on every "
        f"device. {_PROTECTED}"
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One wire: what to protect, and when."""
        return {"optional": {"anything": (ANY,), **_LAST}, "hidden": _HIDDEN}

    def measured(self, _options: dict[str, Any]) -> tuple[Memory, ...]:
        """Whichever is fuller."""
        return ("RAM", "VRAM")

    def run(self, running: prompt.Prompt, wired: tuple[object, ...], options: dict[str, Any]) -> Outcome:
        """Purge everything."""
        return purge_all(running, wired, protect_pending=_protects(options))


class PurgePass(_Pass):
    """Purge in the middle of a wire."""

    DESCRIPTION = "Hands on what is wired in, unchanged, and purges VRAM or RAM on the way."
    WIRES = ("data",)
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("data",)
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One wire through."""
        return {
            "required": {"data": (ANY,), "mode": _MODE},
            "optional": _LAST,
            "hidden": _HIDDEN,
        }


class PurgeRAMMulti(PurgeRAM):
    """Purge RAM with up to four wires to protect."""

    WIRES = _FOUR

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Four wires: what to protect, and when."""
        return {
            "required": {"data0": (ANY,)},
            "optional": {**dict.fromkeys(_FOUR[1:], (ANY,)), **_LAST},
            "hidden": _HIDDEN,
        }


class PurgePassMulti(_Pass):
    """Purge in the middle of up to four wires."""

    DESCRIPTION = "Hands on up to four wires, unchanged, and purges VRAM or RAM once all have come in."
    WIRES = _FOUR
    RETURN_TYPES = (ANY,) * 4
    RETURN_NAMES = _FOUR
    OUTPUT_IS_LIST = (True,) * 4

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Four wires through."""
        return {
            "required": {"data0": (ANY,), "mode": _MODE},
            "optional": {**dict.fromkeys(_FOUR[1:], (ANY,)), **_LAST},
            "hidden": _HIDDEN,
        }


def _protects(options: dict[str, Any]) -> bool:
    return bool(options.get("protect_pending", True))


def _failed(error: Exception) -> list[str]:
    management = import_module("comfy.model_management")
    if isinstance(error, management.InterruptProcessingException):
        management.interrupt_current_processing(True)  # for the next node: this one hands on what it has
        return ["interrupted: the purge was not finished"]
    _log.exception("a purge failed; what is wired through it was handed on")
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
