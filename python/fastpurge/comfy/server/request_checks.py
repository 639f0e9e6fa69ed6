"""What a request to the routes asks for, checked before anything is touched."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from fastpurge.comfy.server.between_prompts import LEAST_MIN_BYTES, Kind

MAX_WAIT = 600
MAX_TOP = 1000
MAX_LABEL = 200

_Options = dict[str, Any]


class Refused(ValueError):  # noqa: N818 - an answer
    """The request is not what it has to be. The message names the field, and what it accepts."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to purge, and the other arguments of `between.purge`."""

    purge: Kind
    options: _Options = field(default_factory=dict)


def sweep(body: bytes) -> Sweep:
    """Read the body of a request for a sweep.

    Raises:
        Refused: it is not JSON, no object, or a field is not what it has to be.

    """
    given = _object(body)
    if unknown := given.keys() - {"purge", "min_bytes", "label", "wait"}:
        raise Refused(f"{sorted(unknown)[0]}: no such field; there are purge, min_bytes, label, wait")
    purge = given.get("purge", "ram")
    if type(purge) is not str or purge not in get_args(Kind):
        raise Refused(f"purge: one of {', '.join(get_args(Kind))}, not {_shown(purge)}")
    options: _Options = {"label": _label(given.get("label", "POST /fastpurge/sweep"))}
    if "min_bytes" in given:
        if purge == "vram":
            raise Refused("min_bytes: not with a purge of vram, which touches no data")
        options["min_bytes"] = _number("min_bytes", given["min_bytes"], LEAST_MIN_BYTES, 1 << 62)
    if "wait" in given:
        options["wait"] = _number("wait", given["wait"], 0, MAX_WAIT)
    return Sweep(purge, options)  # type: ignore[arg-type]


def no_query(query: Mapping[str, str]) -> None:
    """See to it that nothing is asked for where nobody would read it.

    Raises:
        Refused: something is.

    """
    for name in query:
        raise Refused(f"{name}: goes into the body, as JSON, and not into the address")


def top(query: Mapping[str, str]) -> int:
    """Read the query of a request for a census: how many of the largest to name, 20 by default.

    Raises:
        Refused: it is no whole number from 0 to `MAX_TOP`, or something else is asked for.

    """
    for name in query:
        if name != "top":
            raise Refused(f"{name}: no such parameter; there is top")
    text = query.get("top", "20")
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_TOP)) and int(text) <= MAX_TOP):
        raise Refused(f"top: a whole number from 0 to {MAX_TOP}, not {_shown(text)}")
    return int(text)


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body, object_pairs_hook=_without_twins)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body: no JSON ({error})") from None
    if type(given) is not dict:
        raise Refused(f"the body: a JSON object, not {_shown(given)}")
    return given


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise Refused(f"{_shown(name)}: twice in one object")
    return dict(pairs)


def _number(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Refused(f"{name}: a whole number from {least} to {most}, not {_shown(value)}")
    return value


def _label(value: object) -> str:
    """It goes into the log and into errors: one line."""
    if type(value) is not str or not 0 < len(value) <= MAX_LABEL or not value.isprintable():
        raise Refused(f"label: one line of text, 1 to {MAX_LABEL} characters, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}..."
