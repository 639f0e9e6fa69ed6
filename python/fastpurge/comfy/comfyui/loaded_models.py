"""ComfyUI's books of loaded models: unloading, and never leaving a purged one in them."""

import sys
import weakref
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from fastpurge import _core
from fastpurge.comfy.comfyui.unkept_tensors import Unkept, known, nbytes_of
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a, type_name
from fastpurge.reporting.text import human
from fastpurge.torch_facts.tensors import module_dict

_EVERYTHING = 1e30


def on_the_books() -> list[object]:
    """The models that ComfyUI has loaded, with their patchers: in use, as far as it knows."""
    return [of for loaded in _loaded() for of in (loaded.model, _real(loaded)) if of is not None]


@dataclass(frozen=True, slots=True)
class Pinned:
    """A model patcher that gives pinned memory back when it dies, which it finds by its model.

    Attributes:
        patcher: it.
        name: of its model.
        nbytes: what was asked about and it leads to.

    """

    patcher: object
    name: str
    nbytes: int


def pinned(unkept: list[weakref.ref[Any]]) -> list[Pinned]:
    """The patchers that have pinned memory, and lead to something that nothing else keeps.

    A patcher unpins when it is unloaded or when it dies (`__del__` in comfy/model_patcher.py). Without its
    model it could not, and ComfyUI would count the memory as pinned for good. So its model goes with it.
    """
    patchers = (*(one for one in _core.scan((_patcher_type(),)) if _has_pins(one)),) if unkept else ()
    targets = (*(one for one in (ref() for ref in unkept) if one is not None),)
    reached = _core.reachable_targets(patchers, targets, libraries=libraries()) if patchers else []
    return [
        Pinned(one, _name_of_model(one), nbytes_of(Unkept(*of) for of in known(targets[at] for at in hits)))
        for one, hits in zip(patchers, reached, strict=True)
        if hits
    ]


def _patcher_type() -> Any:
    module = sys.modules.get("comfy.model_patcher")
    return getattr(module, "ModelPatcher", _NoPatcher)


class _NoPatcher:
    """In a ComfyUI that has none."""


def _has_pins(patcher: Any) -> bool:
    """Whether it has pinned weights; a dynamic one notes them on its model, for all patchers of that."""
    attributes = object.__getattribute__(patcher, "__dict__")
    model = attributes.get("model")
    on_model = module_dict(model) if is_a(model, torch.nn.Module) else {}
    return bool(attributes.get("pinned")) or "dynamic_pins" in on_model


def _name_of_model(patcher: Any) -> str:
    return type_name(object.__getattribute__(patcher, "__dict__").get("model"))


def unload(kept: _core.IdSet) -> list[str]:
    """Have ComfyUI unload every model but the kept ones, and say which went.

    A model counts as kept if it is in the set itself: its patcher may be another's clone.
    """
    management = _management()
    before = _loaded()
    stay = [one for one in before if _real(one) in kept or one.model in kept]
    staying = _core.IdSet(stay)  # not by `==`: for ComfyUI those of one model are equal
    going = [(_name(one), _size(one)) for one in before if one not in staying]
    for device in {one.device for one in before}:
        management.free_memory(_EVERYTHING, device, keep_loaded=stay)
    _strike_dead(kept)
    return [f"{name} ({size})" for name, size in going]


def _strike_dead(kept: _core.IdSet) -> None:
    """Strike models whose patcher is gone from the books: ComfyUI never unloads those."""
    books = _loaded()
    for at in reversed(range(len(books))):
        if books[at].model is None and _real(books[at]) not in kept:
            if books[at].model_finalizer is not None:
                books[at].model_finalizer.detach()
            del books[at]


def _real(loaded: Any) -> Any:
    reference = loaded.real_model
    return reference() if reference is not None else None


def _name(loaded: Any) -> str:
    model = _real(loaded)
    return type(model if model is not None else loaded).__name__


def _size(loaded: Any) -> str:
    return human(loaded.model_loaded_memory()) if loaded.model is not None else "leaked"


def _loaded() -> list[Any]:
    books: list[Any] = _management().current_loaded_models
    return books


def _management() -> Any:
    return import_module("comfy.model_management")
