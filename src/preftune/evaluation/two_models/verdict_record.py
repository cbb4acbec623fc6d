"""Where a verdict is written down: eval/summary.json, and the model card of the run that was judged.

General abilities are measured by a suite of its own, before the comparison or after it; either way the verdict counts
them, if they are those of the same two models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.statistics.verdict_rules import Decision, decide
from preftune.storage.jsonl import read_object, write_atomically, write_json

_BEGIN, _END = "<!-- preftune eval -->", "<!-- end of preftune eval -->"
_MODELS = ("base", "aligned")
"""Settings that say which models were evaluated."""
_SECTION = re.compile(rf"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)


def write_summary(folder: Path, figures: Mapping[str, Any]) -> None:
    """Writes `summary.json` of an `eval` folder, and the verdict into README.md next to the folder."""
    write_json(folder / "summary.json", dict(figures))
    _write_card(folder.parent / "README.md", figures)


def abilities_of(folder: Path, settings: Mapping[str, Any], budget: float | None) -> dict[str, Any]:
    """General abilities of these two models as the suite `general` measured them: `abilities` of a summary.

    Args:
        folder: the `eval` folder.
        settings: of the evaluation.
        budget: the forgetting budget in points; None for the usual one.
    """
    found: dict[str, Any] = {} if budget is None else {"budget": budget}
    general = read_object(folder / "general" / "summary.json")
    if _same_models(general.get("settings"), settings):
        found["compared"] = [one for one in general.get("comparisons") or [] if isinstance(one, dict)]
    return found


def decide_again(folder: Path, settings: Mapping[str, Any], budget: float | None) -> Decision | None:
    """Puts newly measured abilities into the verdict of an earlier comparison; None if there is none of these models.

    Args: as for `abilities_of`; a budget of None leaves the one that was asked for.
    """
    figures = read_object(folder / "summary.json")
    if not _same_models(figures.get("settings"), settings):
        return None
    before = figures.get("abilities")
    known = before.get("budget") if isinstance(before, dict) else None
    figures["abilities"] = abilities_of(folder, settings, known if budget is None else budget)
    decision = decide(figures)
    if decision is not None:
        write_summary(folder, {**figures, **decision.to_dict()})
    return decision


def with_section_of(card: Path, text: str) -> str:
    """Text of a new card, followed by the section "Evaluation" of the card that it replaces, if that has one."""
    try:
        found = _SECTION.search(card.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        found = None
    return text if found is None else f"{text.rstrip()}\n\n{found.group().strip()}\n"


def _same_models(one: object, other: Mapping[str, Any]) -> bool:
    return isinstance(one, Mapping) and all(
        one.get(name) is not None and one.get(name) == other.get(name) for name in _MODELS
    )


def _write_card(card: Path, figures: Mapping[str, Any]) -> None:
    """The section of the evaluation, in a card that preftune wrote; replaced by the next evaluation's."""
    decision = decide(figures)
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if decision is None or ("\n  - preftune\n" not in text and "\n- preftune\n" not in text):
        return
    text = _SECTION.sub("\n", text)
    rules = [f"- {rule.name}: {_WORDS[rule.passed]}. {_inline(rule.sentence)}" for rule in decision.rules]
    against = f"Compared with `{_inline(str(figures.get('baseline_name')))}` by `{_inline(str(figures.get('judge')))}`."
    section = ["## Evaluation", "", f"**{decision.name}.** {_inline(decision.sentence)} {against}", "", *rules]
    write_atomically(card, "\n".join([text.rstrip(), "", _BEGIN, *section, _END, ""]))


_WORDS = {True: "holds", False: "fails", None: "not measured"}


def _inline(text: str) -> str:
    """Text that opens no markup of a card."""
    return " ".join(re.sub(r"[`<>]", "'", text).split())
