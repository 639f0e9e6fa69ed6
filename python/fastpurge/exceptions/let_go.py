"""What an exception still holds: the frames of its traceback, of those it came from, and its own values.

After an error in a notebook, or with `sys.last_exc` in any interactive session, the locals of every
function that the error went through stay alive: activations, batches, models. They are let go here; the
text of the traceback stays as it was.
"""

import builtins
import gc
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import TracebackException
from typing import Any, cast

from fastpurge import _core
from fastpurge.engine.keep_argument import check_keep
from fastpurge.exceptions.let_go_result import Held, LetGo, LiveObjects, reaching_unkept
from fastpurge.python_facts.object_types import is_a, type_name
from fastpurge.torch_facts.recorders import Unrecorded, never_compiled

FrameSource = BaseException | types.TracebackType | types.FrameType
"""Where frames are found."""

# As everywhere, a subclass's property is not asked.
_cause = cast(Any, BaseException.__dict__["__cause__"]).__get__
_context = cast(Any, BaseException.__dict__["__context__"]).__get__
_traceback = cast(Any, BaseException.__dict__["__traceback__"]).__get__
_args = cast(Any, BaseException.__dict__["args"])
_attributes = cast(Any, BaseException.__dict__["__dict__"]).__get__
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", None)  # from Python 3.11

_CONTAINERS = (list, tuple, set, frozenset, dict)

# What exceptions hold in C, beside their arguments (Objects/exceptions.c).
_MEMBERS: dict[str, type] = {"obj": AttributeError, "value": StopIteration}

_MAY_BE_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@never_compiled
def let_go(error: BaseException | None = None, *, keep: object = ()) -> LetGo:
    """Let go of what an exception holds, and keep the text of its traceback.

    The locals are cleared of every function that has ended, all along the chain of causes, contexts and
    exception groups, and of the functions that called them: a debugger still shows their lines, and no
    values. Values of the exception itself that lead to tensors or modules are exchanged for their text.
    What somebody else holds as well lives on; `sweep` decides on that.

    Args:
        error: the exception; by default the one that Python remembers as last not handled (`sys.last_exc`,
            `sys.last_value`, `sys.last_traceback`), if there is one.
        keep: what the exception's own values may go on to hold, as in `sweep`.

    Raises:
        TypeError: ``error`` is no exception, or ``keep`` names nothing. Nothing was touched.

    Examples:
        >>> import torch
        >>> def train():
        ...     activations = torch.ones(1_000_000)
        ...     raise torch.OutOfMemoryError
        >>> try:
        ...     train()
        ... except torch.OutOfMemoryError as error:
        ...     print(let_go(error))
        fastpurge let go of 3.8M
        ...

    """
    if error is not None and not is_a(error, BaseException):
        raise TypeError(f"error must be an exception or None (the last one), not {type_name(error)}")
    check_keep(keep)
    with Unrecorded():
        return let_go_of(remembered() if error is None else [error], keep)


def remembered() -> list[FrameSource]:
    """What Python remembers of the last exception that was not handled."""
    names = ("last_exc", "last_value", "last_traceback")
    found: list[Any] = [getattr(sys, name, None) for name in names]
    return [one for one in found if is_a(one, BaseException, types.TracebackType)]


def let_go_of(roots: Iterable[FrameSource], keep: object) -> LetGo:
    """Let go of what exceptions, tracebacks and frames hold, as `let_go` says."""
    errors, frames = _chain(roots)
    try:
        texts = [_text(error) for error in errors]
        live = LiveObjects()
    except MemoryError:  # which is what this is for: first let go
        running = [one for one in frames if one.frame in _suspended(frames) or not _clear_one(one.frame)]
        return LetGo((), (_TOO_LITTLE, *_still_running(running)))
    held, running = _clear(frames, live)
    remains = _still_running(running)
    for error, text, places in zip(errors, texts, _places(errors, keep), strict=True):
        if reason := _exchange(error, places, text):
            remains.append(f"{type_name(error)}: {reason}")
        if items := live.pop_dead():
            held.append(Held(f"{type_name(error)}, the exception itself", items))
    if items := live.collect_and_pop_dead():
        held.append(Held("cycles that these were in", items))
    return LetGo(tuple(held), tuple(remains))


_TOO_LITTLE = "too little memory to say what was held; the locals of functions that have ended are cleared"


def _still_running(frames: Iterable["_Frame"]) -> list[str]:
    return [f"{frame} is still running and holds its values" for frame in frames if frame.of_traceback]


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame to clear, and where it stands."""

    frame: types.FrameType
    line: int
    of_traceback: bool

    def __str__(self) -> str:
        code = self.frame.f_code
        name = getattr(code, "co_qualname", code.co_name)  # from Python 3.11
        return f"{name} ({Path(code.co_filename).name}:{self.line})"


def _chain(roots: Iterable[FrameSource]) -> tuple[list[BaseException], list[_Frame]]:
    """All exceptions that these lead to as causes and the like, and all frames, the innermost first."""
    errors: list[BaseException] = []
    frames: list[_Frame] = []
    met = _core.IdSet()
    pending: list[Any] = list(roots)
    while pending:
        one = pending.pop(0)
        if one in met:
            continue
        met.add(one)
        if is_a(one, BaseException):
            errors.append(one)
            pending += _related(one)
        elif is_a(one, types.TracebackType):
            frames += _frames_of(one)
        elif is_a(one, types.FrameType):
            frames += _callers(one)
    return errors, frames


def _related(error: BaseException) -> Iterator[object]:
    yield _traceback(error)
    yield _cause(error)
    yield _context(error)
    if _GROUP is not None and is_a(error, _GROUP):
        yield from _GROUP.exceptions.__get__(error)
    yield from _within((*_args.__get__(error), *_attributes(error).values()))


def _within(values: Iterable[object]) -> Iterator[object]:
    """The exceptions and tracebacks among some values, and in plain containers of such."""
    met = _core.IdSet()
    pending = [*values]
    while pending:
        one = pending.pop()
        if is_a(one, BaseException, types.TracebackType):
            yield one
        elif type(one) in _CONTAINERS and one not in met:
            met.add(one)
            pending += one.values() if type(one) is dict else cast(Iterable[object], one)


def _frames_of(traceback: types.TracebackType) -> Iterator[_Frame]:
    """The frames of a traceback, and of what called the outermost: a frame that is alive keeps its caller."""
    steps = [traceback]
    while (inner := steps[-1].tb_next) is not None:
        steps.append(inner)
    yield from (_Frame(step.tb_frame, step.tb_lineno, of_traceback=True) for step in reversed(steps))
    yield from _callers(traceback.tb_frame.f_back)


def _callers(frame: types.FrameType | None) -> Iterator[_Frame]:
    while frame is not None:
        yield _Frame(frame, frame.f_lineno, of_traceback=False)
        frame = frame.f_back


def _clear(frames: list[_Frame], live: LiveObjects) -> tuple[list[Held], list[_Frame]]:
    """Clear the locals of frames; what died of it, and those of a traceback that still run or will go on."""
    held: list[Held] = []
    running: list[_Frame] = []
    alive = _suspended(frames)
    done = _core.IdSet()
    for one in frames:
        if one.frame in done:
            continue
        done.add(one.frame)
        if one.frame in alive or not _clear_one(one.frame):
            running += [one] if one.of_traceback else []
        elif items := live.pop_dead():
            held.append(Held(str(one), items))
    return held, running


def _clear_one(frame: types.FrameType) -> bool:
    try:
        frame.clear()
    except RuntimeError:  # it is running
        return False
    # Before 3.13 a frame whose locals a debugger has read keeps a copy, which `clear` leaves; asking for
    # it brings it up to date (PyFrame_FastToLocals in Objects/frameobject.c).
    _ = frame.f_locals
    return True


def _suspended(frames: list[_Frame]) -> _core.IdSet:
    """Frames of generators and coroutines that will go on: before 3.13 `frame.clear` would end them."""
    may_be = [one.frame for one in frames if one.frame.f_code.co_flags & _MAY_BE_SUSPENDED]
    if not may_be or gc.get_freeze_count():
        return _core.IdSet(may_be)  # what is frozen is not found, and would be taken for one that has ended
    attributes = {
        types.GeneratorType: "gi_frame",
        types.CoroutineType: "cr_frame",
        types.AsyncGeneratorType: "ag_frame",
    }
    return _core.IdSet(getattr(one, attributes[type(one)]) for one in _core.scan(tuple(attributes)))


def _text(error: BaseException) -> str:
    """What the last lines of the exception's traceback say."""
    told = TracebackException(type(error), error, _traceback(error), limit=0, compact=True)
    return "".join(told.format_exception_only())


# Which sort of place, and the index or the name there.
_Place = tuple[str, Any]


def _places(errors: list[BaseException], keep: object) -> list[list[_Place]]:
    """Where each exception itself holds what leads to tensors or modules."""
    places = [(number, place, value) for number, one in enumerate(errors) for place, value in _values(one)]
    found: list[list[_Place]] = [[] for _ in errors]
    if places:
        outside = reaching_unkept((value for _, _, value in places), keep)
        for (number, place, _), yes in zip(places, outside, strict=True):
            if yes:
                found[number].append(place)
    return found


def _values(error: BaseException) -> Iterator[tuple[_Place, object]]:
    # The arguments of a group are the exceptions in it, which are looked at themselves.
    if _GROUP is None or not is_a(error, _GROUP):
        yield from ((("args", at), value) for at, value in enumerate(_args.__get__(error)))
    yield from ((("attribute", name), value) for name, value in _attributes(error).items())
    for name, of in _MEMBERS.items():
        if is_a(error, of):
            yield ("member", name), cast(Any, of.__dict__[name]).__get__(error)


def _exchange(error: BaseException, places: list[_Place], text: str) -> str | None:
    """Exchange the values there for their text; why not all of them, if so.

    What is not printed needs none: most values are exchanged for a word.
    """
    before = dict(_values(error))
    name = _name_of(error)
    left: list[_Place] = []
    for tell in (_Word, _Text):
        told = {place: None if place[0] == "member" else _told(tell, before[place]) for place in places}
        left = [place for place in places if told[place] is before[place] is not None]
        _put(error, {**before, **told})
        if _says(error, text):
            return "it holds what cannot say what it is" if left else None
    _put(error, before)
    _set_name(error, name)
    return "without its values it would not say the same" if places else "its text has changed"


def _told(tell: Callable[[object], object], value: object) -> object:
    """What stands for a value: itself, if it cannot be told."""
    try:
        return tell(value)
    except Exception:  # noqa: BLE001 - there may be no memory to say what it is, or it was released
        return value


def _says(error: BaseException, text: str) -> bool:
    """Whether an exception says what it said, with what was found while it was printed written into it."""
    if _text(error) == text:
        return True
    _pin(error, text)
    return _text(error) == text


def _put(error: BaseException, values: Mapping[_Place, object]) -> None:
    args = list(_args.__get__(error))
    for (kind, name), value in values.items():
        if kind == "args":
            args[name] = value
        elif kind == "attribute":
            _attributes(error)[name] = value
        else:
            cast(Any, _MEMBERS[name].__dict__[name]).__set__(error, value)
    _args.__set__(error, tuple(args))


def _pin(error: BaseException, text: str) -> None:
    """Write what Python finds only while it prints ("Did you mean ...") into the message.

    It looks for names like the missing one among the locals of the frame, or on the object
    (_compute_suggestion_error in Lib/traceback.py).
    """
    args, name = _args.__get__(error), _name_of(error)
    if name is None or not args or type(args[0]) is not str:
        return
    _set_name(error, None)
    plain, told = _text(error).rstrip("\n"), text.rstrip("\n")
    if told.startswith(plain):
        _args.__set__(error, (args[0] + told[len(plain) :], *args[1:]))
    _set_name(error, name)  # for who reads it; unless that is printed again
    if _text(error) != text:
        _set_name(error, None)


_NAMED = (NameError, AttributeError)


def _name_of(error: BaseException) -> object:
    found = (of.__dict__["name"].__get__(error) for of in _NAMED if is_a(error, of))
    return next(found, None)


def _set_name(error: BaseException, name: object) -> None:
    for of in _NAMED:
        if is_a(error, of):
            of.__dict__["name"].__set__(error, name)


class _Word:
    """What stands where an exception held a value that was let go."""

    def __init__(self, value: object) -> None:
        self._word = f"<{type_name(value)}, let go>"

    def __repr__(self) -> str:
        return self._word


class _Text:
    """The same, where the text of the exception has it."""

    def __init__(self, value: object) -> None:
        self._text, self._repr = str(value), repr(value)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._repr
