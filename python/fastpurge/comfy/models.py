"""ComfyUI's books of loaded models: unloading, and never leaving a purged one in them."""

from importlib import import_module
from typing import Any

from fastpurge import _core
from fastpurge.report import human

_EVERYTHING = 1e30


def on_the_books() -> list[object]:
    """The models that ComfyUI has loaded, with their patchers: in use, as far as it knows."""
    return [of for loaded in _loaded() for of in (loaded.model, _real(loaded)) if of is not None]


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
