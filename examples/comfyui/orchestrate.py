"""Purge many ComfyUI servers at once, each between two of its prompts.

    python orchestrate.py http://10.0.0.1:8188 http://10.0.0.2:8188
    python orchestrate.py --purge all --wait 300 --attempts 5 --json http://10.0.0.1:8188

Each server needs the fastpurge pack. A line for each says what came of it, or with ``--json`` an object. One
that runs a prompt is given time until that has ended, and asked again as often as ``--attempts`` says.

Exit status: 0 if every server has purged, 1 if one has not, 2 if the command is wrong.

Needs nothing but Python 3.10 or newer. What the server answers: docs/http.md.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

LABEL = "orchestrate.py"
MOST_AT_ONCE = 64


@dataclass(frozen=True)
class Answer:
    """What came of one server.

    Attributes:
        server: its address.
        status: the HTTP status of its last answer; 0 if there was none.
        said: what it did, or why it did not.
        freed: bytes it has given back, by device.

    """

    server: str
    status: int
    said: str
    freed: dict[str, int]

    @property
    def is_done(self) -> bool:
        """Whether it has purged."""
        return self.status == HTTPStatus.OK


def main() -> int:
    """Purge what the command line says."""
    options = _options()
    with ThreadPoolExecutor(min(len(options.servers), MOST_AT_ONCE)) as pool:
        answers = [*pool.map(lambda server: purge(server, options), options.servers)]
    for answer in answers:
        print(json.dumps(asdict(answer)) if options.json else f"{answer.server}: {answer.said}", flush=True)
    return 0 if all(answer.is_done for answer in answers) else 1


def purge(server: str, options: argparse.Namespace) -> Answer:
    """Ask a server to purge, again while it is busy."""
    for attempts_left in reversed(range(options.attempts)):
        answer, retry_after = _ask(server, options)
        if answer.status != HTTPStatus.CONFLICT or not attempts_left:
            break
        time.sleep(retry_after)
    return answer


def _ask(server: str, options: argparse.Namespace) -> tuple[Answer, float]:
    """Ask once. Gives the answer, and if the server is busy the seconds after which to ask again."""
    body = json.dumps({"purge": options.purge, "wait": options.wait, "label": LABEL}).encode()
    request = Request(  # noqa: S310 - `_server` has seen to it that the address is one of HTTP
        f"{server}/fastpurge/sweep", data=body, headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        # The server waits for as long as it was asked to, and then purges.
        with urlopen(request, timeout=options.wait + options.timeout) as response:  # noqa: S310
            data = json.load(response)
            return Answer(server, response.status, "; ".join(data["lines"]), data["freed_by_device"]), 0
    except HTTPError as refused:
        retry_after = refused.headers.get("Retry-After", "")
        seconds = float(retry_after) if retry_after.isdecimal() else 1.0
        return Answer(server, refused.code, f"not purged: {_why(refused)}", {}), seconds
    except (OSError, HTTPException, ValueError, KeyError) as error:
        reason = getattr(error, "reason", error)
        return Answer(server, 0, f"no answer: {reason or type(error).__name__}", {}), 0


def _why(refused: HTTPError) -> str:
    """What the server says, or else what its status means."""
    try:
        return str(json.load(refused)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        pack = " (is the fastpurge pack installed?)" if refused.code in (404, 405) else ""
        return f"{refused.code} {refused.reason}{pack}"


def _options() -> argparse.Namespace:
    about, *_ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "servers", nargs="+", type=_server, metavar="URL", help="http://HOST:PORT of a ComfyUI"
    )
    parser.add_argument("--purge", choices=("vram", "ram", "all"), default="ram", help="default: %(default)s")
    parser.add_argument(
        "--wait",
        type=_number(0, 600),
        default=60,
        metavar="SECONDS",
        help="how long a server may wait for the prompt that it runs, up to 600; default: %(default)s",
    )
    parser.add_argument(
        "--attempts", type=_number(1, 1000), default=3, help="how often to ask one that is busy; default: 3"
    )
    parser.add_argument(
        "--timeout",
        type=_number(1, 3600),
        default=60,
        metavar="SECONDS",
        help="how long a purge itself may take; default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="an object for each server, one a line")
    return parser.parse_args()


def _server(text: str) -> str:
    of = urlsplit(text)
    if of.scheme not in ("http", "https") or not of.hostname or of.query or of.fragment:
        raise argparse.ArgumentTypeError(
            f"not the address of a server: {text!r}; such as http://10.0.0.1:8188"
        )
    return text.rstrip("/")


def _number(least: int, most: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
