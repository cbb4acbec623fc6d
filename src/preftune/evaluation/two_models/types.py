"""The rows of a comparison of two models: the answers to a prompt, and the verdict on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from preftune.generation.protocol import SIDES
from preftune.generation.thoughts import Spoken
from preftune.judges.protocol import Graded
from preftune.types import Text

_PER_SIDE = ("tokens", "finished", "thought", "thought_tokens")
"""What a line of `generations.jsonl` holds by side."""


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """One row with both answers, as a line of `generations.jsonl`."""

    id: str
    prompt: Text
    base: str
    aligned: str
    base_tokens: int
    aligned_tokens: int
    base_finished: bool
    aligned_finished: bool
    key: str = ""
    """Content address of prompt and settings: an answer is reused only under the same key."""
    category: str | None = None
    base_thought: str = ""
    """What a thinking model wrote before its answer; judges, matchers and lengths do not see it."""
    aligned_thought: str = ""
    base_thought_tokens: int = 0
    aligned_thought_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": self.id,
            "prompt": self.prompt,
            "base": self.base,
            "aligned": self.aligned,
            **{name: self._by_side(name) for name in _PER_SIDE[:2]},
            "key": self.key,
            "category": self.category,
        }
        if self.base_thought or self.aligned_thought:
            record |= {name: self._by_side(name) for name in _PER_SIDE[2:]}
        return record

    def _by_side(self, name: str) -> dict[str, Any]:
        return {side: getattr(self, f"{side}_{name}") for side in SIDES}

    def with_thoughts(self) -> AnsweredRow:
        """The row as a judge of thoughts sees it: each answer with its thought before it."""
        return replace(
            self,
            base=Spoken(self.base, self.base_thought).whole,
            aligned=Spoken(self.aligned, self.aligned_thought).whole,
            base_tokens=self.base_tokens + self.base_thought_tokens,
            aligned_tokens=self.aligned_tokens + self.aligned_thought_tokens,
            base_thought="",
            aligned_thought="",
            base_thought_tokens=0,
            aligned_thought_tokens=0,
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AnsweredRow:
        sides = {f"{side}_{name}": record[name][side] for name in _PER_SIDE if name in record for side in SIDES}
        one = {name: record[name] for name in ("id", "prompt", *SIDES)}
        return cls(**one, **sides, key=record.get("key", ""), category=record.get("category"))


Outcome: TypeAlias = Literal["win", "tie", "loss"]
"""Of the aligned model."""
_VALUES: Mapping[Outcome, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def outcome_word(value: float) -> Outcome:
    """A share of a comparison in words: more than half is a win."""
    return "tie" if value == 0.5 else "win" if value > 0.5 else "loss"


class JudgedRow(NamedTuple):
    """The outcome of one row for the aligned model, and the raw judgements that led to it."""

    id: str
    value: float
    """The share of the comparison that the aligned model wins, 0..1: 1 a win, 0.5 a tie, 0 a loss, or a probability."""
    base_first: Graded | None
    """Base as answer a, aligned as answer b; None when no verdict could be read."""
    aligned_first: Graded | None
    """Aligned as answer a; None when the judge is symmetric and was asked once, or no verdict could be read."""
    key: str = ""
    unjudged: bool = False
    """A verdict could not be read; the row counts as a tie."""

    @property
    def outcome(self) -> Outcome:
        return outcome_word(self.value)

    def to_dict(self) -> dict[str, Any]:
        """A line of `verdicts.jsonl`: the outcome in words too."""
        return {"id": self.id, "outcome": self.outcome, **self._asdict()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> JudgedRow:
        """A line of `verdicts.jsonl`; earlier versions wrote the outcome in words only."""
        known = {name: record[name] for name in cls._fields if name in record}
        return cls(**{"value": _VALUES[record["outcome"]], **known})
