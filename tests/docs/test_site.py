"""The built site."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import ROOT


def test_it_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    loads = r'<(?:script|link|img|source|iframe)\b[^>]*?\b(?:src|srcset|href)="?((?:https?:)?//[^"\s>]+)'
    assert pages
    assert {page.name: found for page, text in pages.items() if (found := re.findall(loads, text))} == {}
    # The script of the theme would fetch these: a shim for the offline search, and diagrams.
    assert not any("iframe-worker/shim" in text or 'class="mermaid"' in text for text in pages.values())
