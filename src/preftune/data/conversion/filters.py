"""Selects the pairs of a dataset that are kept: by rule, by comparison with all others, or at random."""

from __future__ import annotations

import json
import math
import unicodedata
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preftune.data.chat.messages import text_of
from preftune.data.conversion.use_case import check_languages
from preftune.data.pairs.mixture import check_seed
from preftune.errors import ConfigError, DatasetError, did_you_mean
from preftune.text_quality.near_duplicates import Sketches, repeated_nearly
from preftune.types import Message, PreferencePair, Text

REASONS: Mapping[str, str] = {
    "no_preference": "the row is not a preference",
    "empty": "chosen or rejected is empty",
    "identical": "chosen and rejected are the same",
    "no_shared_prompt": "chosen and rejected do not answer the same prompt",
    "unlike_itself": "the written row would be read back as a different pair",
    "topic": "its topic is not among those of --topic",
    "keyword": "none of the --keyword words is in the prompt",
    "language": "its language is not among those of --language, or is not recognised",
    "rule": "--rule returned False",
    "source": "its source is not among those of --source",
    "no_strength": "the row does not state how much better the chosen side is, which --min-margin needs",
    "min_margin": "below --min-margin",
    "no_agreement": "the row does not state how many annotators agree, which --min-agreement needs",
    "min_agreement": "below --min-agreement",
    "max_length_ratio": "one side is longer than the other by more than --max-length-ratio",
    "contradiction": "another row states the opposite preference (--drop-contradictions)",
    "duplicate": "an earlier row holds the same pair (--dedupe)",
    "near_duplicate": "an earlier row holds nearly the same pair (--dedupe near)",
    "length_balance": "left out so that the longer side wins as often as the shorter one (--balance-length)",
    "sample": "not drawn (--sample)",
}
"""Why a pair is left out, in the order of the checks: the first reason counts."""

_CODES = {reason: code for code, reason in enumerate(REASONS, start=1)}

By = Literal["prompt", "pair"]


@dataclass(frozen=True, slots=True)
class Filters:
    """The conditions that pairs must meet. By default there are none."""

    min_margin: float | None = None
    """Minimum strength, in the data's own units; minimum margin in nats if the data have margins and no strength."""
    min_agreement: float | None = None
    """Minimum share of annotators who agree with the label, 0..1."""
    max_length_ratio: float | None = None
    """Maximum ratio of the longer to the shorter side in characters, 1 or more."""
    sources: tuple[str, ...] = ()
    """Names of sources that are kept; empty for all."""
    topics: tuple[str, ...] = ()
    """Topics that are kept, by the data's own column; empty for all."""
    keywords: tuple[str, ...] = ()
    """Words or phrases of which the prompt must contain one; empty for no condition."""
    languages: tuple[str, ...] = ()
    """Language codes (`en`) that prompt and chosen answer may be in; empty for all."""
    rule: str | None = None
    """`MODULE:FUNCTION` or `FILE.py:FUNCTION` that returns for each row whether it is kept."""
    dedupe: bool | Literal["near"] = False
    """Keep only the first of equal pairs; with "near" also of nearly equal ones."""
    drop_contradictions: bool = False
    """Keep neither of two pairs that contradict each other."""
    balance_length: bool = False
    """Keep as many pairs in which the longer side wins as in which it loses; the surplus is chosen at random and left
    out.
    """
    sample: int | None = None
    """Maximum number of pairs to keep, drawn at random."""
    split: float | None = None
    """Share that is held out, above 0 and below 1."""
    by: By = "prompt"
    """Unit of the share: prompts (no prompt is on both sides) or pairs."""
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {"min_margin": (0, math.inf), "min_agreement": (0, 1), "max_length_ratio": (1, math.inf)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                span = f"between {low} and {high}" if math.isfinite(high) else f"of {low} or more"
                raise ConfigError(f"{name} is {value!r}; give a number {span}.")
        if self.sample is not None and self.sample < 1:
            raise ConfigError(f"sample is {self.sample!r}; give the number of pairs to keep, at least 1.")
        if self.split is not None and not 0 < self.split < 1:
            raise ConfigError(f"split is {self.split!r}; give a share between 0 and 1, such as 0.05.")
        check_seed(self.seed)
        check_languages(self.languages)

    def asked(self) -> dict[str, Any]:
        """The settings that differ from the defaults, in a fixed order."""
        return {
            entry.name: list(value) if isinstance(value, tuple) else value
            for entry in fields(self)
            if (value := getattr(self, entry.name)) != entry.default
        }


_ARRAYS = (
    "prompts", "chosen", "rejected", "split_keys", "chosen_lengths", "rejected_lengths", "strengths", "margins",
    "agreements", "codes",
)  # fmt: skip
"""The numbers of `Facts` that do not depend on other rows."""


class Facts:
    """The facts kept about every pair while all are read: hashes and numbers, under 100 bytes per pair, 900 with
    `near`.
    """

    def __init__(self, *, near: bool = False) -> None:
        """
        Args:
            near: also keep signatures, by which nearly equal texts are found.
        """
        self.sketches = Sketches() if near else None
        self.prompts, self.chosen, self.rejected = array("Q"), array("Q"), array("Q")
        self.split_keys = array("Q")
        self.chosen_lengths, self.rejected_lengths = array("q"), array("q")
        self.strengths, self.margins, self.agreements = array("d"), array("d"), array("d")
        self.sources = array("i")
        self.codes = array("b")
        self.source_names: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.codes)

    def add(self, pair: PreferencePair, strength: float | None, reason: str | None = None) -> None:
        """Adds a pair, with the reason for leaving it out if that is already known."""
        self.prompts.append(_digest(pair.prompt, pair.tools, dict(pair.chat_template_kwargs)))
        self.split_keys.append(split_key(pair))
        self.chosen.append(_digest(pair.chosen))
        self.rejected.append(_digest(pair.rejected))
        self.chosen_lengths.append(_characters(pair.chosen))
        self.rejected_lengths.append(_characters(pair.rejected))
        self.strengths.append(math.nan if strength is None else strength)
        self.margins.append(pair.margin)
        self.agreements.append(math.nan if pair.agreement is None else pair.agreement)
        self.sources.append(self.source_names.setdefault(pair.source or "", len(self.source_names)))
        self.codes.append(0 if reason is None else _CODES[reason])
        if self.sketches is not None:
            self.sketches.add(*(text_of(side) for side in (pair.prompt, pair.chosen, pair.rejected)))

    def extend(self, other: Facts) -> None:
        """Adds the facts of the rows that follow."""
        for name in _ARRAYS:
            getattr(self, name).extend(getattr(other, name))
        numbers = {-1: -1}
        for name, number in other.source_names.items():
            numbers[number] = self.source_names.setdefault(name, len(self.source_names))
        self.sources.extend(numbers[number] for number in other.sources)
        if self.sketches is not None and other.sketches is not None:
            self.sketches.extend(other.sketches)

    def add_none(self, reason: str) -> None:
        """Adds a row without a pair."""
        for values in (self.prompts, self.split_keys, self.chosen, self.rejected):
            values.append(0)
        for lengths in (self.chosen_lengths, self.rejected_lengths):
            lengths.append(0)
        for numbers in (self.strengths, self.margins, self.agreements):
            numbers.append(math.nan)
        self.sources.append(-1)
        self.codes.append(_CODES[reason])
        if self.sketches is not None:
            self.sketches.add("", "", "")


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of every row that was read."""

    kept: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    """Positions among the kept pairs."""
    dropped: dict[str, NDArray[np.int64]]
    """Reason (a key of `REASONS`) -> positions."""
    margin_from: str | None
    """'strength' or 'margin': what min_margin was compared with."""


def decide(facts: Facts, filters: Filters) -> Decision:
    """Applies the filters.

    Raises: DatasetError: a filter on a value that no pair has, an unknown source, or a split of a single prompt.
    """
    codes = np.array(facts.codes, dtype=np.int8)
    margin_from = None
    if filters.sources:
        _leave_out(codes, "source", ~np.isin(facts.sources, _wanted(facts, filters.sources)))
    if filters.min_margin is not None:
        margin_from, values = _margins(facts, codes)
        _leave_out(codes, "no_strength", np.isnan(values))
        _leave_out(codes, "min_margin", values < filters.min_margin)
    if filters.min_agreement is not None:
        agreements = np.asarray(facts.agreements)
        if np.isnan(agreements[codes == 0]).all():
            raise DatasetError(
                "min_agreement: no pair states how many annotators agree with it. Leave --min-agreement out, or name "
                "the column with --columns agreement=COLUMN."
            )
        _leave_out(codes, "no_agreement", np.isnan(agreements))
        _leave_out(codes, "min_agreement", agreements < filters.min_agreement)
    chosen, rejected = np.asarray(facts.chosen_lengths), np.asarray(facts.rejected_lengths)
    if filters.max_length_ratio is not None:
        longer, shorter = np.maximum(chosen, rejected), np.minimum(chosen, rejected)
        _leave_out(codes, "max_length_ratio", longer > filters.max_length_ratio * shorter)
    if filters.drop_contradictions:
        _leave_out(codes, "contradiction", _contradicted(facts, codes))
    if filters.dedupe:
        _leave_out(codes, "duplicate", _repeated(facts, codes))
    if filters.dedupe == "near":
        _leave_out(codes, "near_duplicate", _repeated_nearly(facts, codes))
    if filters.balance_length:
        _leave_out(codes, "length_balance", _surplus(chosen - rejected, codes, _generator(filters, 1)))
    if filters.sample is not None:
        kept = np.flatnonzero(codes == 0)
        surplus = max(0, len(kept) - filters.sample)
        _leave_out(codes, "sample", _at(_generator(filters, 2).choice(kept, surplus, replace=False), codes))
    kept_all = codes == 0
    held_out = np.zeros_like(kept_all)
    if filters.split is not None and kept_all.any():
        held_out = _held_out(facts, kept_all, filters)
    dropped = {reason: np.flatnonzero(codes == code) for reason, code in _CODES.items() if (codes == code).any()}
    return Decision(kept_all, held_out, dropped, margin_from)


def _leave_out(codes: NDArray[np.int8], reason: str, where: NDArray[np.bool_]) -> None:
    codes[(codes == 0) & where] = _CODES[reason]


def _wanted(facts: Facts, names: Iterable[str]) -> list[int]:
    there = {name: index for name, index in facts.source_names.items() if name}
    for name in names:
        if name not in there:
            hint = did_you_mean(name, there, otherwise="Leave --source out.")
            found = ", ".join(map(repr, sorted(there)[:12])) or "none"
            raise DatasetError(f"No pair is of the source {name!r} (found: {found}). {hint}")
    return [there[name] for name in names]


def _margins(facts: Facts, codes: NDArray[np.int8]) -> tuple[str, NDArray[np.float64]]:
    """The strengths if the data have them, otherwise the margins in nats."""
    strengths, margins = np.asarray(facts.strengths), np.asarray(facts.margins)
    if not np.isnan(strengths[codes == 0]).all():
        return "strength", strengths
    if (margins[codes == 0] > 0).any():
        return "margin", margins
    raise DatasetError(
        "min_margin: the data have neither ratings, ranks or votes nor a column of margins. Leave --min-margin out, or "
        "name the column with --columns margin=COLUMN."
    )


def _contradicted(facts: Facts, codes: NDArray[np.int8]) -> NDArray[np.bool_]:
    pairs = list(zip(facts.prompts, facts.chosen, facts.rejected, strict=True))
    there = {pair for pair, code in zip(pairs, codes, strict=True) if code == 0}
    return np.fromiter(((p, r, c) in there for p, c, r in pairs), np.bool_, len(pairs))


def _repeated(facts: Facts, codes: NDArray[np.int8]) -> NDArray[np.bool_]:
    seen: set[tuple[int, int, int]] = set()
    repeated = np.zeros(len(codes), np.bool_)
    for place in np.flatnonzero(codes == 0).tolist():
        pair = (facts.prompts[place], facts.chosen[place], facts.rejected[place])
        repeated[place] = pair in seen
        seen.add(pair)
    return repeated


def _repeated_nearly(facts: Facts, codes: NDArray[np.int8]) -> NDArray[np.bool_]:
    assert facts.sketches is not None
    kept = np.flatnonzero(codes == 0)
    sketches = (side[kept] for side in facts.sketches.signatures())
    again = repeated_nearly(np.asarray(facts.prompts, dtype=np.uint64)[kept], *sketches)
    return _at(kept[again], codes)


def _surplus(
    differences: NDArray[np.int64], codes: NDArray[np.int8], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """The surplus pairs: of those in which the longer side wins, or of those in which it loses, whichever are more."""
    wins = np.flatnonzero((codes == 0) & (differences > 0))
    losses = np.flatnonzero((codes == 0) & (differences < 0))
    more, fewer = (wins, losses) if len(wins) >= len(losses) else (losses, wins)
    return _at(generator.choice(more, len(more) - len(fewer), replace=False), codes)


def _held_out(facts: Facts, kept: NDArray[np.bool_], filters: Filters) -> NDArray[np.bool_]:
    positions = np.flatnonzero(kept)
    units = np.asarray(facts.split_keys)[positions] if filters.by == "prompt" else positions.astype(np.uint64)
    names = np.array(list(dict.fromkeys(units.tolist())), dtype=np.uint64)  # in their order, not that of their hashes
    if len(names) < 2:
        raise DatasetError(f"split: there is only one {filters.by}, so nothing can be held out. Leave --split out.")
    assert filters.split is not None
    count = min(len(names) - 1, max(1, round(filters.split * len(names))))
    drawn = _generator(filters, 3).choice(names, count, replace=False)
    held_out = np.zeros_like(kept)
    held_out[positions[np.isin(units, drawn)]] = True
    return held_out


def split_key(pair: PreferencePair) -> int:
    """64-bit hash of the key that must not be on both sides of a split: the prompt, independent of its form.

    A text counts as one turn of the user, so that it equals the same prompt as a conversation; tools and template
    options are left out, because the question is the same with any of them. Each pair without a prompt has its own key
    (equal pairs have the same)."""
    if is_blank(pair.prompt):
        return _digest(sorted(_digest(_turns(side, "assistant")) for side in (pair.chosen, pair.rejected)))
    return prompt_key(pair.prompt)


def prompt_key(prompt: Text) -> int:
    """The `split_key` of pairs with this prompt; differences in white space and Unicode normalisation are ignored."""
    return text_key([{**turn, "content": _plain(turn.get("content"))} for turn in _turns(prompt, "user")])


def _plain(content: Any) -> Any:
    return " ".join(unicodedata.normalize("NFC", content).split()) if isinstance(content, str) else content


def text_key(text: Text) -> int:
    """64-bit hash of a text or turns; a text counts as one turn of the user."""
    return _digest(_turns(text, "user"))


def _turns(side: Text, role: str) -> list[Message]:
    return [{"role": role, "content": side}] if isinstance(side, str) else side


def _generator(filters: Filters, step: int) -> np.random.Generator:
    """Each step has its own generator, so that a further filter does not change the draws of the others."""
    return np.random.default_rng([filters.seed, step])


def _at(positions: NDArray[np.int64], codes: NDArray[np.int8]) -> NDArray[np.bool_]:
    where = np.zeros(len(codes), np.bool_)
    where[positions] = True
    return where


def _digest(*values: Any) -> int:
    import xxhash

    text = values[0] if len(values) == 1 else json.dumps(values, ensure_ascii=False, sort_keys=True, default=str)
    kind = "t" if isinstance(text, str) else "m"
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False, sort_keys=True, default=str)
    return xxhash.xxh3_64_intdigest((kind + text).encode("utf-8", "surrogatepass"))


def _characters(side: Text) -> int:
    if isinstance(side, str):
        return len(side)
    return sum(len(turn["content"]) + (len(str(turn["tool_calls"])) if turn.get("tool_calls") else 0) for turn in side)


def is_blank(side: Text) -> bool:
    """Whether there is nothing to learn: no text, and no tool call."""
    if isinstance(side, str):
        return not side.strip()
    return all(is_blank(turn["content"]) and not turn.get("tool_calls") for turn in side)
