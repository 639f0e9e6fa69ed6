"""Where holding begins: globals of modules, locals of running functions, exceptions being handled."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, ModuleType
from typing import Any

from fastpurge import _core


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """Something that is alive because the interpreter uses it.

    Attributes:
        obj: what it is: a namespace by name, or an exception.
        name: what code calls it: of a module its name; empty for the locals of a function.
        where: where that is, in words; empty for a module.
        module: of a module its name; of a running function the name of its module.
        frame: of running code its frame.
        is_copy: whether ``obj`` is made for this, and may be changed.

    """

    obj: Any
    name: str
    where: str
    module: str
    frame: FrameType | None = None
    is_copy: bool = False


def find(caller: FrameType | None) -> list[Root]:
    """Every root there is; of the current thread the frames from ``caller`` on, or none."""
    modules = [*_modules()]
    namespaces = _core.IdSet(root.obj for root in modules)
    running = (root for root in _running(caller) if root.obj not in namespaces)
    return [*modules, *running, *_handled()]


def caller() -> FrameType | None:
    """The frame of the code that has called this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_of_package(frame):
        frame = frame.f_back
    return frame


def is_of_package(frame: FrameType) -> bool:
    """Whether a frame runs code of this package."""
    name = frame.f_globals.get("__name__")
    return type(name) is str and f"{name}.".startswith("fastpurge.")


def _modules() -> Iterator[Root]:
    # A name that a program gives itself is the one its author looks for.
    named = {"__main__": sys.modules.get("__main__"), **sys.modules}
    for name, module in named.items():
        if issubclass(type(module), ModuleType):
            yield Root(namespace(module), name, "", name)


def namespace(module: Any) -> dict[str, Any]:
    """The globals of a module, without asking a subclass that makes them up."""
    found: dict[str, Any] = ModuleType.__getattribute__(module, "__dict__")
    return found


def _running(caller: FrameType | None) -> Iterator[Root]:
    me = threading.get_ident()
    if caller is not None:
        yield from _locals(caller, me)
    others = sys._current_frames()
    del others[me]  # or this frame would hold itself
    for thread, frame in others.items():
        yield from _locals(frame, thread)


def _locals(frame: FrameType | None, thread: int) -> Iterator[Root]:
    while frame is not None:
        code = frame.f_code
        where = f"{place(code, frame.f_lineno)}, thread {_thread_name(thread)}"
        module = frame.f_globals.get("__name__")
        is_function = bool(code.co_flags & _NEW_LOCALS)
        obj = _core.frame_locals(frame) if is_function else frame.f_locals
        yield Root(obj, "", where, module if type(module) is str else "?", frame, is_function)
        frame = frame.f_back


_NEW_LOCALS = 2  # CO_NEWLOCALS: a function, and not a module or what `exec` runs (Include/cpython/code.h)


def place(code: CodeType, line: int | None) -> str:
    """Where code is, as in "train() at train.py:33"."""
    return f"{code.co_name}() at {code.co_filename}:{line}"


def _thread_name(ident: int) -> str:
    for thread in threading.enumerate():
        if thread.ident == ident:
            return thread.name
    return str(ident)


def _handled() -> Iterator[Root]:
    for thread, handled in sys._current_exceptions().items():
        # Before 3.12 it is what `sys.exc_info` gives.
        error = handled[1] if isinstance(handled, tuple) else handled
        if error is not None:
            where = f"an exception being handled, thread {_thread_name(thread)}"
            yield Root(error, type(error).__name__, where, "?")
