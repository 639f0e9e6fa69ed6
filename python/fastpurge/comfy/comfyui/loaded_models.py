"""ComfyUI's list of loaded models: unload them, and remove entries whose model is gone."""

import sys
import weakref
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from fastpurge import _core
from fastpurge.comfy.comfyui.unkept_tensors import Unkept, nbytes_of, with_facts
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a, type_name
from fastpurge.reporting.text import human
from fastpurge.torch_facts.tensors import module_dict

_EVERYTHING = 1e30


def models_and_patchers() -> list[object]:
    """The models in ComfyUI's list of loaded models, with their patchers: ComfyUI uses them."""
    return [of for loaded in _loaded_list() for of in (loaded.model, _model_of(loaded)) if of is not None]


@dataclass(frozen=True, slots=True)
class PinnedPatcher:
    """A model patcher that unpins memory when it is destroyed, and needs its model for that.

    Attributes:
        patcher: the `ModelPatcher`.
        name: the type name of its model.
        nbytes: bytes of the given tensors that the patcher reaches.

    """

    patcher: object
    name: str
    nbytes: int


def find_pinned_patchers(unkept: list[weakref.ref[Any]]) -> list[PinnedPatcher]:
    """The patchers with pinned memory that reach one of the given objects.

    A patcher unpins when it is unloaded or destroyed (`__del__` in comfy/model_patcher.py). If its model were
    stripped it could not, and ComfyUI would count the memory as pinned forever. So the model must stay intact
    as long as the patcher lives.
    """
    patchers = (*(one for one in _core.scan((_patcher_type(),)) if _has_pins(one)),) if unkept else ()
    targets = (*(one for one in (ref() for ref in unkept) if one is not None),)
    reached = _core.reachable_targets(patchers, targets, libraries=libraries()) if patchers else []
    return [
        PinnedPatcher(
            one, _name_of_model(one), nbytes_of(Unkept(*of) for of in with_facts(targets[at] for at in hits))
        )
        for one, hits in zip(patchers, reached, strict=True)
        if hits
    ]


def _patcher_type() -> Any:
    module = sys.modules.get("comfy.model_patcher")
    return getattr(module, "ModelPatcher", _NoPatcher)


class _NoPatcher:
    """Stands for `ModelPatcher` in a ComfyUI without one."""


def _has_pins(patcher: Any) -> bool:
    """Whether it has pinned weights; a dynamic patcher stores them on its model."""
    attributes = object.__getattribute__(patcher, "__dict__")
    model = attributes.get("model")
    on_model = module_dict(model) if is_a(model, torch.nn.Module) else {}
    return bool(attributes.get("pinned")) or "dynamic_pins" in on_model


def _name_of_model(patcher: Any) -> str:
    return type_name(object.__getattribute__(patcher, "__dict__").get("model"))


def unload(kept: _core.IdSet) -> list[str]:
    """Have ComfyUI unload every model that is not kept; return the names and sizes of the unloaded ones.

    A model also counts as kept if the set has only the model: its patcher may be a clone of the kept one.
    """
    management = _management()
    before = _loaded_list()
    stay = [one for one in before if _model_of(one) in kept or one.model in kept]
    staying = _core.IdSet(stay)  # not by `==`: ComfyUI compares entries by their model
    going = [(_name(one), _size(one)) for one in before if one not in staying]
    for device in {one.device for one in before}:
        management.free_memory(_EVERYTHING, device, keep_loaded=stay)
    _remove_dead_entries(kept)
    return [f"{name} ({size})" for name, size in going]


def _remove_dead_entries(kept: _core.IdSet) -> None:
    """Remove entries whose patcher is gone: ComfyUI never unloads those."""
    loaded = _loaded_list()
    for at in reversed(range(len(loaded))):
        if loaded[at].model is None and _model_of(loaded[at]) not in kept:
            if loaded[at].model_finalizer is not None:
                loaded[at].model_finalizer.detach()
            del loaded[at]


def _model_of(loaded: Any) -> Any:
    reference = loaded.real_model
    return reference() if reference is not None else None


def _name(loaded: Any) -> str:
    model = _model_of(loaded)
    return type(model if model is not None else loaded).__name__


def _size(loaded: Any) -> str:
    return human(loaded.model_loaded_memory()) if loaded.model is not None else "leaked"


def _loaded_list() -> list[Any]:
    loaded: list[Any] = _management().current_loaded_models
    return loaded


def _management() -> Any:
    return import_module("comfy.model_management")
