"""The roots of referrer paths: globals of modules, locals of running functions, exceptions being handled."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any

from fastpurge import _core
from fastpurge.python_facts import imported_modules
from fastpurge.python_facts.imported_modules import namespace
from fastpurge.python_facts.object_types import is_a, type_name


@dataclass(slots=True, eq=False)  # frozen, one of thousands takes three times as long to make
class Root:
    """An object that is alive because the interpreter uses it.

    Attributes:
        obj: the namespace of a module or of running code, or an exception.
        name: the name of the module, or the type of the exception; empty for the locals of a function.
        where: where it is, in words; empty for a module.
        module: the name of the module, also of the module of a running function.
        frame: the frame of running code.
        is_copy: whether ``obj`` is a dict made for this root, which may be changed.
        is_elsewhere: whether the code runs in another thread.

    """

    obj: Any
    name: str
    where: str
    module: str
    frame: FrameType | None = None
    is_copy: bool = False
    is_elsewhere: bool = False


def find(caller: FrameType | None) -> list[Root]:
    """All roots. Of this thread only the frame ``caller`` and its callers, or no frame if it is None."""
    modules = [*_modules()]
    namespaces = _core.IdSet(root.obj for root in modules)
    threads = _threads()
    running = (root for root in _running(caller, threads) if root.obj not in namespaces)
    return [*modules, *running, *_handled(threads)]


def caller() -> FrameType | None:
    """The innermost frame that runs no code of this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_of_package(frame):
        frame = frame.f_back
    return frame


def place_of_caller() -> tuple[str, int]:
    """The file and the line of the caller of this package; ``("<C code>", 0)`` if that is C code."""
    frame = caller()
    return ("<C code>", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def frame_of(namespace: dict[str, Any]) -> FrameType | None:
    """The innermost frame of this thread that runs code with these globals."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals is not namespace:
        frame = frame.f_back
    return frame


def namespace_of(frame: FrameType) -> Any:
    """The namespace of running code that is not a function; ``None`` if reading it would change it.

    Before 3.13, reading the namespace of a class body removes the names that it shares with its methods and
    that are not set yet, such as ``__class__`` (``PyFrame_FastToLocals`` in Objects/frameobject.c).
    """
    code = frame.f_code
    is_shared = sys.version_info < (3, 13) and (code.co_cellvars or code.co_freevars)
    return None if is_shared else frame.f_locals


def _is_of_package(frame: FrameType) -> bool:
    """Whether a frame runs code of this package."""
    return f"{_module_of(frame)}.".startswith("fastpurge.")


def _modules() -> Iterator[Root]:
    found = imported_modules.modules()
    # `__main__` first: users know that name, if the same namespace has two.
    names = sorted(found, key="__main__".__ne__)
    yield from (Root(namespace(found[name]), name, "", name) for name in names)


def _running(caller: FrameType | None, threads: dict[int, str]) -> Iterator[Root]:
    me = threading.get_ident()
    if caller is not None:
        yield from _locals(caller, threads.get(me, str(me)))
    for thread, frame in _frames_of_others().items():
        for root in _locals(frame, threads.get(thread, str(thread))):
            yield replace(root, is_elsewhere=True)


def _frames_of_others() -> dict[int, FrameType]:
    """The frames of other threads. This one is known by its frame: gevent replaces `threading.get_ident`."""
    frames = sys._current_frames()
    for thread in [*frames]:
        if frames[thread] is sys._getframe():  # not in a variable: the frame would reference itself
            del frames[thread]
    return frames


def _locals(frame: FrameType | None, thread: str) -> Iterator[Root]:
    while frame is not None:
        code = frame.f_code
        where = f"{_place(code, frame.f_lineno)}, thread {thread}"
        is_function = bool(code.co_flags & _NEW_LOCALS)
        obj = _core.frame_locals(frame) if is_function else namespace_of(frame)
        if obj is not None:
            yield Root(obj, "", where, _module_of(frame), frame, is_function)
        frame = frame.f_back


def _module_of(frame: FrameType) -> str:
    name = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else "?"


_NEW_LOCALS = 2  # CO_NEWLOCALS: a function, and not a module or what `exec` runs (Include/cpython/code.h)


def _place(code: CodeType, line: int | None) -> str:
    """The place of code, as in "train() at train.py:33"."""
    return f"{code.co_name}() at {code.co_filename}:{line}"


def _threads() -> dict[int, str]:
    """The names of threads by ident, read without running code of subclasses."""
    threads = (one for one in threading.enumerate() if is_a(one, threading.Thread))
    attributes = [object.__getattribute__(thread, "__dict__") for thread in threads]
    named = [(of.get("_ident"), of.get("_name")) for of in attributes if type(of) is dict]
    return {ident: name for ident, name in named if type(ident) is int and type(name) is str}


def _handled(threads: dict[int, str]) -> Iterator[Root]:
    for thread, handled in sys._current_exceptions().items():
        # Before 3.12 it is a tuple as of `sys.exc_info`.
        error = handled[1] if isinstance(handled, tuple) else handled
        if error is not None:
            where = f"an exception being handled, thread {threads.get(thread, str(thread))}"
            yield Root(error, type_name(error), where, "?")
