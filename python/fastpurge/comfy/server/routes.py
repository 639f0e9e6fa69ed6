"""The two routes of the pack on ComfyUI's server: a sweep between prompts, and the census.

ComfyUI serves each route under ``/api`` as well. Its middleware checks the origin of a request only if the
host of the request is a loopback name. It also accepts requests that browsers send across origins without a
CORS preflight, such as forms. So the routes check the origin and the content type themselves.
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
from fastpurge.comfy.nodes.format_outcome import to_dict, to_lines
from fastpurge.comfy.server import between_prompts, request_checks
from fastpurge.python_facts.object_types import reason_of

SWEEP = "/fastpurge/sweep"
CENSUS = "/fastpurge/census"

_MAX_BODY = 64 << 10
_RETRY_AFTER = "2"

_log = logging.getLogger("fastpurge")
_T = TypeVar("_T")
_Handler = Callable[[web.Request], Awaitable[web.Response]]
_sweep_lock = asyncio.Lock()
_census_lock = asyncio.Lock()  # a heap walk holds the GIL: one at a time


def add_routes(routes: web.RouteTableDef) -> None:
    """Add the routes to a server that has not started."""
    # For every method: ComfyUI would look up other methods among its static files, and answer 404.
    routes.route("*", SWEEP)(_checked("POST", _sweep))
    routes.route("*", CENSUS)(_checked("GET", _census))


def _checked(method: str, handler: _Handler) -> _Handler:
    async def handle(request: web.Request) -> web.Response:
        if request.method != method:
            error = f"{request.path} is for {method}, not for {request.method}"
            return _error_response(405, error, Allow=method)
        if _is_cross_origin(request):
            return _error_response(403, f"cross-origin request from {request.headers['Origin']}")
        try:
            return await handler(request)
        except request_checks.BadRequest as refused:
            return _error_response(400, str(refused))
        except between_prompts.Busy as busy:
            return _error_response(409, f"{busy}; nothing was done", **{"Retry-After": _RETRY_AFTER})
        except Exception as error:  # noqa: BLE001 - answered as JSON, like other errors
            _log.exception("%s %s failed", request.method, request.path)
            return _error_response(500, reason_of(error))

    return handle


async def _sweep(request: web.Request) -> web.Response:
    """Purge between prompts."""
    if request.content_type != "application/json":
        # Browsers send forms and plain text across origins without a preflight, but not JSON.
        return _error_response(415, f"Content-Type: application/json, not {request.content_type}")
    body = await _read_body(request)
    if body is None:
        return _error_response(413, f"the body: {_MAX_BODY:,} bytes at most")
    request_checks.check_no_query(request.query)
    asked = request_checks.parse_sweep(body)
    if _sweep_lock.locked():
        raise between_prompts.Busy("another purge is under way")
    async with _sweep_lock:
        outcome = await _run_in_thread(partial(between_prompts.purge, asked.purge, **asked.options))
    lines = to_lines(outcome)
    _log.info("%s: %s", outcome.report.label, "; ".join(lines))
    return web.json_response({"purge": asked.purge, "lines": lines, **to_dict(outcome)})


async def _census(request: web.Request) -> web.Response:
    """Answer with a census."""
    top = request_checks.parse_top(request.query)
    async with _census_lock:
        census = await _run_in_thread(partial(fastpurge.census, top=top))
    return web.json_response(census.to_dict())


async def _run_in_thread(work: Callable[[], _T]) -> _T:
    """Await work in a daemon thread. A thread of a pool would delay the exit of ComfyUI."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()  # so that cancelling the request does not cancel it

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the work is awaited
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)


async def _read_body(request: web.Request) -> bytes | None:
    """The body; None if it is larger than `_MAX_BODY`."""
    body = bytearray()
    try:
        async for part in request.content.iter_any():
            body += part
            if len(body) > _MAX_BODY:
                return None
    except (web.RequestPayloadError, ConnectionError) as error:  # incomplete requests are ignored
        raise request_checks.BadRequest(f"the body: {error}") from None
    return bytes(body)


def _is_cross_origin(request: web.Request) -> bool:
    """Whether a web page sent it that is neither the server's own nor of an origin that ComfyUI allows.

    DNS rebinding can point a host name at this server, so a page counts as the server's own only if it was
    opened by IP address or as ``localhost``.
    """
    origin = request.headers.get("Origin")
    if origin is None or import_module("comfy.cli_args").args.enable_cors_header in (origin, "*"):
        return False
    try:
        own = urlsplit(f"//{request.host}")
        return urlsplit(origin).netloc.lower() != own.netloc.lower() or not _is_ip_or_localhost(own.hostname)
    except ValueError:
        return True


def _is_ip_or_localhost(host: str | None) -> bool:
    try:
        return host == "localhost" or bool(ip_address(host or ""))
    except ValueError:
        return False


def _error_response(status: int, error: str, **headers: str) -> web.Response:
    return web.json_response({"error": error}, status=status, headers=headers)
