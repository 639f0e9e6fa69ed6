"""Frees what an exception keeps alive: locals of the frames of its tracebacks, and its own values.

After an error in a notebook, or with `sys.last_exc` in any interactive session, the locals of every
function that the error passed through stay alive: activations, batches, models. `let_go` clears them; the
text of the traceback stays the same.
"""

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from traceback import TracebackException
from typing import Any, cast

from fastpurge.engine.keep_argument import check_keep
from fastpurge.exceptions.let_go_result import Held, LetGo, LiveObjects, reaching_unkept
from fastpurge.exceptions.traceback_frames import (
    GROUP,
    FrameSource,
    TracebackFrame,
    args_descriptor,
    attributes_of,
    clear_frame,
    clear_frames,
    exceptions_and_frames,
    suspended_frames,
    traceback_of,
)
from fastpurge.python_facts.object_types import is_a, type_name
from fastpurge.torch_facts.recorders import Unrecorded, never_compiled

# What exceptions have in C fields, besides their arguments (Objects/exceptions.c).
_MEMBERS: dict[str, type] = {"obj": AttributeError, "value": StopIteration}


@never_compiled
def let_go(error: BaseException | None = None, *, keep: object = ()) -> LetGo:
    """Free what an exception keeps alive, and leave the text of its traceback as it is.

    Clears the locals of every function that has ended, along the whole chain of causes, contexts and
    exception groups, and of the functions that called them. A debugger still shows their lines, but no
    values. Values of the exception itself from which a tensor or module can be reached are replaced by their
    text. What has another owner stays alive; `sweep` decides about that.

    Args:
        error: the exception. By default the last one that was not handled, as Python remembers it
            (`sys.last_exc`, `sys.last_value`, `sys.last_traceback`), if there is one.
        keep: the exception's own values may go on to reference these objects, as in `sweep`.

    Returns:
        What was freed, by owner, and what could not be freed.

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
        fastpurge let go of 3.8 MiB
        ...

    """
    if error is not None and not is_a(error, BaseException):
        raise TypeError(f"error must be an exception or None (the last one), not {type_name(error)}")
    check_keep(keep)
    with Unrecorded():
        return let_go_of(remembered() if error is None else [error], keep)


def remembered() -> list[FrameSource]:
    """The last exception that was not handled, and its traceback, as Python remembers them."""
    names = ("last_exc", "last_value", "last_traceback")
    found: list[Any] = [getattr(sys, name, None) for name in names]
    return [one for one in found if is_a(one, BaseException, types.TracebackType)]


def let_go_of(sources: Iterable[FrameSource], keep: object) -> LetGo:
    """Free what exceptions, tracebacks and frames keep alive, as `let_go` does."""
    errors, frames = exceptions_and_frames(sources)
    try:
        texts = [_text(error) for error in errors]
        live = LiveObjects()
    except MemoryError:  # freeing memory comes first; a report needs some
        running = [
            one for one in frames if one.frame in suspended_frames(frames) or not clear_frame(one.frame)
        ]
        return LetGo((), (_TOO_LITTLE, *_still_running(running)))
    freed, running = clear_frames(frames, live)
    remains = _still_running(running)
    for error, text, places in zip(errors, texts, _places_to_replace(errors, keep), strict=True):
        if reason := _replace_values(error, places, text):
            remains.append(f"{type_name(error)}: {reason}")
        if items := live.pop_dead():
            freed.append(Held(f"{type_name(error)}, the exception itself", items))
    if items := live.collect_and_pop_dead():
        freed.append(Held("reference cycles through these", items))
    return LetGo(tuple(freed), tuple(remains))


_TOO_LITTLE = (
    "too little memory to report what was freed; the locals of functions that have ended are cleared"
)


def _still_running(frames: Iterable[TracebackFrame]) -> list[str]:
    return [f"{frame} is still running and keeps its locals" for frame in frames if frame.of_traceback]


def _text(error: BaseException) -> str:
    """The last lines of the exception's traceback: its type and message."""
    printed = TracebackException(type(error), error, traceback_of(error), limit=0, compact=True)
    return "".join(printed.format_exception_only())


# Where an exception has a value: "args", "attribute" or "member", and the index or the name.
_Place = tuple[str, Any]


def _places_to_replace(errors: list[BaseException], keep: object) -> list[list[_Place]]:
    """For each exception the places of its values that reach a tensor or module outside ``keep``."""
    places = [(number, place, value) for number, one in enumerate(errors) for place, value in _values(one)]
    found: list[list[_Place]] = [[] for _ in errors]
    if places:
        outside = reaching_unkept((value for _, _, value in places), keep)
        for (number, place, _), yes in zip(places, outside, strict=True):
            if yes:
                found[number].append(place)
    return found


def _values(error: BaseException) -> Iterator[tuple[_Place, object]]:
    # The arguments of a group are the exceptions in it, which have their own turn.
    if GROUP is None or not is_a(error, GROUP):
        yield from ((("args", at), value) for at, value in enumerate(args_descriptor.__get__(error)))
    yield from ((("attribute", name), value) for name, value in attributes_of(error).items())
    for name, of in _MEMBERS.items():
        if is_a(error, of):
            yield ("member", name), cast(Any, of.__dict__[name]).__get__(error)


def _replace_values(error: BaseException, places: list[_Place], text: str) -> str | None:
    """Replace the values at these places by placeholders with the same text; the reason if that failed.

    First by placeholders that only name the type. If the exception's text changes, some value is part of
    the text: then by placeholders with the whole text of each value.
    """
    before = dict(_values(error))
    name = _missing_name(error)
    left: list[_Place] = []
    for placeholder in (_TypePlaceholder, _TextPlaceholder):
        new = {
            place: None if place[0] == "member" else _placeholder_or_value(placeholder, before[place])
            for place in places
        }
        left = [place for place in places if new[place] is before[place] is not None]
        _set_values(error, {**before, **new})
        if _restore_text(error, text):
            return "some of its values cannot be printed, and stay" if left else None
    _set_values(error, before)
    _set_missing_name(error, name)
    return "its text would change without its values" if places else "its text has changed"


def _placeholder_or_value(placeholder: Callable[[object], object], value: object) -> object:
    """A placeholder for a value, or the value itself if it cannot be printed."""
    try:
        return placeholder(value)
    except Exception:  # noqa: BLE001 - a purged object raises; there may be no memory for the text
        return value


def _restore_text(error: BaseException, text: str) -> bool:
    """Have an exception print this text, by writing a lost suggestion into its message; whether it does."""
    if _text(error) == text:
        return True
    _write_suggestion_into_message(error, text)
    return _text(error) == text


def _set_values(error: BaseException, values: Mapping[_Place, object]) -> None:
    args = list(args_descriptor.__get__(error))
    for (kind, name), value in values.items():
        if kind == "args":
            args[name] = value
        elif kind == "attribute":
            attributes_of(error)[name] = value
        else:
            cast(Any, _MEMBERS[name].__dict__[name]).__set__(error, value)
    args_descriptor.__set__(error, tuple(args))


def _write_suggestion_into_message(error: BaseException, text: str) -> None:
    """Write a suggestion ("Did you mean ...") into the message.

    Python computes it while it prints, from the locals of the frame or from the object
    (_compute_suggestion_error in Lib/traceback.py). Both are gone now.
    """
    args, name = args_descriptor.__get__(error), _missing_name(error)
    if name is None or not args or type(args[0]) is not str:
        return
    _set_missing_name(error, None)
    plain, wanted = _text(error).rstrip("\n"), text.rstrip("\n")
    if wanted.startswith(plain):
        args_descriptor.__set__(error, (args[0] + wanted[len(plain) :], *args[1:]))
    _set_missing_name(error, name)  # programs may read `.name`; without it if Python would suggest again
    if _text(error) != text:
        _set_missing_name(error, None)


_WITH_MISSING_NAME = (NameError, AttributeError)


def _missing_name(error: BaseException) -> object:
    found = (of.__dict__["name"].__get__(error) for of in _WITH_MISSING_NAME if is_a(error, of))
    return next(found, None)


def _set_missing_name(error: BaseException, name: object) -> None:
    for of in _WITH_MISSING_NAME:
        if is_a(error, of):
            of.__dict__["name"].__set__(error, name)


class _TypePlaceholder:
    """Stands for a value of an exception; prints the name of the value's type."""

    def __init__(self, value: object) -> None:
        self._text = f"<{type_name(value)}, let go>"

    def __repr__(self) -> str:
        return self._text


class _TextPlaceholder:
    """Stands for a value of an exception; prints the same text as the value."""

    def __init__(self, value: object) -> None:
        self._text, self._repr = str(value), repr(value)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._repr
