"""The command line: parses arguments and calls the other modules."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ABOUT = """\
Free the memory of a running PyTorch process, without touching what is in use.

A sweep runs inside the process: call it from Python, a notebook, or a ComfyUI workflow.

    import fastpurge
    report = fastpurge.sweep(keep=[model, latent])
    print(report)

Everything reachable from keep stays bit-for-bit unchanged. Every other live tensor and module in the
process is released, unless it is in use, and raises PurgedError when it is used again. These commands
demonstrate that, and set it up.
"""
_EXAMPLES = """\
examples:
  $ fastpurge doctor                             check dependencies
  $ fastpurge demo                               see a sweep beside a real model
  $ fastpurge comfyui install ~/ComfyUI          six purge nodes for your workflows
"""
_DEMO_EXAMPLES = """\
examples:
  $ fastpurge demo
  $ fastpurge demo --plot report.svg             and plot the report
"""
_DOCTOR_EXAMPLES = """\
examples:
  $ fastpurge doctor
  $ fastpurge doctor --comfyui ~/ComfyUI         check for missing or conflicting nodes
  $ fastpurge doctor --json | jq .problems       for scripts

The exit status is 0 if there is no problem, and 1 otherwise. Each problem is printed with its fix.
"""
_INSTALL_EXAMPLES = """\
examples:
  $ ~/ComfyUI/venv/bin/pip install torch-fastpurge
  $ ~/ComfyUI/venv/bin/fastpurge comfyui install ~/ComfyUI
"""
_REMOVE_EXAMPLES = """\
examples:
  $ ~/ComfyUI/venv/bin/fastpurge comfyui remove ~/ComfyUI
  $ ~/ComfyUI/venv/bin/pip uninstall torch-fastpurge
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns the exit status: 0, or 1 if a check failed or the output cannot be written. If the reader of the
    output has closed the pipe it is 141, as in a shell after SIGPIPE.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        return 141 if isinstance(error, BrokenPipeError) else _fail(error)
    return status


def _drop_output() -> None:
    """Discard output that cannot be written: Python would try to write it again at exit."""
    with suppress(OSError, ValueError):  # stdout may not be a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastpurge",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # From the metadata: `doctor` must run even if another distribution has replaced our `__init__`.
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('torch-fastpurge')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_doctor(commands)
    comfyui = _add(commands, "comfyui", "install the node pack in a ComfyUI, or remove it", None)
    actions = comfyui.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_install(actions)
    _add_remove(actions)
    return parser


def _add_demo(commands: Any) -> None:
    demo = _add(
        commands,
        "demo",
        "free a gigabyte of leaked memory beside a real model",
        _DEMO_EXAMPLES,
        "Builds a real transformer (random weights, no download), leaks more than a gigabyte in the\n"
        "usual ways, sweeps, and checks that the model computes the same numbers as before. Needs\n"
        "4 GB of memory and transformers:\n"
        "pip install 'torch-fastpurge[torch,demo]'.",
    )
    demo.add_argument("--plot", type=Path, metavar="FILE", help="plot the report to a file: .svg, .png, .pdf")
    demo.set_defaults(run=_run_demo)


def _add_doctor(commands: Any) -> None:
    doctor = _add(
        commands,
        "doctor",
        "check dependencies",
        _DOCTOR_EXAMPLES,
        "Checks the interpreter, the packages, the allocators and the devices. In the folder of a ComfyUI,\n"
        "or with --comfyui, also its custom_nodes.",
    )
    doctor.add_argument("--comfyui", type=Path, metavar="PATH", help="the folder of a ComfyUI to check")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_run_doctor)


def _add_install(actions: Any) -> None:
    install = _add(
        actions,
        "install",
        "install the six purge nodes in the custom_nodes of a ComfyUI",
        _INSTALL_EXAMPLES,
        "Writes a folder custom_nodes/fastpurge that loads the nodes from this installation, which must\n"
        "be in the Python that runs ComfyUI. To undo it: fastpurge comfyui remove.",
    )
    install.add_argument("path", type=Path, help="the folder of the ComfyUI, with custom_nodes in it")
    install.set_defaults(run=_run_comfyui_install)


def _add_remove(actions: Any) -> None:
    remove = _add(
        actions,
        "remove",
        "remove from a ComfyUI what install has put there",
        _REMOVE_EXAMPLES,
        "Deletes the folder custom_nodes/fastpurge if install has written it; no clone, no other file.\n"
        "Saved workflows still load; ComfyUI shows which of their nodes are missing.",
    )
    remove.add_argument("path", type=Path, help="the folder of the ComfyUI, with custom_nodes in it")
    remove.set_defaults(run=_run_comfyui_remove)


def _add(
    commands: Any, name: str, summary: str, examples: str | None, description: str | None = None
) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description or summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return added


def _run_demo(options: argparse.Namespace) -> int:
    if options.plot is not None:
        from fastpurge.reporting import plots

        try:
            plots.check(options.plot)
        except (ImportError, ValueError) as error:
            return _fail(error)
    from fastpurge.frontends.demo import run

    return 0 if run(plot=options.plot) else 1


def _run_doctor(options: argparse.Namespace) -> int:
    from fastpurge.frontends.doctor import examine

    found = examine(options.comfyui)
    sys.stdout.write(f"{json.dumps(found.to_dict(), indent=2) if options.json else found}\n")
    return 1 if found.problems else 0


def _run_comfyui_install(options: argparse.Namespace) -> int:
    from fastpurge.comfy.install.pack_installer import NotComfyUIError, install

    try:
        folder = install(options.path)
    except (NotComfyUIError, OSError) as error:
        return _fail(error)
    sys.stdout.write(f"The nodes are in {folder}. Start ComfyUI again to see them, under fastpurge.\n")
    return 0


def _run_comfyui_remove(options: argparse.Namespace) -> int:
    from fastpurge.comfy.install.pack_installer import NotComfyUIError, remove
    from fastpurge.comfy.install.scan_custom_nodes import find_fastpurge

    try:
        folder = remove(options.path)
        others = find_fastpurge(options.path / "custom_nodes")
    except (NotComfyUIError, OSError) as error:
        return _fail(error)
    said = (
        "This command had put no nodes there."
        if folder is None
        else f"{folder} is gone. Start ComfyUI again."
    )
    others_said = "".join(f" {other} has these nodes too: delete it by hand." for other in others)
    sys.stdout.write(f"{said}{others_said}\n")
    return 0


def _fail(error: Exception) -> int:
    sys.stderr.write(f"fastpurge: {error}\n")
    return 1
