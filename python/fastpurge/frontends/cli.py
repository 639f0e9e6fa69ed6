"""The command line: reads arguments and calls; what is said is said elsewhere."""

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
Give back the memory of a running PyTorch process, without harming what is in use.

A sweep is called from within the process: from Python, a notebook, or a ComfyUI workflow.

    import fastpurge
    report = fastpurge.sweep(keep=[model, latent])
    print(report)

Everything reachable from keep stays as it is; every other tensor and module that is alive in the
process is released, and raises PurgedError when it is used again. These commands show how, and help to
set it up.
"""
_EXAMPLES = """\
examples:
  $ fastpurge doctor                             is everything here that it needs?
  $ fastpurge demo                               see what it does to a real model
  $ fastpurge comfyui install ~/ComfyUI          six purge nodes for your workflows
"""
_DEMO_EXAMPLES = """\
examples:
  $ fastpurge demo
  $ fastpurge demo --plot report.svg             and draw what the sweep did
"""
_DOCTOR_EXAMPLES = """\
examples:
  $ fastpurge doctor
  $ fastpurge doctor --comfyui ~/ComfyUI         are the nodes in it, and nobody else's by their names?
  $ fastpurge doctor --json | jq .problems       for scripts

The exit status is 0 if all is well, and 1 if something is missing; what to do about it is said.
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
    """Run the command line and return the exit status: 0, or 1 if a check failed or nothing could be written.

    If nobody reads the output any more it is 141, which is what a shell says of SIGPIPE.
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
    """Let go of what could not be written, which would be tried once more at exit."""
    with suppress(OSError, ValueError):  # there may be no file beneath it
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
    # From the metadata: `doctor` must run where a namesake has replaced the package's own `__init__`.
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('torch-fastpurge')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_doctor(commands)
    comfyui = _add(commands, "comfyui", "put the node pack into a ComfyUI, or take it out", None)
    actions = comfyui.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_install(actions)
    _add_remove(actions)
    return parser


def _add_demo(commands: Any) -> None:
    demo = _add(
        commands,
        "demo",
        "free a gigabyte of forgotten memory beside a real model",
        _DEMO_EXAMPLES,
        "Builds a real transformer (random weights, nothing is downloaded), forgets more than a\n"
        "gigabyte in the ways that people do, sweeps, and checks that the model computes the same\n"
        "numbers as before. Needs 4 GB of memory and transformers:\n"
        "pip install 'torch-fastpurge[torch,demo]'.",
    )
    demo.add_argument("--plot", type=Path, metavar="FILE", help="draw the report to a file: .svg, .png, .pdf")
    demo.set_defaults(run=_run_demo)


def _add_doctor(commands: Any) -> None:
    doctor = _add(
        commands,
        "doctor",
        "say what is here of what fastpurge needs and can use",
        _DOCTOR_EXAMPLES,
        "Looks at the interpreter, the packages, the allocators and the devices, and tries what it can\n"
        "try. In the folder of a ComfyUI, or with --comfyui, also at its custom_nodes.",
    )
    doctor.add_argument("--comfyui", type=Path, metavar="PATH", help="the folder of a ComfyUI to look at")
    doctor.add_argument("--json", action="store_true", help="say it as JSON")
    doctor.set_defaults(run=_run_doctor)


def _add_install(actions: Any) -> None:
    install = _add(
        actions,
        "install",
        "put the six purge nodes into the custom_nodes of a ComfyUI",
        _INSTALL_EXAMPLES,
        "Writes a folder custom_nodes/fastpurge that loads the nodes from this installation, which must\n"
        "be in the Python that runs ComfyUI. To take them out again: fastpurge comfyui remove.",
    )
    install.add_argument("path", type=Path, help="the folder of the ComfyUI, with custom_nodes in it")
    install.set_defaults(run=_run_comfyui_install)


def _add_remove(actions: Any) -> None:
    remove = _add(
        actions,
        "remove",
        "take out of a ComfyUI what install has put in",
        _REMOVE_EXAMPLES,
        "Deletes the folder custom_nodes/fastpurge if it is the one that install has written, and nothing\n"
        "else: no clone, and no file that somebody has added. Saved workflows still load; ComfyUI says\n"
        "which of their nodes are missing.",
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
