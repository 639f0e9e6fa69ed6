"""The command line: reads arguments and calls; what is said is said elsewhere."""

import argparse
from collections.abc import Sequence

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
    return parser


def _run_demo(_: argparse.Namespace) -> int:
    from fastpurge.demo import run

    return 0 if run() else 1
