"""Lengths of prompts and answers, and the tokens that the limits of training would cut."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Finding, Kind, Rows
from preftune.audit.seen import SeenPair, lengths_of
from preftune.audit.summaries import Numbers, histogram, percentiles
from preftune.data.tokens.encoded import Encoded

PARTS = ("prompt", "chosen", "rejected")

CUT = Kind(
    "answers_cut",
    "warning",
    "Answers cut by max_length",
    "The end of the answer and its end-of-sequence token are not trained, so the model learns less about when to stop.",
    "Raise --max_length, or leave long rows out: preftune dpo --truncation drop.",
)
NO_ROOM = Kind(
    "no_room",
    "error",
    "Prompts that leave no room for an answer",
    "No part of the answers is left; preftune dpo leaves the row out.",
    "Raise --max_length, or cut the prompts: --max_prompt_length.",
)
SAME_WHEN_CUT = Kind(
    "same_when_cut",
    "error",
    "Pairs that differ only in what is cut off",
    "The remaining sides are equal; preftune dpo leaves the row out.",
    "Raise --max_length.",
)
NO_ANSWER_LEFT = Kind(
    "no_answer_left",
    "error",
    "Sides of which all text of the assistant is cut off",
    "The remaining conversation has no scored tokens; preftune dpo leaves the row out.",
    "Raise --max_length.",
)
PROMPT_CUT = Kind(
    "prompts_cut",
    "warning",
    "Prompts cut by max_prompt_length",
    "The beginning of the prompt is lost, with the system prompt if there is one.",
    "Raise --max_prompt_length.",
)


_LEFT_OUT = (NO_ROOM, SAME_WHEN_CUT, NO_ANSWER_LEFT)
_WHEN_CUT = {"identical_after_truncation": SAME_WHEN_CUT, "no_answer_left": NO_ANSWER_LEFT}
_TOLD_ELSEWHERE = len(_LEFT_OUT) + 1


class CutRow(NamedTuple):
    """The lengths of one row, and what the limits cut of it, in tokens."""

    row: int
    prompt: int
    chosen: int
    rejected: int
    cut_prompt: int
    cut_chosen: int
    cut_rejected: int
    outcome: str
    """"cut", or the name of the finding for which the row is left out."""


class LengthsCheck(Check):
    """Counts the tokens of every part. Without a tokenizer it counts words, and does not check the limits."""

    kinds = (*_LEFT_OUT, CUT, PROMPT_CUT)
    section = "lengths"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.lengths = {part: array("q") for part in PARTS}
        self.outcome = array("b")
        """0 for a row that is kept, 1 + the index in `_LEFT_OUT` of the finding for which the limits leave it out, or
        `_TOLD_ELSEWHERE` for a row that another check reports."""

    def take(self, seen: SeenPair) -> None:
        tokens = self.setting.encoder is not None
        lengths = lengths_of(seen, tokens=tokens)
        if lengths is None or seen.blank:
            return
        self.kept.keep(seen.index, seen.row)
        for part, length in zip(PARTS, lengths, strict=True):
            self.lengths[part].append(length)
        self.outcome.append(self._outcome(seen.encoded) if tokens and seen.encoded is not None else 0)

    def _outcome(self, encoded: Encoded) -> int:
        """The value of `outcome` for a row, cut as in `tokenize_pairs`."""
        setting = self.setting
        if encoded.reason is not None:
            return _TOLD_ELSEWHERE
        if setting.max_length is None:
            return 0
        room = setting.max_length - min(len(encoded.prompt), setting.max_prompt_length or len(encoded.prompt))
        if room <= 0:
            return 1 + _LEFT_OUT.index(NO_ROOM)
        if max(map(len, encoded.completions)) <= room:
            return 0
        cut = replace(encoded)
        cut.cut(room)
        return 0 if cut.reason is None else 1 + _LEFT_OUT.index(_WHEN_CUT[cut.reason])

    def _numbers(self) -> dict[str, Numbers]:
        return {part: np.frombuffer(values, dtype=np.int64) for part, values in self.lengths.items()}

    def _cuts(self) -> dict[str, Numbers]:
        """Part -> the tokens that are cut of each pair, shape (pairs,)."""
        setting, lengths = self.setting, self._numbers()
        prompt = lengths["prompt"]
        if setting.max_prompt_length is not None:
            prompt = np.minimum(prompt, setting.max_prompt_length)
        room = np.full(len(prompt), np.iinfo(np.int64).max)
        if setting.max_length is not None:
            room = setting.max_length - prompt
        return {
            "prompt": lengths["prompt"] - prompt,
            "chosen": np.maximum(0, lengths["chosen"] - np.maximum(room, 0)),
            "rejected": np.maximum(0, lengths["rejected"] - np.maximum(room, 0)),
        }

    def findings(self, pairs: int) -> Iterator[Finding]:
        if self.setting.encoder is None or not len(self.outcome):
            return
        cuts = self._cuts()
        outcomes = np.frombuffer(self.outcome, dtype=np.int8)
        answers = np.maximum(cuts["chosen"], cuts["rejected"])
        lengths = self._numbers()
        whole = int((lengths["prompt"] + np.maximum(lengths["chosen"], lengths["rejected"])).max())
        keep = f"max_length={whole} would keep every row whole."
        for number, kind in enumerate(_LEFT_OUT, start=1):
            tokens, note = (lengths["prompt"], "prompt of {} tokens") if kind is NO_ROOM else (answers, "{} tokens cut")
            yield from kind.found(self._rows(outcomes == number, tokens, note), of=pairs)
        cut = (answers > 0) & (outcomes == 0)
        yield from CUT.found(self._rows(cut, answers, "{} tokens cut"), of=pairs, detail=keep)
        cut = (cuts["prompt"] > 0) & (outcomes == 0)
        yield from PROMPT_CUT.found(self._rows(cut, cuts["prompt"], "{} tokens cut"), of=pairs)

    def _rows(self, mask: Numbers, tokens: Numbers, note: str) -> Rows:
        """The rows of a mask; those with the most tokens are the examples."""
        places = np.flatnonzero(mask)
        worst = places[np.argsort(-tokens[places], kind="stable")]
        return self.kept.rows(worst, lambda place: note.format(f"{tokens[place]:,}"))

    def cut_rows(self) -> Iterator[CutRow]:
        """The rows of which the limits cut tokens, or which they leave out."""
        if self.setting.encoder is None:
            return
        cuts = self._cuts()
        outcomes = np.frombuffer(self.outcome, dtype=np.int8)
        lost = (outcomes > 0) | (cuts["prompt"] + cuts["chosen"] + cuts["rejected"] > 0)
        for place in np.flatnonzero(lost & (outcomes != _TOLD_ELSEWHERE)):
            at = int(place)
            outcome = _LEFT_OUT[outcomes[at] - 1].name if outcomes[at] else "cut"
            prompt, chosen, rejected = (self.lengths[part][at] for part in PARTS)
            cut = [int(cuts[part][at]) for part in PARTS]
            yield CutRow(self.kept.row[at], prompt, chosen, rejected, cut[0], cut[1], cut[2], outcome)

    def figures(self) -> Mapping[str, Any]:
        lengths = self._numbers()
        if not len(self.outcome):
            return {"unit": self.setting.unit, "pairs": 0}
        longer = np.maximum(lengths["chosen"], lengths["rejected"])
        numbers = {**lengths, "pair": lengths["prompt"] + longer}
        both = np.concatenate([lengths["chosen"], lengths["rejected"]])
        high = float(np.percentile(both, 99.5))
        difference = lengths["chosen"] - lengths["rejected"]
        reach = float(np.percentile(np.abs(difference), 99))
        figures: dict[str, Any] = {
            "unit": self.setting.unit,
            "pairs": len(self.outcome),
            "tokenizer": self.setting.tokenizer_name,
            "max_length": self.setting.max_length,
            "max_prompt_length": self.setting.max_prompt_length,
            "percentiles": {part: percentiles(values) for part, values in numbers.items()},
            "histograms": {
                **{side: histogram(lengths[side], low=0.0, high=high) for side in ("chosen", "rejected")},
                "prompt": histogram(lengths["prompt"]),
                "pair": histogram(numbers["pair"]),
                "difference": histogram(difference, low=-reach, high=reach),
            },
        }
        if self.setting.encoder is not None:
            cuts = self._cuts()
            outcomes = np.frombuffer(self.outcome, dtype=np.int8)
            lost = (outcomes > 0) & (outcomes != _TOLD_ELSEWHERE)
            any_cut = (cuts["prompt"] + cuts["chosen"] + cuts["rejected"] > 0) & (outcomes == 0)
            figures["cut"] = {"cut": int(any_cut.sum()), "left_out": int(lost.sum())}
        return figures
