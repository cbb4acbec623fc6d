"""A headless Chromium for the tests of pages; required where CI=true."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = os.environ.get("CI") == "true"


def needs_browser() -> list[pytest.MarkDecorator]:
    """The marks of a module whose tests look at pages."""
    if REQUIRED:
        return []
    pytest.importorskip("playwright.sync_api")
    return [pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "CI must install chromium (apt-get install chromium)"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened(NamedTuple):
    """A page with what it said and asked for."""

    page: Any
    said: list[str]
    asked: list[str]


def opened(browser: Any, address: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Opened:
    """The page at an address, when all its charts are drawn."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_function(
        "document.querySelectorAll('.chart.drawn svg').length === document.querySelectorAll('.chart').length"
    )
    return Opened(page, said, asked)
