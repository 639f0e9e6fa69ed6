"""Packages installed into a folder, each with one tensor in its globals."""

from __future__ import annotations

import itertools
from pathlib import Path

SOURCE = "import torch\nTABLE = torch.arange(10.0)\n"
NUMBERS = itertools.count()


def package(folder: Path, *, metadata: str | None = "{}-1.0.dist-info") -> str:
    """Write a package with a new name, as an installer does; return the name."""
    name = f"somelib{next(NUMBERS)}"
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(SOURCE)
    if metadata is not None:
        info = folder / metadata.format(name)
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return name
