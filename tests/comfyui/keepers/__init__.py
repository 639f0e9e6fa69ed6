"""A custom node pack for the tests, with many ways in which packs keep a model.

It is installed as a symbolic link, like packs under development.
"""

from __future__ import annotations

import queue
import sys
import types
from abc import ABCMeta
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent))
import fpt_kept_elsewhere as elsewhere  # type: ignore[import-not-found]

from . import deep, stateful

LOADS: list[str] = []


def load(name: str) -> Any:
    """Stands for a slow load of a model."""
    LOADS.append(name)
    torch.manual_seed(len(name))
    return torch.rand(5 << 20)


_model: Any = None


def in_a_global(name: str) -> Any:
    global _model
    if _model is None:
        _model = load(name)
    return _model


_pair: Any = None


def in_a_tuple(name: str) -> Any:
    global _pair
    if _pair is None:
        _pair = (load(name), name)
    return _pair[0]


CACHE: dict[str, Any] = {}


def in_a_dict(name: str) -> Any:
    if name not in CACHE:
        CACHE[name] = load(name)
    return CACHE[name]


NESTED: dict[str, dict[str, Any]] = {"small": {}, "large": {}}


def in_a_dict_of_dicts(name: str) -> Any:
    if name not in NESTED["large"]:
        NESTED["large"][name] = load(name)
    return NESTED["large"][name]


RECORD: dict[str, Any] = {"model": None, "name": None}


def in_a_record(name: str) -> Any:
    if RECORD["model"] is None or RECORD["name"] != name:
        RECORD["model"], RECORD["name"] = load(name), name
    return RECORD["model"]


class Recent(OrderedDict[str, Any]):
    """The three most recent models."""

    def put(self, name: str, model: Any) -> None:
        self[name] = model
        while len(self) > 3:
            self.popitem(last=False)


RECENT = Recent()


def in_a_mapping_of_its_own(name: str) -> Any:
    if RECENT.get(name) is None:
        RECENT.put(name, load(name))
    return RECENT[name]


@lru_cache(maxsize=4)
def in_an_lru_cache(name: str) -> Any:
    return load(name)


class Loader:
    """Loads its model on first use."""

    _one: Any = None

    def __init__(self) -> None:
        self.model: Any = None

    @classmethod
    def one(cls) -> Loader:
        if cls._one is None:
            cls._one = cls()
        one: Loader = cls._one
        return one

    def get(self, name: str) -> Any:
        if self.model is None:
            self.model = load(name)
        return self.model


LOADER = Loader()


def in_an_object(name: str) -> Any:
    return LOADER.get(name)


def in_a_singleton(name: str) -> Any:
    return Loader.one().get(name)


class Detector:
    """Loads its model in its constructor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = load(name)


_detector: Any = None
DETECTORS: dict[str, Detector] = {}


def in_an_object_that_is_made_with_it(name: str) -> Any:
    global _detector
    if _detector is None:
        _detector = Detector(name)
    return _detector.model


def in_objects_in_a_dict(name: str) -> Any:
    if name not in DETECTORS:
        DETECTORS[name] = Detector(name)
    return DETECTORS[name].model


class Lazy:
    def get(self, name: str) -> Any:
        if not hasattr(self, "weights"):
            self.weights = load(name)
        return self.weights


LAZY = Lazy()


def in_an_attribute_that_may_be_missing(name: str) -> Any:
    return LAZY.get(name)


class Registry(metaclass=ABCMeta):  # noqa: B024 - for the metaclass
    current: Any = None

    @classmethod
    def get(cls, name: str) -> Any:
        if cls.current is None:
            cls.current = load(name)
        return cls.current


def in_a_class(name: str) -> Any:
    return Registry.get(name)


STATE = types.SimpleNamespace(checkpoint=None)


def in_a_namespace(name: str) -> Any:
    if STATE.checkpoint is None:
        STATE.checkpoint = load(name)
    return STATE.checkpoint


def in_an_attribute_of_a_function(name: str) -> Any:
    here: Any = in_an_attribute_of_a_function
    if not hasattr(here, "kept"):
        here.kept = load(name)
    return here.kept


def in_a_module_found_elsewhere(name: str) -> Any:
    return elsewhere.get(name, load)


class Moving:
    """Assigns its model again without checking that it exists."""

    def __init__(self, name: str) -> None:
        self.model = load(name)

    def get(self) -> Any:
        self.model = self.model.to("cpu")
        return self.model


MOVING: dict[str, Moving] = {}


def in_an_object_that_moves_it(name: str) -> Any:
    if name not in MOVING:
        MOVING[name] = Moving(name)
    return MOVING[name].get()


_loaded, _key = None, ""
_counted: Any = None
_is_loaded = False


def known_by_a_key_beside_it(name: str) -> Any:
    global _loaded, _key
    if _key != name:
        _loaded, _key = load(name), name
    return _loaded


def known_by_a_flag_beside_it(name: str) -> Any:
    global _counted, _is_loaded
    if not _is_loaded:
        _counted, _is_loaded = load(name), True
    return _counted


ORDERED: dict[str, Any] = {}
ORDER: list[str] = []


def known_by_an_order_beside_it(name: str) -> Any:
    if name not in ORDERED:
        if len(ORDER) > 1:
            del ORDERED[ORDER.pop(0)]
        ORDERED[name] = load(name)
        ORDER.append(name)
    return ORDERED[name]


SIZED: OrderedDict[str, Any] = OrderedDict()
_total = 0


def known_by_a_sum_beside_it(name: str) -> Any:
    global _total
    if name not in SIZED:
        SIZED[name] = load(name)
        _total += SIZED[name].nbytes
    while _total > 30 << 20:
        _, old = SIZED.popitem(last=False)
        _total -= old.nbytes
    return SIZED[name]


def _memoized(function: Callable[[str], Any]) -> Callable[[str], Any]:
    results: dict[str, Any] = {}

    def wrapper(name: str) -> Any:
        if name not in results:
            results[name] = function(name)
        return results[name]

    return wrapper


_load_once = _memoized(load)


def known_to_a_closure(name: str) -> Any:
    return _load_once(name)


SHELF: list[Any] = []


def known_by_its_number(name: str) -> Any:
    if not SHELF:
        SHELF.append(load(name))
    return SHELF[0]


QUEUE: Any = None


def set_up() -> None:
    global QUEUE
    QUEUE = queue.Queue()


set_up()


def in_a_queue(name: str) -> Any:
    if QUEUE.empty():
        QUEUE.put(load(name))
    model = QUEUE.get()
    QUEUE.put(model)
    return model


class Unwilling(dict[str, Any]):
    """A dict whose iteration fails."""

    def items(self) -> Any:
        raise RuntimeError("this dict cannot be iterated")

    def __iter__(self) -> Any:
        raise RuntimeError("this dict cannot be iterated")


UNWILLING = Unwilling(model=[])


def in_a_mapping_that_does_not_answer(name: str) -> Any:
    if not UNWILLING["model"]:
        UNWILLING["model"].append(load(name))
    return UNWILLING["model"][0]


def in_a_constant(name: str) -> Any:
    from . import constant

    return constant.KERNEL


def in_a_constant_that_is_asked_for(name: str) -> Any:
    from . import asked

    return asked.kernel()


_WAYS: tuple[Callable[[str], Any], ...] = (
    *(in_a_global, in_a_tuple, in_a_dict, in_a_dict_of_dicts, in_a_record, in_a_mapping_of_its_own),
    *(in_an_lru_cache, in_an_object, in_a_singleton, in_an_object_that_is_made_with_it),
    *(in_objects_in_a_dict, in_an_attribute_that_may_be_missing, in_a_class, in_a_namespace),
    *(in_an_attribute_of_a_function, in_a_module_found_elsewhere, in_an_object_that_moves_it),
    *(known_by_a_key_beside_it, known_by_a_flag_beside_it, known_by_an_order_beside_it),
    *(known_by_a_sum_beside_it, known_to_a_closure, known_by_its_number, in_a_queue),
    *(in_a_mapping_that_does_not_answer, in_a_constant, in_a_constant_that_is_asked_for),
)
WAYS: dict[str, Callable[[str], Any]] = {way.__name__: way for way in (*_WAYS, *deep.WAYS)}


class Keeper:
    """Returns the model that one of the ways keeps, and shows how often it was loaded."""

    CATEGORY = "fastpurge tests"
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"way": ([*WAYS],), "salt": ("INT",)}}

    def run(self, way: str, salt: int) -> dict[str, Any]:
        model = WAYS[way](way)
        return {"ui": {"loads": [LOADS.count(way)]}, "result": (model[:1024] * 1,)}


NODE_CLASS_MAPPINGS = {"FPT_Keeper": Keeper, **stateful.NODE_CLASS_MAPPINGS}
