"""More ways to keep a model: without a global, deep in objects, or owned by other objects."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
import types
import weakref
from collections import ChainMap, deque
from collections.abc import Callable, Iterator
from importlib import import_module
from queue import SimpleQueue
from typing import Any

import numpy as np


def load(name: str) -> Any:
    """`load` of the package, imported late to avoid an import cycle."""
    from . import load as load_

    return load_(name)


def in_a_default_argument(name: str, kept: dict[str, Any] = {}) -> Any:  # noqa: B006 - like real packs
    if name not in kept:
        kept[name] = load(name)
    return kept[name]


class Session:
    """Nested objects of the pack's own class."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner
        self.results: dict[str, Any] = {}


SESSION = functools.reduce(lambda inner, _: Session(inner), range(20), Session())


def deep_in_objects(name: str) -> Any:
    at = SESSION
    while at.inner is not None:
        at = at.inner
    if name not in at.results:
        at.results[name] = {"frames": [(load(name), 1)]}
    return at.results[name]["frames"][0][0]


class Slots:
    __slots__ = ("kept",)
    kept: Any


SLOTS = types.MappingProxyType({"one": Slots()})


def in_a_slot(name: str) -> Any:
    if not hasattr(SLOTS["one"], "kept"):
        SLOTS["one"].kept = load(name)
    return SLOTS["one"].kept


CHAIN: ChainMap[str, Any] = ChainMap({}, {"fallback": deque(maxlen=2)})


def in_a_chain_of_maps(name: str) -> Any:
    if not CHAIN["fallback"]:
        CHAIN["fallback"].append(load(name))
    return CHAIN["fallback"][0]


def _serve(name: str) -> Iterator[Any]:
    kept = load(name)
    while True:
        yield kept


SERVERS: dict[str, Iterator[Any]] = {}


def in_a_suspended_generator(name: str) -> Any:
    return next(SERVERS.setdefault(name, _serve(name)))


class Worker(threading.Thread):
    """A thread without a global reference, which stores its model on itself."""

    def __init__(self, name: str) -> None:
        super().__init__(daemon=True, name=f"worker for {name}")
        self.made: Any = None
        self.asked: SimpleQueue[SimpleQueue[Any]] = SimpleQueue()

    def run(self) -> None:
        self.made = load(in_a_thread.__name__)
        while True:
            self.asked.get().put(self.made)


def in_a_thread(name: str) -> Any:
    running = [one for one in threading.enumerate() if type(one) is Worker]
    if not running:
        running.append(Worker(name))
        running[0].start()
    answer: SimpleQueue[Any] = SimpleQueue()
    running[0].asked.put(answer)
    return answer.get()


class Bag:
    """Only the arguments of a thread refer to it."""

    def __init__(self, name: str) -> None:
        self.kept = load(name)


def _wait(bag: Bag, asked: SimpleQueue[Any]) -> None:
    while True:
        asked.get().put(bag.kept)


_asked: SimpleQueue[Any] | None = None


def in_an_argument_of_a_thread(name: str) -> Any:
    global _asked
    if _asked is None:
        _asked = SimpleQueue()
        threading.Thread(target=_wait, args=(Bag(name), _asked), daemon=True).start()
    answer: SimpleQueue[Any] = SimpleQueue()
    _asked.put(answer)
    return answer.get()


def in_a_timer(name: str) -> Any:
    """A thread that runs no function of the pack."""
    waiting = [one for one in threading.enumerate() if type(one) is threading.Timer and one.name == name]
    if not waiting:
        waiting.append(threading.Timer(86_400, print, args=(Bag(name),)))
        waiting[0].name, waiting[0].daemon = name, True
        waiting[0].start()
    (bag,) = waiting[0].args
    return bag.kept


async def _sleep(bag: Bag) -> None:
    while True:
        await asyncio.sleep(60)
        bag.kept += 0


def in_a_task_that_waits(name: str) -> Any:
    from server import PromptServer

    loop = PromptServer.instance.loop
    for task in asyncio.all_tasks(loop):
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and "bag" in frame.f_locals:
            return frame.f_locals["bag"].kept
    bag = Bag(name)
    asyncio.run_coroutine_threadsafe(_sleep(bag), loop)
    time.sleep(0.5)
    return bag.kept


def _register() -> None:
    """Create a node class in a function, so that no global refers to it."""
    kept: dict[str, Any] = {}

    class Made:
        @staticmethod
        def get(name: str) -> Any:
            if name not in kept:
                kept[name] = load(name)
            return kept[name]

    import_module("nodes").NODE_CLASS_MAPPINGS["FPT_Made"] = Made


_register()


def in_a_node_class_made_in_a_function(name: str) -> Any:
    return import_module("nodes").NODE_CLASS_MAPPINGS["FPT_Made"].get(name)


# Not in `sys.modules`: some packs run generated code like this.
GENERATED = types.ModuleType("generated")
exec("KEPT = {}", vars(GENERATED))


def in_a_module_made_at_run_time(name: str) -> Any:
    if name not in GENERATED.KEPT:
        GENERATED.KEPT[name] = load(name)
    return GENERATED.KEPT[name]


VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE")
CONTEXT = contextvars.copy_context()


def in_a_context(name: str) -> Any:
    if VARIABLE not in CONTEXT:
        CONTEXT.run(VARIABLE.set, load(name))
    return CONTEXT[VARIABLE]


ARRAY = np.empty(3, dtype=object)


def in_an_array_of_objects(name: str) -> Any:
    if ARRAY[1] is None:
        ARRAY[1] = [load(name)]
    return ARRAY[1][0]


class Loop:
    """An object in a reference cycle, which weak references refer to."""

    def __init__(self, name: str) -> None:
        self.me = self
        self.kept = load(name)


LOOPS: weakref.WeakValueDictionary[str, Loop] = weakref.WeakValueDictionary()
POINTERS: dict[str, Any] = {}


def behind_a_weak_reference(name: str) -> Any:
    if name not in LOOPS:
        loop = LOOPS[name] = Loop(name)
        keep_on_server(loop)
    return LOOPS[name].kept


def behind_a_proxy(name: str) -> Any:
    if name not in POINTERS:
        loop = Loop(name)
        POINTERS[name] = weakref.proxy(loop)
        keep_on_server(loop)
    return POINTERS[name].kept


def keep_on_server(one: Any) -> None:
    """Store an object on ComfyUI's server, which no root of a custom node pack reaches."""
    from server import PromptServer

    session = vars(PromptServer.instance).setdefault("fpt_session", Session())
    session.results[f"{len(session.results)}"] = one


class Meta(type):
    """Stores models on the metaclass."""

    made: dict[str, Any] = {}

    def get(cls, name: str) -> Any:
        if name not in cls.made:
            cls.made[name] = load(name)
        return cls.made[name]


def _make_class() -> Any:
    class Made(metaclass=Meta):
        pass

    return Made


MAKE: Callable[[], Any] = functools.lru_cache(_make_class)


def on_a_class_made_in_a_function(name: str) -> Any:
    return MAKE().get(name)


WAYS: tuple[Callable[[str], Any], ...] = (
    *(in_a_default_argument, deep_in_objects, in_a_slot, in_a_chain_of_maps, in_a_suspended_generator),
    *(in_a_thread, in_an_argument_of_a_thread, in_a_module_made_at_run_time, in_a_context),
    *(in_a_timer, in_a_task_that_waits, in_a_node_class_made_in_a_function),
    *(in_an_array_of_objects, behind_a_weak_reference, behind_a_proxy, on_a_class_made_in_a_function),
)
