"""The examples in public docstrings, which the reference shows, run and print the shown output."""

from __future__ import annotations

import ast
import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path

import fastpurge
import pytest

from tests.docs.run_blocks import PRELUDE, check_output, run_script


def documented() -> Iterator[tuple[str, str]]:
    """Public names and their docstrings, including methods."""
    yield "fastpurge", str(fastpurge.__doc__)
    yield "distributed.sweep", str(fastpurge.distributed.sweep.__doc__)
    for name in fastpurge.__all__:
        value = getattr(fastpurge, name)
        yield name, value.__doc__ or ""
        for part, method in vars(value).items() if inspect.isclass(value) else ():
            if not part.startswith("_"):
                yield f"{name}.{part}", inspect.getdoc(method) or ""


EXAMPLES = {name: found for name, doc in documented() if (found := doctest.DocTestParser().get_examples(doc))}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_a_docstring_run_and_print_what_it_shows(name: str, tmp_path: Path) -> None:
    lines = [f"{PRELUDE}\nfrom sys import displayhook as _show\nimport fastpurge\nfrom fastpurge import *"]
    for example in EXAMPLES[name]:
        assert not example.options, "an example that is skipped shows nothing"
        shows = isinstance(ast.parse(example.source).body[0], ast.Expr)
        lines += [f"_show(\n{example.source})" if shows else example.source, "_end()"]
    printed = run_script("\n".join(lines), tmp_path)
    for example, got in zip(EXAMPLES[name], printed, strict=True):
        check_output(example.want, got)
