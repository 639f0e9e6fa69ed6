"""The code blocks of a page, found by a Markdown parser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_OURS = re.compile(
    r"https://(?:github\.com/fastpurge/fastpurge/blob|raw\.githubusercontent\.com/fastpurge/fastpurge)/main/"
)
_ELSEWHERE = re.compile(r"<!-- run by (\S+) -->")


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, and the line of the page where the text begins (from 0)."""

    language: str
    text: str
    line: int
    run_by: str | None
    """The test that runs it, as the comment before the block says: ``<!-- run by tests/... -->``."""

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def has_magics(self) -> bool:
        return any(line.startswith("%") for line in self.lines)


def blocks_of(page: Path) -> list[Block]:
    tokens = MarkdownIt().parse(page.read_text())
    return [
        Block(_language(token), token.content, _first_line(token), _run_by(before))
        for before, token in zip([None, *tokens], tokens, strict=False)
        if token.type in ("fence", "code_block") or (token.type == "html_block" and "<pre" in token.content)
    ]


def _language(token: Token) -> str:
    return token.info if token.type == "fence" else f"({token.type})"


def _first_line(token: Token) -> int:
    assert token.map is not None
    return token.map[0] + (token.type == "fence")


def _run_by(before: Token | None) -> str | None:
    is_comment = before is not None and before.type == "html_block"
    found = _ELSEWHERE.search(before.content) if is_comment and before is not None else None
    return found[1] if found else None


def targets_of(page: Path) -> Iterator[str]:
    """The targets of links and images of the page."""
    for token in MarkdownIt().parse(page.read_text()):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if isinstance(target, str):
                yield target
        if token.type == "html_block":
            yield from re.findall(r'(?:src|srcset|href)="([^"]+)"', token.content)


def links_of(page: Path) -> Iterator[Path]:
    """The targets of the page that are files of the repository."""
    for target in targets_of(page):
        path, _, _ = target.partition("#")
        if ours := _OURS.match(path):
            yield ROOT / path[ours.end() :]
        elif "://" not in path:
            yield page.parent / path


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
