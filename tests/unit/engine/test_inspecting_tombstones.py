"""Tombstones answer the inspection by shells and debuggers; only a use raises."""

from __future__ import annotations

import inspect
import io
import os
import pdb
import pprint
import pydoc
import queue
import reprlib
import rlcompleter
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import fastpurge
import pytest
import rich
import torch
from fastpurge import PurgedError
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import KernelManager, start_new_kernel
from rich.console import Console

pytestmark = pytest.mark.usefixtures("small_heap")

KINDS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.ones(2, 3),
    "number": lambda: torch.tensor(1.5),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2, 3)),
    "module": lambda: torch.nn.Linear(3, 3),
}


@pytest.fixture(params=KINDS)
def tombstone(request: Any, program: Any) -> Any:
    program.tombstone = KINDS[request.param]()
    fastpurge.sweep(keep=(), label="node 7")
    assert fastpurge.is_purged(program.tombstone)
    return program.tombstone


def _rich(show: Callable[[Console], object]) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(console)
    shown: str = console.file.getvalue()  # type: ignore[attr-defined]
    return shown


def _debugger(obj: object, *commands: str) -> str:
    said = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO("\n".join([*commands, "q", ""])), stdout=said, nosigint=True)
    debugger.use_rawinput = False
    frame = sys._getframe()
    debugger.reset()
    debugger.setup(frame, None)
    for command in commands:
        debugger.onecmd(command)
    return said.getvalue()


DISPLAYS: dict[str, Callable[[Any], str]] = {
    "repr": repr,
    "str": str,
    "f-string": lambda z: f"{z}",
    "f-string of the repr": lambda z: f"{z!r:>20}",
    "percent": lambda z: "%s %r" % (z, z),  # noqa: UP031
    "docstring": lambda z: str(z.__doc__),
    "getdoc": lambda z: str(inspect.getdoc(z)),
    "help": lambda z: pydoc.plain(pydoc.render_doc(z)),
    "pprint": lambda z: pprint.pformat([z]),
    "reprlib": lambda z: reprlib.repr([z]),
    "rich.print": lambda z: _rich(lambda console: console.print(z)),
    "rich.inspect": lambda z: _rich(lambda console: rich.inspect(z, console=console)),
    "rich.inspect all": lambda z: _rich(lambda console: rich.inspect(z, console=console, all=True)),
    "pdb p": lambda z: _debugger(z, "p obj"),
    "pdb pp": lambda z: _debugger(z, "pp obj"),
    "pdb display": lambda z: _debugger(z, "display obj"),
    "docstring of __init__": lambda z: str(z.__init__.__doc__),
}


@pytest.mark.parametrize("ask", DISPLAYS.values(), ids=DISPLAYS)
def test_every_display_of_a_tombstone_says_that_it_was_purged(ask: Any, tombstone: Any) -> None:
    assert "purged" in ask(tombstone)


INSPECTIONS: dict[str, Callable[[Any], object]] = {
    "dir": dir,
    "getmembers": inspect.getmembers,
    "vars": vars,
    "hasattr __wrapped__": lambda z: not hasattr(z, "__wrapped__"),
    "coroutine": lambda z: not inspect.iscoroutinefunction(z),
    "unwrap": lambda z: inspect.unwrap(z) is z,
    "rlcompleter": lambda z: rlcompleter.Completer({"z": z}).complete("z.", 0),
    "pdb completion": lambda z: _debugger(z, "whatis obj"),
    "type": lambda z: (z.__class__.__name__, z.__module__),
    "callable": lambda z: inspect.signature(z) if callable(z) else True,
    "jedi": lambda z: pytest.importorskip("jedi").Interpreter("z.", [{"z": z}]).complete(1, 2),
    "jedi, a call": lambda z: pytest.importorskip("jedi").Interpreter("z(", [{"z": z}]).get_signatures(1, 2),
}


@pytest.mark.parametrize("ask", INSPECTIONS.values(), ids=INSPECTIONS)
def test_inspectors_can_read_special_attributes_of_tombstones(ask: Any, tombstone: Any) -> None:
    assert ask(tombstone)


def test_unknown_attributes_raise_purged_error_and_special_ones_also_attribute_error(tombstone: Any) -> None:
    with pytest.raises(PurgedError, match="node 7") as raised:
        _ = tombstone.__wrapped__
    assert isinstance(raised.value, AttributeError)
    for name in ("shape", "anything", "_private", "_repr_html_"):
        with pytest.raises(
            PurgedError
        ) as raised:  # no AttributeError, or `hasattr` would be False and `getattr` return the default
            getattr(tombstone, name, None)
        assert not isinstance(raised.value, AttributeError)


@pytest.fixture
def shell() -> Iterator[Any]:
    made = InteractiveShell.instance()
    yield made
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("detail", [0, 1])
def test_ipython_inspects_tombstones(
    shell: Any, tombstone: Any, detail: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns["z"] = tombstone
    assert "purged by fastpurge (node 7)" in shell.object_inspect("z", detail_level=detail)["docstring"]
    assert "purged" in shell.object_inspect_mime("z", detail_level=detail)["text/plain"]
    shell.run_line_magic("pinfo2" if detail else "pinfo", "z")
    assert "purged" in capsys.readouterr().out
    with provisionalcompleter():
        assert list(shell.Completer.completions("z.__do", 6))
    assert "purged" in shell.display_formatter.format(tombstone)[0]["text/plain"]


DEBUGPY = """
import torch, fastpurge
referent = [torch.ones(2, 3), torch.nn.Linear(3, 3), torch.nn.Parameter(torch.ones(2))]
fastpurge.sweep(keep=())
import debugpy._vendored.force_pydevd
import pydevd
from _pydevd_bundle import pydevd_resolver, pydevd_xml
from _pydevd_bundle.pydevd_suspended_frames import _ObjectVariable

debugger = pydevd.PyDB(set_as_global=False)
for one in referent:
    name, *_ = pydevd_xml.get_variable_details(one)
    assert name.startswith("Purged"), name
    for resolver in (pydevd_xml.get_type(one)[2], pydevd_resolver.defaultResolver):
        assert resolver is None or resolver.get_contents_debug_adapter_protocol(one)
    variable = _ObjectVariable(debugger, "referent", one, lambda variable: None)
    assert "purged" in variable.get_var_data()["value"]
    assert variable.get_children_variables()
"""


def test_a_debugger_shows_tombstones_among_variables() -> None:
    pytest.importorskip("debugpy")
    environment = {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    subprocess.run([sys.executable, "-c", DEBUGPY], check=True, env=environment, timeout=120)


CELL = """
import torch, fastpurge
t, m = torch.ones(2, 3), torch.nn.Linear(3, 3)
fastpurge.sweep(keep=())
"""


def test_a_kernel_inspects_and_completes_tombstones() -> None:
    manager: KernelManager
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)
    try:
        assert client.execute_interactive(textwrap.dedent(CELL), timeout=120)["content"]["status"] == "ok"
        for name in ("t", "m"):
            for detail in (0, 1):
                client.inspect(name, detail_level=detail)
                recorded = _reply(client)
                assert recorded["found"]
                assert "purged" in recorded["data"]["text/plain"]
            for code in (f"{name}.", f"{name}.sh", f"{name}("):
                client.complete(code)
                assert _reply(client)["status"] == "ok"
        client.inspect("print")  # the session continues
        assert _reply(client)["found"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _reply(client: Any) -> Any:
    try:
        return client.get_shell_msg(timeout=60)["content"]
    except queue.Empty:
        pytest.fail("the kernel does not answer")
