"""Run the Python blocks of a page as one script, or as one notebook if they contain magics.

They run in a process of their own, because a sweep affects the whole process.
"""

from __future__ import annotations

import ast
import doctest
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.docs.blocks import ROOT, Block

_RAISES = re.compile(r"#\s*(\w+Error)\b")
END = "\x1e"
# First line of the script of a page, in place of the title.
PRELUDE = "from tests.docs.expected_errors import end as _end, raises as _raises"
_CHECKER = doctest.OutputChecker()
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def outputs(blocks: list[Block], folder: Path) -> list[str]:
    """The output of each block. An error that the page does not name fails the test."""
    if any(block.has_magics for block in blocks):
        return _outputs_of_cells(blocks, folder)
    return run_script(as_script(blocks), folder)


def run_script(code: str, folder: Path) -> list[str]:
    """The output of a script, split at the ends of blocks."""
    script = folder / "script.py"
    script.write_text(code)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.split(END)[:-1]


def as_script(blocks: list[Block]) -> str:
    """A script with the blocks at their lines of the page, so that messages name these lines."""
    assert blocks[0].line > 1, "a page begins with its title"
    lines = [PRELUDE]
    for block in blocks:
        lines += [""] * (block.line - len(lines))
        lines += [*_expecting_errors(block), "_end()"]
    return "\n".join(lines) + "\n"


def _expecting_errors(block: Block) -> list[str]:
    lines = block.lines
    for statement, error in _raising(block.text):
        at, column = statement.lineno - 1, statement.col_offset
        lines[at] = f"{lines[at][:column]}with _raises('{error}'): {lines[at][column:]}"
    return lines


def _raising(code: str) -> Iterator[tuple[ast.stmt, str]]:
    """Statements that are followed by a comment with the error that they raise, and its name."""
    simple = {
        node.end_lineno: node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.stmt) and not hasattr(node, "body")
    }
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT and (found := _RAISES.match(token.string)):
            assert token.start[0] in simple, f"no statement before {token.string!r}"
            yield simple[token.start[0]], found[1]


def _outputs_of_cells(blocks: list[Block], folder: Path) -> list[str]:
    made = [cell for block in blocks for cell in _cells_of(block)]
    notebook = nbformat.v4.new_notebook(cells=made)
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute(cwd=str(folder))
    recorded: list[str] = []
    for block in blocks:
        recorded.append("".join(_output_of(notebook.cells.pop(0)) for _ in _cells_of(block)))
    return recorded


def _cells_of(block: Block) -> list[Any]:
    """The cells of a block: one, or with magics one for each paragraph, since a magic shows one value."""
    sources = re.split(r"\n\n+", block.text.strip()) if block.has_magics else [block.text]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for cell in cells:
        if found := _RAISES.search(cell.source.rstrip().splitlines()[-1]):
            cell.metadata["tags"] = ["raises-exception"]
            cell.metadata["error"] = found[1]
    return cells


def _output_of(cell: Any) -> str:
    errors = [output.ename for output in cell.outputs if output.output_type == "error"]
    expected = [cell.metadata["error"]] if "error" in cell.metadata else []
    assert errors == expected, cell.source
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    return "".join(f"{text}\n" for text in texts)


def check_output(expected: str, got: str) -> None:
    """Compare as doctest does: ``...`` stands for anything, and white space counts as one space."""
    if not _CHECKER.check_output(expected, got, _FLAGS):
        example = doctest.Example("", expected)
        raise AssertionError(_CHECKER.output_difference(example, got, _FLAGS))
