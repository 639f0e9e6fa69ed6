"""How the core finds the objects that running code uses: which types it looks through, and where it stops."""

import collections
import functools
import itertools
import types
import weakref
from typing import Any

from fastpurge import _core
from fastpurge.python_facts import imported_modules

PLAIN: tuple[type, ...] = (list, tuple, dict, set, frozenset, collections.OrderedDict, collections.deque)
"""Plain containers: nothing but their elements."""

CALLABLES: tuple[type, ...] = (
    types.CellType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinMethodType,
    functools.partial,
)
"""Callables, and the types that connect them with what they call and capture."""

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
"""Iterators, generators, and views of dicts."""

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
    """How to find what running code uses.

    The core looks through plain containers, closures, bound methods, iterators, suspended generators and
    frames of exceptions. An object of a library's class is in use with everything reachable from it. An
    object of the program's own class is not entered: otherwise the `self` of every running method would keep
    everything reachable from it. Exceptions are context managers, whose `__exit__` may restore objects, and
    subclasses of a few classes of torch and transformers.

    Args:
        look_through: whether to look through containers at all; otherwise only direct references count.

    """
    if not look_through:
        return _core.RunningCode(generator_types=EXECUTING)
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
        kept_whole=imported_modules.types_in(_WHOLE),
        generator_types=EXECUTING,
        scheduled=_scheduled(calls),
        root_objects=root_objects(),
    )


def root_objects(*, threads: bool = False) -> tuple[tuple[type, ...], tuple[str, ...]]:
    """Root objects: types, and names of packages, whose instances reach much that is not in use.

    With ``threads``, threads too: what they call is running code, or no longer in use.
    """
    types = (*imported_modules.types_in(_ROOTS), *imported_modules.types_in(_CALLS))
    return (*types, *imported_modules.types_in(_THREADS if threads else {})), (*sorted(_root_packages),)


def add_root_packages(*packages: str) -> None:
    """Add packages, or modules, whose objects are root objects.

    For example the executor of an application, which calls everything and references every result.
    """
    _root_packages.update(packages)


_root_packages = {
    "fastpurge",  # what a survey has found would be in use
    *("IPython", "ipykernel"),
    *("_pytest", "execnet", "pluggy", "xdist"),
    "ray._private",  # a worker references its actors
}

_ROOTS = {
    "asyncio": ("AbstractEventLoop",),
    "logging": ("Filterer", "Manager"),
    # C++ references the Python object of a storage, which references no tensor.
    "torch": ("TypedStorage", "UntypedStorage"),
    "traitlets.config": ("Configurable",),
    "unittest": ("BaseTestSuite", "TestProgram", "TestResult"),
}

# More containers to look through, with the program's subclasses of them.
_CONTAINERS = {
    "asyncio": ("Queue",),
    "collections": ("ChainMap", "UserDict", "UserList"),
    "collections.abc": ("AsyncIterator", "Iterator"),
    "functools": ("partial",),
    "queue": ("Queue", "SimpleQueue"),
    "types": ("SimpleNamespace",),
}

# Subclasses of these in the program are in use with everything reachable from them.
_WHOLE = {
    "_ctypes": ("Array", "Structure", "Union", "_Pointer", "_SimpleCData"),
    "_pytest.monkeypatch": ("MonkeyPatch",),
    "torch.fx": ("Interpreter",),
    "torch.nn.modules.module": ("Module",),
    "torch.optim.optimizer": ("Optimizer",),
    "torch.optim.lr_scheduler": ("LRScheduler",),
    "torch.amp.grad_scaler": ("GradScaler",),
    "torch.distributions": ("Distribution", "Transform"),
    "torch.utils.data": ("DataLoader", "Dataset", "Sampler"),
    "transformers.cache_utils": ("Cache",),
    "transformers.generation.logits_process": ("LogitsProcessor",),
    "transformers.generation.stopping_criteria": ("StoppingCriteria",),
    "transformers.generation.streamers": ("BaseStreamer",),
}

# Scheduled or suspended calls.
_CALLS = {
    "_asyncio": ("Task",),
    "asyncio": ("Handle", "Task", "TimerHandle"),  # `asyncio.Task` may have been replaced, as by nest_asyncio
    "asyncio.tasks": ("_PyTask",),
    "concurrent.futures.process": ("_CallItem", "_WorkItem"),
    "concurrent.futures.thread": ("_WorkItem",),
    "uvloop.loop": ("Handle", "TimerHandle"),
}

# A thread references its target, often a method of the program. A thread of the program's own class often has
# the data that it works with.
_THREADS = {"threading": ("Thread", "Timer")}

# Objects that a test runner passes to a test, although its other objects are root objects.
_HANDED_OUT = {"_pytest._code.code": ("ExceptionInfo",), "pluggy._result": ("Result",)}

# Results that may not have been fetched yet; objects that will be written, restored or torn down later;
# widgets that a user may click.
_RESULTS = {
    "_asyncio": ("Future",),
    "_pytest.fixtures": ("FixtureDef",),
    "_pytest.monkeypatch": ("MonkeyPatch",),
    "_pytest.runner": ("SetupState",),
    "asyncio.futures": ("_PyFuture",),
    "concurrent.futures": ("Future",),
    "ipywidgets.widgets.widget": ("CallbackDispatcher", "Widget"),
    "logging.handlers": ("BufferingHandler",),
    "multiprocessing.pool": ("ApplyResult", "IMapIterator"),
}

# Callbacks of `weakref.finalize` with their arguments. Its registry is a library's (Lib/weakref.py).
_FINALIZERS = tuple(one for one in (getattr(weakref.finalize, "_Info", None),) if isinstance(one, type))


def _scheduled(calls: tuple[type, ...]) -> tuple[tuple[type, Any], ...]:
    """Types of scheduled work, which is in use whatever its owner is: event loops and pools are root objects.

    A cancelled handle references nothing. An object counts as of the first type that it is an instance of: a
    task is a future too, and a task that is done is not in use.
    """
    return tuple((one, _done(one)) for one in (*calls, *imported_modules.types_in(_RESULTS), *_FINALIZERS))


def _done(of: type) -> Any:
    """The C function that returns whether a task is done; None for other types and pure Python tasks."""
    if of not in imported_modules.types_in({"_asyncio": ("Task",)}):
        return None
    done = vars(of).get("done")
    return done if type(done) is types.MethodDescriptorType else None
