"""Check sizes of files and folders, and that the crate does not mention torch. Run by `make lint`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 400
MOST_FILES = 8  # directly in the package; the others are in folders


def faults(root: Path) -> Iterator[str]:
    package, crate = root / "python" / "fastpurge", root / "src"
    for file in sorted([*package.rglob("*.py"), *crate.rglob("*.rs")]):
        text = file.read_text()
        name, lines = file.relative_to(root), text.count("\n")
        if lines > MOST_LINES:
            yield f"{name}: {lines} lines, and {MOST_LINES} are the most"
        if file.suffix == ".rs" and "torch" in text.lower():
            yield f"{name}: the crate knows objects, types and identities, and no torch"
    if len(files := [*package.glob("*.py")]) > MOST_FILES:
        yield f"{package.relative_to(root)}: {len(files)} files, and {MOST_FILES} are the most"


if __name__ == "__main__":
    found = [*faults(ROOT)]
    sys.stdout.writelines(f"{fault}\n" for fault in found)
    sys.exit(bool(found))
