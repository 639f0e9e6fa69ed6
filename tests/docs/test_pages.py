"""Every code block of every page runs and prints the shown output."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs import commands
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of, links_of, name_of, targets_of
from tests.docs.run_blocks import check_output, outputs

LANGUAGES = ("python", "bash", "text")
BLOCKS = {page: [block for block in blocks_of(page) if block.run_by is None] for page in PAGES}


def pages_with(language: str) -> list[Path]:
    return [page for page, blocks in BLOCKS.items() if any(block.language == language for block in blocks)]


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_python_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    code = [block for block in BLOCKS[page] if block.language == "python"]
    compare(page, dict(zip(code, outputs(code, tmp_path), strict=True)))


@pytest.mark.parametrize("page", pages_with("bash"), ids=name_of)
def test_commands_are_there_and_say_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    lines = [block for block in BLOCKS[page] if block.language == "bash"]
    compare(page, {block: commands.check(block, tmp_path) for block in lines})


def compare(page: Path, said: dict[Block, str]) -> None:
    """Compare the output with the one that the page shows after a block."""
    for block, shown in pairwise(BLOCKS[page]):
        if block in said and shown.language == "text":
            check_output(shown.text, said[block])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_is_left_out(page: Path) -> None:
    before: Block | None = None
    for block in BLOCKS[page]:
        where = f"{name_of(page)}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: no rule for the language {block.language!r}"
        if block.language == "text":
            assert before is not None, f"{where}: output of nothing"
            assert before.language != "text", f"{where}: output of output"
        before = block


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_run_elsewhere_is(page: Path) -> None:
    for block in blocks_of(page):
        if block.run_by is not None:
            test = ROOT / block.run_by
            assert test.is_file(), block.run_by
            assert page.name in test.read_text(), f"{block.run_by} does not read {page.name}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in links_of(page):
        assert target.exists(), target


def test_the_readme_leads_somewhere_from_the_package_index_too() -> None:
    targets = [*targets_of(ROOT / "README.md")]
    assert any(target.endswith(".png") for target in targets)
    assert [target for target in targets if not target.startswith("https://")] == []
