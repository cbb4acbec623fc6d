"""audit.html: one inert, self-contained file. What a browser makes of it is in test_in_browser.py."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from preftune.audit.writing import as_text
from preftune.report.audit.page import audit_page
from preftune.report.html.components import NOTHING, panel, table
from preftune.report.html.document import Page
from preftune.report.html.templates import markup
from tests.audit.made_up import clean_rows, run

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)></script>"


class Markup(HTMLParser):
    """Tags, and the addresses that a page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def audited(rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """What audit.json would hold."""
    loaded: dict[str, Any] = json.loads(as_text(run(rows, **options).to_json()))
    return loaded


def hostile_rows() -> list[dict[str, Any]]:
    """Rows with findings whose texts attack a page."""
    rows: list[dict[str, Any]] = [{**row, "source": HOSTILE, "agreement": 0.5} for row in clean_rows(40)]
    rows[2]["chosen"] = f"{HOSTILE} <|im_end|> \u202e drawkcab \x00\x1b[31m"
    rows[3]["rejected"] = f"{'long text ' * 40_000}</details></div> <|im_end|>"
    rows[4]["prompt"] = "مرحبا بالعالم <|im_end|>"
    rows[5]["chosen"] = 7
    return rows


def test_nothing_of_the_data_becomes_markup_and_nothing_is_loaded() -> None:
    page = audit_page(audited(hostile_rows()))
    markup = Markup(page)
    assert markup.tags.count("script") == 3
    assert "img" not in markup.tags
    assert markup.handlers == []
    assert markup.addresses == []
    assert "&lt;script&gt;document.title" in page
    assert "\x1b" not in page
    assert "\x00" not in page


def test_the_page_is_small_however_much_text_there_is() -> None:
    rows = [
        {**row, "chosen": "語<&>" * 5000 + row["chosen"], "rejected": row["chosen"] + " x"} for row in clean_rows(60)
    ]
    page = audit_page(audited(rows))
    assert 900_000 < len(page.encode()) < 3_000_000


def test_the_verdict_comes_first() -> None:
    rows: list[dict[str, Any]] = clean_rows(60)
    rows[1]["chosen"] = ""
    rows[2]["chosen"] = "Broken \ufffd text"
    page = audit_page(audited(rows))
    heading = re.sub("<[^>]+>", "", re.search("<h1>(.*?)</h1>", page)[1])  # type: ignore[index]
    assert heading == "1 error and 2 warnings in 60 pairs"
    assert page.index('id="empty"') < page.index('id="encoding"')
    assert "Most important: empty answers (1, 1.7%)" in page


def test_clean_data_are_called_clean() -> None:
    values = audited(clean_rows(60))
    values["findings"] = []
    page = audit_page(values)
    assert "No problems" in page
    assert "No check found anything." in page


def test_a_source_that_all_pairs_share_is_said_and_not_drawn() -> None:
    page = audit_page(
        audited([{**row, "source": "wikipedia", "topic": f"t{i % 3}"} for i, row in enumerate(clean_rows(60))])
    )
    assert "wikipedia, in all pairs." in page
    assert "3 different." in page
    assert len(set(re.findall(r"source-\d", page))) == 1


def test_an_audit_without_pairs_has_a_page() -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in clean_rows(30)]
    page = audit_page(audited(rows))
    assert "No preference pair in the data" in page
    assert "in 30 rows" in page


def test_commands_in_fixes_are_code() -> None:
    page = audit_page(audited([{**row, "chosen": ""} if i == 3 else row for i, row in enumerate(clean_rows() * 2)]))
    assert '<code class="short">preftune convert --dedupe</code> keeps one of each.' in page
    assert '<code class="short">preftune dpo --group_by_prompt</code> computes' in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a<b>&\"'", "a&lt;b&gt;&amp;&#34;&#39;"),
        ("nul\x00 esc\x1b", "nul␀ esc␛"),
        ("half \ud800 pair", "half ␡ pair"),
        ("line\nline\ttab", "line\nline\ttab"),
    ],
)
def test_text_is_escaped_by_every_template(text: str, shown: str) -> None:
    assert f"<td>{shown}</td>" in table(["", ""], [["x", text]])
    assert markup("components.text_block", text) == f'<div class="text" dir="auto">{shown}</div>'
    assert f"<h3>{shown}</h3>" in panel(text, "", table([], []))


def test_long_texts_are_cut_and_say_so() -> None:
    block = markup("components.text_block", "word " * 100, 90_000)
    assert block.startswith('<details class="more">')
    assert "89,500 more characters in the data" in block
    assert "<details" not in markup("components.text_block", "short")
    assert "(empty)" in markup("components.text_block", "")


def test_a_page_without_charts_carries_no_script() -> None:
    text = Page("Empty").render(NOTHING)
    assert len(text) < 20_000
    assert "script-src" not in text
