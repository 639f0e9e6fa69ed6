"""The two routes of the pack on ComfyUI's server: a sweep between prompts, and the census.

ComfyUI serves each of its routes under ``/api`` as well, and what its middleware refuses never comes here. It
checks the origin of a request only if the server is called by a loopback name, and lets in what a page may
send without asking first, such as a form. So the routes check for themselves.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from importlib import import_module
from ipaddress import ip_address
from threading import Thread
from typing import TypeVar
from urllib.parse import urlsplit

from aiohttp import web

import fastpurge
from fastpurge.comfy.nodes.outcome_text import tell, to_dict
from fastpurge.comfy.server import between_prompts, request_checks
from fastpurge.python_facts.object_types import reason_of

SWEEP = "/fastpurge/sweep"
CENSUS = "/fastpurge/census"

_MAX_BODY = 64 << 10
_RETRY_AFTER = "2"

_log = logging.getLogger("fastpurge")
_T = TypeVar("_T")
_Handler = Callable[[web.Request], Awaitable[web.Response]]
_sweeping = asyncio.Lock()
_counting = asyncio.Lock()  # a walk over the heap keeps every other thread waiting: one at a time


def add(routes: web.RouteTableDef) -> None:
    """Put the routes on a server that has not started."""
    # For every method: else a wrong one is looked for among the files of the front end, and not found.
    routes.route("*", SWEEP)(_checked("POST", _sweep))
    routes.route("*", CENSUS)(_checked("GET", _census))


def _checked(method: str, handler: _Handler) -> _Handler:
    async def handle(request: web.Request) -> web.Response:
        if request.method != method:
            error = f"{request.path} is for {method}, not for {request.method}"
            return _refused(405, error, Allow=method)
        if _is_foreign(request):
            return _refused(403, f"not for a page from {request.headers['Origin']}")
        try:
            return await handler(request)
        except request_checks.Refused as refused:
            return _refused(400, str(refused))
        except between_prompts.Busy as busy:
            return _refused(409, f"{busy}; nothing was done", **{"Retry-After": _RETRY_AFTER})
        except Exception as error:  # noqa: BLE001 - it is told, as JSON like the rest
            _log.exception("%s %s failed", request.method, request.path)
            return _refused(500, reason_of(error))

    return handle


async def _sweep(request: web.Request) -> web.Response:
    """Purge between prompts."""
    if request.content_type != "application/json":
        # A page of another origin may send a form or plain text without asking, and JSON only if it is let.
        return _refused(415, f"Content-Type: application/json, not {request.content_type}")
    body = await _body(request)
    if body is None:
        return _refused(413, f"the body: {_MAX_BODY:,} bytes at most")
    request_checks.no_query(request.query)
    asked = request_checks.sweep(body)
    if _sweeping.locked():
        raise between_prompts.Busy("another purge is under way")
    async with _sweeping:
        outcome = await _off_the_loop(partial(between_prompts.purge, asked.purge, **asked.options))
    lines = tell(outcome)
    _log.info("%s: %s", outcome.report.label, "; ".join(lines))
    return web.json_response({"purge": asked.purge, "lines": lines, **to_dict(outcome)})


async def _census(request: web.Request) -> web.Response:
    """Say who holds the memory."""
    top = request_checks.top(request.query)
    async with _counting:
        census = await _off_the_loop(partial(fastpurge.census, top=top))
    return web.json_response(census.to_dict())


async def _off_the_loop(work: Callable[[], _T]) -> _T:
    """Do what takes long in a thread of its own. One of a pool would keep ComfyUI from ending."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()  # whoever does not wait for it does not end it

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the work is awaited
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)


async def _body(request: web.Request) -> bytes | None:
    """The body; None if it is too large to be read."""
    body = bytearray()
    try:
        async for part in request.content.iter_any():
            body += part
            if len(body) > _MAX_BODY:
                return None
    except (web.RequestPayloadError, ConnectionError) as error:  # who hangs up has asked for nothing
        raise request_checks.Refused(f"the body: {error}") from None
    return bytes(body)


def _is_foreign(request: web.Request) -> bool:
    """Whether a web page sends it that is neither the server's own nor of an origin that ComfyUI lets in.

    A name can be made to lead anywhere while its pages are open, so a page counts as the server's own only if
    it was opened by the server's address.
    """
    origin = request.headers.get("Origin")
    if origin is None or import_module("comfy.cli_args").args.enable_cors_header in (origin, "*"):
        return False
    try:
        own = urlsplit(f"//{request.host}")
        return urlsplit(origin).netloc.lower() != own.netloc.lower() or not _is_address(own.hostname)
    except ValueError:
        return True


def _is_address(host: str | None) -> bool:
    try:
        return host == "localhost" or bool(ip_address(host or ""))
    except ValueError:
        return False


def _refused(status: int, error: str, **headers: str) -> web.Response:
    return web.json_response({"error": error}, status=status, headers=headers)
