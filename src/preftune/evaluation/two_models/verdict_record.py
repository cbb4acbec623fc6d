"""Where a verdict is written down: eval/summary.json, eval/history.jsonl, and the card of the model that was judged.

General abilities are measured by a suite of its own, before the comparison or after it; either way the verdict counts
them, if they are those of the same two models.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.evaluation.two_models.advice import steps_after
from preftune.statistics.verdict_rules import Decision, decide
from preftune.storage.jsonl import append_lines, digest, read_lines, read_object, write_atomically, write_json
from preftune.storage.untrusted_json import at, number

HISTORY = "history.jsonl"
_BEGIN, _END = "<!-- preftune eval -->", "<!-- end of preftune eval -->"
_MODELS = ("base", "aligned")
"""Settings that say which models were evaluated."""
_ANSWERS = ("generation", "backend")
"""Parts of these that say how a model answered."""
_SECTION = re.compile(rf"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)


def write_summary(folder: Path, figures: Mapping[str, Any]) -> None:
    """Writes `summary.json` of an `eval` folder, a line of its history, and the verdict into README.md next to it."""
    write_json(folder / "summary.json", dict(figures))
    _remember(folder / HISTORY, figures)
    _write_card(folder.parent / "README.md", figures)


def abilities_of(folder: Path, settings: Mapping[str, Any], budget: float | None) -> dict[str, Any]:
    """General abilities of these two models as the suite `general` measured them: `abilities` of a summary.

    Args:
        folder: the `eval` folder.
        settings: of the evaluation.
        budget: the forgetting budget in points; None for that of an earlier comparison of these models, if it had one.
    """
    if budget is None:
        budget = number(at(compared_before(folder, settings), "abilities", "budget"))
    found: dict[str, Any] = {} if budget is None else {"budget": budget}
    general = read_object(folder / "general" / "summary.json")
    if _same_models(general.get("settings"), settings):
        found["compared"] = [one for one in general.get("comparisons") or [] if isinstance(one, dict)]
    return found


def compared_before(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of an earlier comparison of these models in the folder; empty if there is none with a win rate."""
    figures = read_object(folder / "summary.json")
    return figures if _same_models(figures.get("settings"), settings) and decide(figures) is not None else {}


def decide_again(folder: Path, settings: Mapping[str, Any], budget: float | None, **training: Any) -> Decision | None:
    """Decides an earlier comparison again with newly measured abilities; None if these models were not compared.

    Args: as for `abilities_of`; `training` as for `advice.next_steps`.
    """
    figures = compared_before(folder, settings)
    if not figures:
        return None
    figures["abilities"] = abilities_of(folder, settings, budget)
    decision = decide(figures)
    if decision is not None:
        steps = steps_after(figures, decision.name, **training)
        write_summary(folder, {**figures, **decision.to_dict(), "next_steps": steps})
    return decision


def _remember(path: Path, figures: Mapping[str, Any]) -> None:
    """Appends the evaluation to the history, unless the last one there is the same."""
    record = {
        "aligned": figures.get("aligned_name"),
        "baseline": figures.get("baseline_name"),
        **{name: figures.get(name) for name in ("judge", "n", "prompts", "win_rate", "ci_low", "ci_high")},
        **{name: figures.get(name) for name in ("confidence", "verdict")},
        "settings": digest(figures.get("settings")),
    }
    last: dict[str, Any] = next(reversed(read_lines(path)), {})
    if record != {name: value for name, value in last.items() if name != "time"}:
        append_lines(path, [{"time": int(time.time()), **record}])


def with_section_of(card: Path, text: str) -> str:
    """Text of a new card, followed by the section "Evaluation" of the card that it replaces, if that has one."""
    try:
        found = _SECTION.search(card.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        found = None
    return text if found is None else f"{text.rstrip()}\n\n{found.group().strip()}\n"


def _same_models(one: object, other: Mapping[str, Any]) -> bool:
    """Whether both settings name the same two models, whatever the lengths and the sampling of their answers are."""
    return all(_model(one, side) is not None and _model(one, side) == _model(other, side) for side in _MODELS)


def _model(settings: object, side: str) -> dict[str, Any] | None:
    found = at(settings, side)
    return {k: v for k, v in found.items() if k not in _ANSWERS} if isinstance(found, Mapping) else None


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
    rules = [f"- {_inline(rule.line())}" for rule in decision.rules]
    against = f"Compared with `{_inline(str(figures.get('baseline_name')))}` by `{_inline(str(figures.get('judge')))}`."
    section = ["## Evaluation", "", f"**{decision.name}.** {_inline(decision.sentence)} {against}", "", *rules]
    write_atomically(card, "\n".join([text.rstrip(), "", _BEGIN, *section, _END, ""]))


def _inline(text: str) -> str:
    """Text that opens no markup of a card."""
    return " ".join(re.sub(r"[`<>]", "'", text).split())
