"""docs/methods.md is what the registry of losses says."""

from __future__ import annotations

from methods_page import PAGE, page


def test_the_committed_page_is_the_generated_one():
    """If this fails: `python benchmarks/methods_page.py`."""
    assert PAGE.read_text(encoding="utf-8") == page()
