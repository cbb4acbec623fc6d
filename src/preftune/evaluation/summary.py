"""From answers and outcomes to `eval/summary.json`, and to sentences that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from preftune.evaluation.correctness import KeyFactRates, compare_key_facts, correctness_verdict
from preftune.evaluation.judges import is_correct
from preftune.evaluation.records import digest
from preftune.evaluation.statistics import Verdict, WinRate, mean_interval, share, verdict, win_rate

if TYPE_CHECKING:
    from preftune.evaluation.pairwise import AnsweredRow, JudgedRow

OUTCOME_VALUE = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True, slots=True)
class Summary:
    """The evidence about one evaluation. `to_dict` is what `eval/summary.json` holds."""

    win_rate: WinRate
    verdict: Verdict
    key_facts: KeyFactRates | None
    correctness: Verdict
    mean_tokens: dict[str, float]
    """Tokens per answer, `base` and `aligned`."""
    finished: dict[str, float]
    """Share of answers that ended by themselves instead of at the length limit, `base` and `aligned`."""
    judge: str
    order_disagreements: int | None
    """Rows where the judge contradicted itself when the answers were swapped; None when it was asked once."""
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.win_rate.to_dict(),
            "verdict": self.verdict.name,
            "verdict_sentence": self.verdict.sentence,
            "judge": self.judge,
            "order_disagreements": self.order_disagreements,
            "key_fact_rate": None if self.key_facts is None else self.key_facts.to_dict(),
            "mean_tokens": self.mean_tokens,
            "finished": self.finished,
            "correctness_verdict": self.correctness.name,
            "correctness_sentence": self.correctness.sentence,
            "settings": self.settings,
        }

    def sentences(self) -> list[str]:
        """The result in plain sentences, the verdict first."""
        lines = [self.verdict.sentence, self.correctness.sentence]
        if self.order_disagreements:
            lines.append(
                f"The judge contradicted itself on {self.order_disagreements} of {self.win_rate.n} rows when the "
                "answers were swapped; these count as ties."
            )
        lines.extend(
            f"Only {self.finished[side]:.0%} of the {side} model's answers ended by themselves; the others were cut at "
            "max_new_tokens. Raise it, or look whether the model repeats itself."
            for side in ("base", "aligned")
            if self.finished[side] < 0.9
        )
        return lines

    def render(self) -> str:
        """The sentences, one per line."""
        return "\n".join(self.sentences())


def summarise(
    answered: Sequence[AnsweredRow],
    judged: Sequence[JudgedRow],
    rows: Sequence[Mapping[str, Any]],
    *,
    judge: str,
    settings: Mapping[str, Any] | None = None,
    confidence: float = 0.95,
) -> Summary:
    """Count outcomes, key facts, lengths and unfinished answers. Rows with the same prompt are one cluster.

    Key facts are measured when every row has a `key_fact`; whichever judge was used.
    """
    clusters = [digest(answer.prompt) for answer in answered]
    rate = win_rate([OUTCOME_VALUE[j.outcome] for j in judged], clusters, confidence=confidence)
    rates = None
    if all(row.get("key_fact") for row in rows):
        rates = compare_key_facts(
            [is_correct(answer.base, row) for answer, row in zip(answered, rows, strict=True)],
            [is_correct(answer.aligned, row) for answer, row in zip(answered, rows, strict=True)],
            clusters,
            confidence=confidence,
        )
    tokens = {
        "base": mean_interval([float(answer.base_tokens) for answer in answered]).mean,
        "aligned": mean_interval([float(answer.aligned_tokens) for answer in answered]).mean,
    }
    asked_twice = [j for j in judged if j.aligned_first is not None]
    return Summary(
        win_rate=rate,
        verdict=verdict(rate),
        key_facts=rates,
        correctness=correctness_verdict(rates, base_tokens=tokens["base"], aligned_tokens=tokens["aligned"]),
        mean_tokens=tokens,
        finished={
            "base": share([float(answer.base_finished) for answer in answered]).mean,
            "aligned": share([float(answer.aligned_finished) for answer in answered]).mean,
        },
        judge=judge,
        order_disagreements=sum(_contradicts(j) for j in asked_twice) if asked_twice else None,
        settings=dict(settings or {}),
    )


def _contradicts(judged: JudgedRow) -> bool:
    """Whether the judge preferred the same *place* both times, the mark of position bias."""
    return judged.base_first == judged.aligned_first and judged.base_first != "tie"
