"""A run's page in headless Chromium: drawn, quiet, inert, searched, readable. Required where CI=true."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from preftune.report.write import write_report
from tests.report.browser import browser, needs_browser, opened
from tests.report.made_up_run import HOSTILE, write_run

__all__ = ["browser"]

pytestmark = needs_browser()

PHONE = {"width": 390, "height": 844}

CONTRAST = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    if (element.closest('svg, script') || !element.checkVisibility()) continue;
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(element.className + ': ' + element.textContent.slice(0, 40) + ' ' + ratio.toFixed(2));
  }
  return [...new Set(poor)];
}"""
"""Texts whose colour stands out from what is behind them by less than 4.5 to 1."""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([write_run(tmp_path_factory.mktemp("run") / "a-run")])


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([write_run(tmp_path_factory.mktemp("run") / "a-run", hostile=True)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_drawn_quiet_and_readable(browser: Any, page_file: Path, scheme: str, width: int, height: int) -> None:
    page, said, asked = opened(browser, page_file.as_uri(), width=width, height=height, scheme=scheme)
    assert page.locator(".chart").count() >= 15
    for name in ("verdict", "categories-0", "equal-length-0", "alarms", "curve-loss", "curve-kl", "curve-memory"):
        assert page.locator(f"#chart-{name} svg .mark-group, #chart-{name} svg path").count() > 3, name
        box = page.locator(f"#chart-{name} svg").first.bounding_box()
        assert 200 < box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    assert said == []
    assert asked == [page_file.as_uri()]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 200) == (scheme == "dark")
    page.context.close()


def test_the_first_screen_of_a_phone_has_verdict_interval_and_one_before_and_after(
    browser: Any, page_file: Path
) -> None:
    page, _, _ = opened(browser, page_file.as_uri(), **PHONE)
    seen = {
        "verdict": page.locator("h1"),
        "interval": page.locator(".interval"),
        "strip": page.locator("#chart-verdict svg").first,
        "question": page.locator(".first .question"),
        "before": page.locator(".first .part.before .text"),
        "after": page.locator(".first .part.after .text"),
    }
    for name, place in seen.items():
        box = place.bounding_box()
        assert box["y"] >= 0, name
        assert box["y"] + box["height"] <= PHONE["height"], name
    assert "Better" in seen["verdict"].inner_text()
    assert "56.0% to 74.0%" in seen["interval"].inner_text()
    page.context.close()


def test_a_long_hostile_answer_leaves_the_first_screen_as_it_is(browser: Any, hostile_file: Path) -> None:
    page, _, _ = opened(browser, hostile_file.as_uri(), **PHONE)
    box = page.locator(".first").bounding_box()
    assert box["y"] + box["height"] <= PHONE["height"]
    page.context.close()


def test_hostile_answers_are_shown_and_do_nothing(browser: Any, hostile_file: Path) -> None:
    assert hostile_file.stat().st_size < 3_000_000
    page, said, asked = opened(browser, hostile_file.as_uri())
    assert page.title() == "a-run · preftune report"
    assert page.locator("main img, main iframe, header img").count() == 0
    assert page.locator("script").count() == 4
    assert page.get_by_text("<script>document.title='owned'</script>").count() > 2
    assert page.get_by_text("{{7*7}} ${7*7} <!-- @everyone").count() > 2
    page.fill("#search", "drawkcab")
    assert page.locator(".answer:visible").count() == 1
    direction = page.locator(".answer:visible .question .text").first
    assert direction.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"
    assert direction.get_attribute("dir") == "auto"
    page.fill("#search", "huge")
    huge = page.locator(".answer:visible .part.after details.more")
    assert "more characters in the file" in huge.locator("> div.text").text_content()
    assert len(huge.text_content()) < 10_000
    page.locator("#chart-curve-loss").scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    page.locator("#chart-curve-loss svg").hover()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert said == []
    assert asked == [hostile_file.as_uri()]
    page.context.close()


def test_answers_are_searched_and_filtered(browser: Any, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file.as_uri())
    shown, found = page.locator(".answer:visible"), page.locator("#found")
    assert shown.count() == 10
    page.click("#more")
    assert shown.count() == 24
    page.fill("#search", "ANSWER 23. zebras")
    assert shown.count() == 1
    assert found.inner_text() == "1 of 1 found"
    page.fill("#search", "nowhere")
    assert shown.count() == 0
    assert page.locator("#none").is_visible()
    page.fill("#search", "")
    page.select_option("#category", "edge case")
    assert shown.count() == 8
    page.select_option("#outcome", "loss")
    assert set(shown.locator(".outcome").all_inner_texts()) == {"loss"}
    page.select_option("#category", "")
    page.select_option("#outcome", "same")
    assert shown.count() == 1
    assert "same answer" in shown.inner_text()
    page.context.close()


def test_hundreds_of_answers_are_searched_at_once(browser: Any, tmp_path: Path) -> None:
    file = write_report([write_run(tmp_path / "big", rows=805)])
    assert file.stat().st_size < 3_000_000
    page, _, _ = opened(browser, file.as_uri())
    assert "The first 300 of 805" in page.locator("#answers .lead").inner_text()
    page.fill("#search", "299")
    assert page.locator(".answer:visible").count() == 1
    page.context.close()


def test_pointing_at_a_curve_gives_its_value(browser: Any, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file.as_uri())
    chart = page.locator("#chart-curve-margin svg").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "step" in tip.inner_text()
    assert "value" in tip.inner_text()
    page.context.close()


def test_runs_are_overlaid_with_one_colour_each(browser: Any, tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, rate=rate, beta=rate) for name, rate in (("one", 0.65), ("two", 0.3), ("three", 0.6))
    ]
    file = write_report(folders)
    assert file == tmp_path / "report.html"
    assert file.stat().st_size < 3_000_000
    page, said, _ = opened(browser, file.as_uri())
    assert "one" in page.locator("h1").inner_text()
    for name in ("curve-loss", "curve-kl"):
        legend = page.locator(f"#chart-{name} svg .role-legend-label").all_text_contents()
        assert [word for word in legend if word in ("one", "two", "three")] == ["one", "two", "three"]
    strokes = page.eval_on_selector_all(
        "#chart-curve-kl svg .mark-line path", "lines => lines.map(l => getComputedStyle(l).stroke)"
    )
    assert len(set(strokes)) == 3
    assert page.locator(".compared tbody tr").count() == 3
    entry = page.locator(".answer:visible").first
    assert entry.locator(".part").count() == 4  # one before, three after
    assert page.locator("#settings .differs").count() > 0
    assert said == []
    page.context.close()


def test_everything_is_reached_by_headings_and_keys(browser: Any, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file.as_uri())
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(e => Number(e.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    unnamed = page.eval_on_selector_all(
        "input, select", "all => all.filter(e => !e.labels.length).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.eval_on_selector_all(".chart", "all => all.every(e => e.getAttribute('aria-label').length > 10)")
    assert page.eval_on_selector_all("table", "all => all.every(t => t.querySelector('th[scope]'))")
    page.focus("#search")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "category"
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.context.close()


def test_without_scripts_every_answer_is_there(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".answer").count() == 24
    assert page.locator(".answer").last.is_visible()
    assert not page.locator("#filter").is_visible()
    context.close()


def test_texts_of_runs_are_what_they_were(page_file: Path) -> None:
    """The note in the configuration is an attack; the page quotes it."""
    page = page_file.read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "&lt;script&gt;document.title" in page
