"""IPython, in a terminal or a notebook: ``%load_ext fastpurge``, then ``%sweep``, ``%census``, ``%why``.

A rule for this file, as for `survey`: during a sweep no local variable here may reference the user's
namespace or anything in it but what is kept. This is running code too.
"""

import ast
import re
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand, output_can_be_silenced
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

import fastpurge
from fastpurge.engine.keep_argument import check_keep
from fastpurge.engine.request import parse_devices
from fastpurge.engine.sweep import SweepPlan
from fastpurge.exceptions.let_go import let_go_of, remembered
from fastpurge.exceptions.let_go_result import Held, LetGo, LiveObjects, reaching_unkept
from fastpurge.exceptions.traceback_frames import FrameSource
from fastpurge.inspection import roots
from fastpurge.inspection.census import Census
from fastpurge.inspection.why import Why, explain
from fastpurge.python_facts.object_types import is_a
from fastpurge.reporting.report import SweepReport
from fastpurge.torch_facts.recorders import Unrecorded

_HOW = "write what to keep: %sweep keep model, x; or to keep only what the guards spare: %sweep keep ()"
_KEEP = re.compile(r"(?:^|\s)keep(?=[\s(\[{*]|$)")


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics in a shell. ``%load_ext fastpurge`` calls it."""
    shell.register_magics(FastpurgeMagics)


def _devices(text: str) -> tuple[torch.device, ...] | None:
    try:
        return parse_devices([name.strip() for name in text.split(",")])
    except ValueError as error:
        reason = str(error)
    raise UsageError(reason)


def _bytes(text: str) -> int:
    size = int(text) if text.replace("_", "").isdecimal() else -1
    if size < 0:
        raise UsageError(f"--min-bytes must be an int of 0 or more (bytes), not {text}")
    return size


def _count(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"top must be an int of 0 or more, not {text}")
    return int(text)


@magics_class
class FastpurgeMagics(Magics):
    """The line magics."""

    shell: InteractiveShell

    @output_can_be_silenced
    @no_var_expand  # a dict or a set in an expression is not to be expanded
    @magic_arguments("sweep")
    @argument("--devices", type=_devices, metavar="cpu,cuda:1", help="Only these devices. Default: all.")
    @argument("--min-bytes", type=_bytes, default=0, metavar="N", help="Do not release smaller storages.")
    @argument("--no-models", action="store_true", help="Do not release modules.")
    @argument("--wipe", action="store_true", help="Overwrite memory with zeros before it is freed.")
    @argument("--plan", action="store_true", help="Only print what would be released. Touches nothing.")
    @argument(
        "--exception",
        action="store_true",
        help="First free the locals of functions in the last traceback. Its text stays.",
    )
    @argument(
        "--history",
        action="store_true",
        help="First drop entries of Out, _, __, ___ and _N that reach tensors or modules outside keep.",
    )
    @argument("keep", nargs="*", metavar="keep EXPRESSION[, EXPRESSION]", help="What to keep; last.")
    @line_magic
    def sweep(self, line: str) -> SweepReport | SweepPlan:
        """Release every tensor and module that is not reachable from what you keep.

        Examples::

            %sweep keep model, x
            %sweep --plan keep model, x         only print the plan
            %sweep keep ()                      keep only what the guards spare
            %sweep --devices cuda --min-bytes 1_000_000 keep model
            %sweep --exception keep model       after running out of memory
            %sweep --exception --history keep model
        """
        head, expression = _split(line)
        asked = parse_argstring(self.sweep, head)
        if asked.keep:
            raise UsageError(f"unexpected {asked.keep[0]!r}; {_HOW}")
        if expression is None:
            raise UsageError(_HOW)
        if asked.plan and (asked.exception or asked.history):
            raise UsageError("--plan touches nothing: it cannot be used with --exception or --history")
        kept = self._kept(expression)
        options = {
            "keep": kept,
            "devices": asked.devices,
            "models": not asked.no_models,
            "wipe": asked.wipe,
            "min_bytes": asked.min_bytes,
            "label": f"%sweep in cell [{self.shell.displayhook.prompt_count}]",
        }
        if asked.plan:
            return fastpurge.plan(**options)
        if asked.exception:
            with Unrecorded():
                let_go = let_go_of([*remembered(), *_remembered_by(self.shell)], kept)
            display(let_go)
        if asked.history:
            with Unrecorded():
                dropped = drop_history(self.shell, kept)
            display(dropped)
        return fastpurge.sweep(**options)

    @no_var_expand
    @magic_arguments("census")
    @argument("top", nargs="?", type=_count, default=20, help="How many of the largest. Default: 20.")
    @line_magic
    def census(self, line: str) -> Census:
        """Show the owners of the memory: ``%census``, or ``%census 5`` to name only the five largest."""
        return fastpurge.census(top=parse_argstring(self.census, line).top)

    @no_var_expand
    @line_magic
    def why(self, line: str) -> Why | None:
        """Show why an object is alive: ``%why x``, or several: ``%why x, model``."""
        expression = line.strip().rstrip(";")
        if not expression:
            raise UsageError("%why needs an object: %why x")
        value = self._evaluate(expression, "why")
        is_one = not isinstance(ast.parse(_in_parentheses(expression), mode="eval").body, ast.Tuple)
        # The frame of the cell is the caller: its own variable for the object counts last.
        with Unrecorded():
            found = explain((value,) if is_one else value, roots.frame_of(self.shell.user_ns))
        if is_one:
            return found[0]
        display(*found)
        return None

    def _kept(self, expression: str) -> Any:
        kept = self._evaluate(expression, "keep")
        try:
            check_keep(kept)
        except TypeError as error:
            message = f"{error} (nothing was touched)"
        else:
            return kept
        raise UsageError(message)

    def _evaluate(self, expression: str, what: str) -> Any:
        """The value of an expression in the user's namespace."""
        try:
            return self.shell.ev(_in_parentheses(expression))
        except Exception as error:  # noqa: BLE001 - whatever the user's expression raises
            message = f"{what}: {expression} raised {type(error).__name__}: {error}"
        # Outside of the handler: as its context, the exception would keep the locals of its frames alive.
        raise UsageError(f"{message} (nothing was touched)")


def _in_parentheses(expression: str) -> str:
    # Allows starred values; the new line ends a comment.
    return f"({expression}\n)"


def _split(line: str) -> tuple[str, str | None]:
    """The options, and the expression after the word ``keep``, if it is there."""
    if (found := _KEEP.search(line)) is None:
        return line, None
    expression = line[found.end() :].strip().rstrip(";")
    if not expression:
        raise UsageError(f"nothing after keep: {_HOW}")
    if misplaced := re.search(r"(?<=\s)--[a-z][a-z-]*", expression):
        raise UsageError(f"{misplaced[0]} must be before the word keep")
    return line[: found.start()], expression


def _remembered_by(shell: InteractiveShell) -> Iterator[FrameSource]:
    """The exceptions, tracebacks and frames that IPython itself remembers."""
    result = shell.last_execution_result
    debugger = getattr(shell.InteractiveTB, "pdb", None)
    found = [
        getattr(result, "error_before_exec", None),
        getattr(result, "error_in_exec", None),
        getattr(shell.InteractiveTB, "tb", None),
        getattr(shell.SyntaxTB, "last_syntax_error", None),
        *(frame for frame, _ in getattr(debugger, "stack", None) or ()),
    ]
    yield from (one for one in found if is_a(one, BaseException, TracebackType, FrameType))


def drop_history(shell: InteractiveShell, keep: object) -> LetGo:
    """Drop entries of a shell's output history that reach tensors or modules outside ``keep``.

    An entry that reaches something named in ``keep`` stays.
    """
    live = LiveObjects()
    freed = []
    for names in _droppable(shell, keep):
        for name in names:
            _drop(shell, name)
        if items := live.pop_dead():
            freed.append(Held(", ".join(names), items))
    if items := live.collect_and_pop_dead():
        freed.append(Held("reference cycles through these", items))
    return LetGo(tuple(freed))


_RECENT = ("_", "__", "___")


def _droppable(shell: InteractiveShell, keep: object) -> list[list[str]]:
    """The names of the entries to drop, grouped by object."""
    history = shell.user_ns.get("_oh", {})
    entries: dict[int, tuple[object, list[str]]] = {}
    for number, value in history.items():
        if type(number) is not int:
            continue  # not IPython's
        entries.setdefault(id(value), (value, []))[1].append(f"Out[{number}]")
    for name in _RECENT:
        value = getattr(shell.displayhook, name)
        entries.setdefault(id(value), (value, []))[1].append(name)
    outside = reaching_unkept((value for value, _ in entries.values()), keep)
    return [names for (_, names), yes in zip(entries.values(), outside, strict=True) if yes]


def _drop(shell: InteractiveShell, name: str) -> None:
    """Drop one entry wherever IPython has it. A value that the user assigned to such a name stays."""
    if name in _RECENT:
        value, empty = getattr(shell.displayhook, name), {name: ""}  # as its own `flush` leaves them
        setattr(shell.displayhook, name, "")
    else:
        number = int(name.removeprefix("Out[").removesuffix("]"))
        value, empty = shell.user_ns["_oh"].pop(number), {}
        name = f"_{number}"
    for namespace in (shell.user_ns, shell.user_ns_hidden):
        if namespace.get(name) is value:
            del namespace[name]
            namespace.update(empty)
    for result in (shell.last_execution_result, shell.displayhook.exec_result):
        if result is not None and result.result is value:
            result.result = None
