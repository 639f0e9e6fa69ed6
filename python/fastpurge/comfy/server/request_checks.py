"""Parse and check the requests to the routes, before anything is purged."""

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


class BadRequest(ValueError):  # noqa: N818 - named after the HTTP status
    """The request is invalid. The message names the field, and what it accepts."""


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What to purge, and the other arguments of `between_prompts.purge`."""

    purge: Kind
    options: _Options = field(default_factory=dict)


def parse_sweep(body: bytes) -> SweepRequest:
    """Parse the body of a request for a sweep.

    Raises:
        BadRequest: the body is not a JSON object, or a field is invalid.

    """
    given = _parse_object(body)
    if unknown := given.keys() - {"purge", "min_bytes", "label", "wait"}:
        raise BadRequest(f"{sorted(unknown)[0]}: no such field; the fields are purge, min_bytes, label, wait")
    purge = given.get("purge", "ram")
    if type(purge) is not str or purge not in get_args(Kind):
        raise BadRequest(f"purge: one of {', '.join(get_args(Kind))}, not {_as_json(purge)}")
    options: _Options = {"label": _parse_label(given.get("label", "POST /fastpurge/sweep"))}
    if "min_bytes" in given:
        if purge == "vram":
            raise BadRequest("min_bytes: not with a purge of vram, which changes no data")
        options["min_bytes"] = _parse_number("min_bytes", given["min_bytes"], LEAST_MIN_BYTES, 1 << 62)
    if "wait" in given:
        options["wait"] = _parse_number("wait", given["wait"], 0, MAX_WAIT)
    return SweepRequest(purge, options)  # type: ignore[arg-type]


def check_no_query(query: Mapping[str, str]) -> None:
    """Refuse query parameters: a sweep reads only the body.

    Raises:
        BadRequest: there is one.

    """
    for name in query:
        raise BadRequest(f"{name}: must be in the JSON body, not in the query string")


def parse_top(query: Mapping[str, str]) -> int:
    """Parse the query of a request for a census: how many of the largest tensors to list, 20 by default.

    Raises:
        BadRequest: it is no integer from 0 to `MAX_TOP`, or there is another parameter.

    """
    for name in query:
        if name != "top":
            raise BadRequest(f"{name}: no such parameter; the only one is top")
    text = query.get("top", "20")
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_TOP)) and int(text) <= MAX_TOP):
        raise BadRequest(f"top: a whole number from 0 to {MAX_TOP}, not {_as_json(text)}")
    return int(text)


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body, object_pairs_hook=_reject_duplicate_keys)
    except BadRequest:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body: not JSON ({error})") from None
    if type(given) is not dict:
        raise BadRequest(f"the body: a JSON object, not {_as_json(given)}")
    return given


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise BadRequest(f"{_as_json(name)}: more than once in one object")
    return dict(pairs)


def _parse_number(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise BadRequest(f"{name}: a whole number from {least} to {most}, not {_as_json(value)}")
    return value


def _parse_label(value: object) -> str:
    """One line, because it appears in the log and in errors."""
    if type(value) is not str or not 0 < len(value) <= MAX_LABEL or not value.isprintable():
        raise BadRequest(f"label: one line of text, 1 to {MAX_LABEL} characters, not {_as_json(value)}")
    return value


def _as_json(value: object) -> str:
    """The value as in the request, shortened; `fastpurge.arguments.show` would write it in Python syntax."""
    text = json.dumps(value)
    return text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}..."
