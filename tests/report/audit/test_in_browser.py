"""The page in headless Chromium: drawn, still, quiet, and readable on a phone. Required where CI=true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.report.audit.page import audit_page
from tests.report.audit.test_page import audited, hostile_rows
from tests.report.browser import browser, needs_browser

__all__ = ["browser"]

pytestmark = needs_browser()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "audit.html"
    path.write_text(audit_page(audited(hostile_rows())), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_is_drawn_and_quiet(browser: Any, page_file: Path, scheme: str, width: int, height: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    charts = page.locator(".chart")
    count = charts.count()
    assert count >= 5
    page.wait_for_function(
        "document.querySelectorAll('.chart.drawn svg').length === document.querySelectorAll('.chart').length"
    )
    for index in range(count):
        box = charts.nth(index).locator("svg").first.bounding_box()
        assert box is not None
        assert 200 < box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    assert asked == [page_file.as_uri()]
    assert page.title() == "Audit of the dataset"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 200) == (scheme == "dark")
    context.close()


def test_findings_open_and_long_texts_unfold(browser: Any, page_file: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(page_file.as_uri())
    finding = page.locator("#special_tokens")
    assert not finding.locator(".inside").is_visible()
    finding.locator("summary").first.click()
    assert finding.locator(".inside").is_visible()
    more = finding.locator("details.more").first
    whole = more.locator("> div.text")
    assert not whole.is_visible()
    more.locator("> summary").click()
    assert whole.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "<script>document.title" in finding.inner_text()
    assert page.locator("main img").count() == 0
    context.close()
