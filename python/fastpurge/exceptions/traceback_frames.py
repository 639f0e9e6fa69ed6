"""The frames of tracebacks and of what called them: found along the chain of exceptions, and cleared."""

import builtins
import gc
import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fastpurge import _core
from fastpurge.exceptions.let_go_result import Held, LiveObjects
from fastpurge.python_facts.object_types import is_a, is_exactly
from fastpurge.python_facts.running_code import FRAME_ATTRIBUTES

FrameSource = BaseException | types.TracebackType | types.FrameType
"""What frames can be found from."""

# The descriptors of the base class: a property of a subclass must not run.
cause_of = cast(Any, BaseException.__dict__["__cause__"]).__get__
context_of = cast(Any, BaseException.__dict__["__context__"]).__get__
traceback_of = cast(Any, BaseException.__dict__["__traceback__"]).__get__
args_descriptor = cast(Any, BaseException.__dict__["args"])
attributes_of = cast(Any, BaseException.__dict__["__dict__"]).__get__
GROUP: Any = getattr(builtins, "BaseExceptionGroup", None)  # from Python 3.11

_CONTAINERS = (list, tuple, set, frozenset, dict)
_MAY_BE_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@dataclass(frozen=True, slots=True)
class TracebackFrame:
    """A frame, its line, and whether it is in a traceback or only called the outermost frame of one."""

    frame: types.FrameType
    line: int
    of_traceback: bool

    def __str__(self) -> str:
        code = self.frame.f_code
        name = getattr(code, "co_qualname", code.co_name)  # from Python 3.11
        return f"{name} ({Path(code.co_filename).name}:{self.line})"


def exceptions_and_frames(
    sources: Iterable[FrameSource],
) -> tuple[list[BaseException], list[TracebackFrame]]:
    """The exceptions with all causes, contexts and group members, and all frames, the innermost first."""
    errors: list[BaseException] = []
    frames: list[TracebackFrame] = []
    seen = _core.IdSet()
    pending: list[Any] = list(sources)
    while pending:
        one = pending.pop(0)
        if one in seen:
            continue
        seen.add(one)
        if is_a(one, BaseException):
            errors.append(one)
            pending += _related(one)
        elif is_a(one, types.TracebackType):
            frames += _frames_of(one)
        elif is_a(one, types.FrameType):
            frames += _callers(one)
    return errors, frames


def _related(error: BaseException) -> Iterator[object]:
    yield traceback_of(error)
    yield cause_of(error)
    yield context_of(error)
    if GROUP is not None and is_a(error, GROUP):
        yield from GROUP.exceptions.__get__(error)
    yield from _within((*args_descriptor.__get__(error), *attributes_of(error).values()))


def _within(values: Iterable[object]) -> Iterator[object]:
    """The exceptions and tracebacks among some values, also in plain containers."""
    seen = _core.IdSet()
    pending = [*values]
    while pending:
        one = pending.pop()
        if is_a(one, BaseException, types.TracebackType):
            yield one
        elif is_exactly(one, _CONTAINERS) and one not in seen:
            seen.add(one)
            pending += one.values() if type(one) is dict else cast(Iterable[object], one)


def _frames_of(traceback: types.TracebackType) -> Iterator[TracebackFrame]:
    """The frames of a traceback, then the callers of the outermost: a frame owns its caller (``f_back``)."""
    steps = [traceback]
    while (inner := steps[-1].tb_next) is not None:
        steps.append(inner)
    yield from (TracebackFrame(step.tb_frame, step.tb_lineno, of_traceback=True) for step in reversed(steps))
    yield from _callers(traceback.tb_frame.f_back)


def _callers(frame: types.FrameType | None) -> Iterator[TracebackFrame]:
    while frame is not None:
        yield TracebackFrame(frame, frame.f_lineno, of_traceback=False)
        frame = frame.f_back


def clear_frames(frames: list[TracebackFrame], live: LiveObjects) -> tuple[list[Held], list[TracebackFrame]]:
    """Clear the locals of all frames that have ended.

    Returns what was freed by each frame, and the frames of tracebacks that are running or suspended.
    """
    freed: list[Held] = []
    running: list[TracebackFrame] = []
    suspended = suspended_frames(frames)
    done = _core.IdSet()
    for one in frames:
        if one.frame in done:
            continue
        done.add(one.frame)
        if one.frame in suspended or not clear_frame(one.frame):
            running += [one] if one.of_traceback else []
        elif items := live.pop_dead():
            freed.append(Held(str(one), items))
    return freed, running


def clear_frame(frame: types.FrameType) -> bool:
    """Clear the locals of a frame; ``False`` if it is running."""
    try:
        frame.clear()
    except RuntimeError:  # it is running
        return False
    # Before 3.13 a frame whose locals a debugger has read has a copy of them, which `clear` leaves. Reading
    # `f_locals` updates the copy (PyFrame_FastToLocals in Objects/frameobject.c).
    _ = frame.f_locals
    return True


def suspended_frames(frames: list[TracebackFrame]) -> _core.IdSet:
    """The frames of suspended generators and coroutines: before 3.13 `frame.clear` would end these."""
    may_be = [one.frame for one in frames if one.frame.f_code.co_flags & _MAY_BE_SUSPENDED]
    if not may_be or gc.get_freeze_count():
        return _core.IdSet(may_be)  # a scan does not find frozen generators: any of these may be suspended
    return _core.IdSet(
        getattr(one, FRAME_ATTRIBUTES[type(one)]) for one in _core.scan(tuple(FRAME_ATTRIBUTES))
    )
