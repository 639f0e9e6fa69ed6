"""What running code is in the middle of: how the core follows what it holds."""

import collections
import functools
import itertools
import types
import weakref
from typing import Any

from fastpurge import _core
from fastpurge.python_facts import imported_modules

PLAIN: tuple[type, ...] = (list, tuple, dict, set, frozenset, collections.OrderedDict, collections.deque)
"""Containers that are no more than their contents."""

CALLABLES: tuple[type, ...] = (
    types.CellType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinMethodType,
    functools.partial,
)
"""What a call is made of."""

_EMPTY: dict[Any, Any] = {}
_MADE: tuple[Any, ...] = (
    *(iter([]), iter(()), iter(set()), iter(_EMPTY), iter(collections.deque()), reversed([])),
    *(_EMPTY.values(), _EMPTY.items(), iter(_EMPTY.values()), iter(_EMPTY.items())),
)
ITERATORS: tuple[type, ...] = (
    *(type(one) for one in _MADE),
    *(enumerate, zip, map, filter, reversed),
    *(item for item in vars(itertools).values() if isinstance(item, type)),
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
)
"""What gives one thing after the other, and views of dicts."""

EXECUTING = (
    (types.GeneratorType, "gi_running"),
    (types.CoroutineType, "cr_running"),
    (types.AsyncGeneratorType, "ag_running"),
)
"""Types with a frame of their own, each with the attribute that says whether that frame is running now."""

FRAME_ATTRIBUTES = {
    types.GeneratorType: "gi_frame",
    types.CoroutineType: "cr_frame",
    types.AsyncGeneratorType: "ag_frame",
}
"""The same types, each with the attribute that is the frame; it is ``None`` once the code has ended."""


def running_code(*, look_through: bool = True) -> _core.RunningCode:
    """How to find what running code holds: directly only, or looking through.

    What is looked through is what running code works with and has not given away: plain containers,
    closures, bound methods, iterators, suspended generators, the frames of exceptions. An object of a
    library's class is in use with all that it leads to. One of the program's own class is not looked into,
    or the `self` of every running method would keep whatever it leads to; but for context managers, whose
    `__exit__` may restore what they hold, and for classes derived from a few of torch's and transformers'.
    """
    if not look_through:
        return _core.RunningCode(executing=EXECUTING)
    calls = imported_modules.types_in(_CALLS)
    return _core.RunningCode(
        containers=(
            *PLAIN,
            collections.defaultdict,
            *CALLABLES,
            *ITERATORS,
            *(types.TracebackType, types.FrameType),
            *imported_modules.types_in(_THREADS),
            *imported_modules.types_in(_HANDED_OUT),
            *calls,
        ),
        container_bases=(
            *PLAIN,
            *ITERATORS,
            BaseException,
            *imported_modules.types_in(_CONTAINERS),
            *imported_modules.types_in(_THREADS),
        ),
        whole=imported_modules.types_in(_WHOLE),
        executing=EXECUTING,
        scheduled=_scheduled(calls),
        roots=root_objects(),
    )


def root_objects(*, threads: bool = False) -> tuple[tuple[type, ...], tuple[str, ...]]:
    """Types, and names of packages, whose instances lead to what is not in use.

    With ``threads``, threads as well: what they have called is running code, or not in use any more.
    """
    types = (*imported_modules.types_in(_ROOTS), *imported_modules.types_in(_CALLS))
    return (*types, *imported_modules.types_in(_THREADS if threads else {})), (*sorted(_root_packages),)


def add_root_packages(*packages: str) -> None:
    """Name packages, or modules, whose objects lead to what is not in use.

    Such as the executor of an application, which is in the middle of every call and holds every result.
    """
    _root_packages.update(packages)


_root_packages = {
    "fastpurge",  # what a survey has found would be in use
    *("IPython", "ipykernel"),
    *("_pytest", "execnet", "pluggy", "xdist"),
    "ray",  # a worker holds the actors that live in it
}

_ROOTS = {
    "asyncio": ("AbstractEventLoop",),
    "logging": ("Filterer", "Manager"),
    # C++ holds the Python object of a storage. It holds no tensor, and its memory is its own.
    "torch": ("TypedStorage", "UntypedStorage"),
    "traitlets.config": ("Configurable",),
    "unittest": ("BaseTestSuite", "TestProgram", "TestResult"),
}

# Containers that are no more than their contents either, also if the program has derived its own from them.
_CONTAINERS = {
    "asyncio": ("Queue",),
    "collections": ("ChainMap", "UserDict", "UserList"),
    "functools": ("partial",),
    "queue": ("Queue", "SimpleQueue"),
    "types": ("SimpleNamespace",),
}

# Classes of the program that are derived from these are in use as well, with all that they lead to.
_WHOLE = {
    "_ctypes": ("Array", "Structure", "Union", "_Pointer", "_SimpleCData"),
    "_pytest.monkeypatch": ("MonkeyPatch",),
    "torch.nn.modules.module": ("Module",),
    "torch.optim.optimizer": ("Optimizer",),
    "torch.optim.lr_scheduler": ("LRScheduler",),
    "torch.amp.grad_scaler": ("GradScaler",),
    "torch.autograd.function": ("FunctionCtx",),
    "torch.distributions": ("Distribution", "Transform"),
    "torch.utils.data": ("DataLoader", "Dataset", "Sampler"),
    "transformers.cache_utils": ("Cache",),
    "transformers.generation.logits_process": ("LogitsProcessor",),
    "transformers.generation.stopping_criteria": ("StoppingCriteria",),
    "transformers.generation.streamers": ("BaseStreamer",),
}

# Calls that wait to be made or to go on.
_CALLS = {
    "asyncio": ("Handle", "Task", "TimerHandle"),
    "concurrent.futures.process": ("_CallItem", "_WorkItem"),
    "concurrent.futures.thread": ("_WorkItem",),
    "uvloop.loop": ("Handle", "TimerHandle"),
}

# A thread holds what it has called, which often is a method of the program; one of the program's own class is
# often what it works with.
_THREADS = {"threading": ("Thread", "Timer")}

# What a test runner hands to a test, although all else of it is a root object.
_HANDED_OUT = {"_pytest._code.code": ("ExceptionInfo",), "pluggy._result": ("Result",)}

# What work has brought about, and nobody may have asked for yet; what will be written, restored or torn down
# some day; what a person may click on.
_RESULTS = {
    "_pytest.fixtures": ("FixtureDef",),
    "_pytest.monkeypatch": ("MonkeyPatch",),
    "_pytest.runner": ("SetupState",),
    "concurrent.futures": ("Future",),
    "ipywidgets.widgets.widget": ("CallbackDispatcher", "Widget"),
    "logging.handlers": ("BufferingHandler",),
    "multiprocessing.pool": ("ApplyResult", "IMapIterator"),
}

# What `weakref.finalize` will call, and with what: its registry is a library's (Lib/weakref.py).
_FINALIZERS = tuple(one for one in (getattr(weakref.finalize, "_Info", None),) if isinstance(one, type))


def _scheduled(calls: tuple[type, ...]) -> tuple[tuple[type, Any], ...]:
    """Work that waits, whoever holds it: what has to do it is a root object, and not looked into.

    A handle that was cancelled holds nothing.
    """
    return tuple((one, _done(one)) for one in (*calls, *imported_modules.types_in(_RESULTS), *_FINALIZERS))


def _done(of: type) -> Any:
    """What says in C that a task is done; in Python (without the accelerator of asyncio) any task counts."""
    if of not in imported_modules.types_in({"asyncio": ("Task",)}):
        return None
    done = vars(of).get("done")
    return done if type(done) is types.MethodDescriptorType else None
