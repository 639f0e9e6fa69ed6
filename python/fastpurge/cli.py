"""The command line: reads arguments and calls; what is said is said elsewhere."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastpurge import __doc__ as about
from fastpurge import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 1 if a check failed."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastpurge",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="free a gigabyte of forgotten memory beside a real model",
        description=(
            "Builds a real transformer (random weights, nothing is downloaded), forgets more than a "
            "gigabyte in the ways that people do, sweeps, and checks that the model computes the "
            "same numbers as before. Needs 4 GB of memory and transformers: "
            "pip install 'torch-fastpurge[torch,demo]'."
        ),
    )
    demo.set_defaults(run=_run_demo)
    comfyui = commands.add_parser("comfyui", help="put the node pack into a ComfyUI")
    actions = comfyui.add_subparsers(title="actions", required=True, metavar="ACTION")
    install = actions.add_parser(
        "install",
        help="put the six purge nodes into the custom_nodes of a ComfyUI",
        description=(
            "Writes a folder custom_nodes/fastpurge that loads the nodes from this installation, which must "
            "be in the Python that runs ComfyUI. To take them out again, delete that folder."
        ),
    )
    install.add_argument("path", type=Path, help="the folder of the ComfyUI, with custom_nodes in it")
    install.set_defaults(run=_run_comfyui_install)
    return parser


def _run_demo(_: argparse.Namespace) -> int:
    from fastpurge.demo import run

    return 0 if run() else 1


def _run_comfyui_install(options: argparse.Namespace) -> int:
    from fastpurge.comfy.install import NotComfyUIError, install

    try:
        folder = install(options.path)
    except (NotComfyUIError, OSError) as error:
        sys.stderr.write(f"fastpurge: {error}\n")
        return 1
    sys.stdout.write(f"The nodes are in {folder}. Start ComfyUI again to see them, under fastpurge.\n")
    return 0
