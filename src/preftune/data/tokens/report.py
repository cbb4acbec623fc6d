"""The effect of tokenising on the rows, in numbers and in sentences: nothing is dropped or cut silently."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from preftune.amounts import counted
from preftune.data.formats.apply import RowCount
from preftune.data.tokens.encoded import Encoded
from preftune.data.tokens.groups import GroupDataset
from preftune.data.tokens.reasons import DEMONSTRATION_REASONS, LABELLED_REASONS, REASONS
from preftune.types import TokenizedGroup

_ABOUT_TURNS = {
    "moved_boundary": (
        "In {} the prompt is tokenised differently once an answer follows (a template that changes the prompt's end, "
        "or a token across the boundary); the answer is trained from the point where they diverge."
    ),
    "eos_added": "Appended the end-of-sequence token in {}: the chat template ends an answer without one.",
    "continued": "In {} the answer continues the assistant's turn that the prompt began.",
    "several_turns": (
        "In {} the two sides diverge before the last answer: every turn of the assistant after that is trained, and "
        "the other turns are context."
    ),
    "trimmed": "Left out the turns after the last answer in {}.",
    "first_turn": "In {} the assistant speaks first: that turn answers no question and is only context.",
    "context": "In {} turns of the assistant are empty or have weight 0, and are only context.",
}
_ABOUT_TEXTS = {
    "ends_cut": "In {} an answer ended with the chat template's own end-of-turn mark; it is trained once.",
    "typed_marks": (
        "In {} a text holds special tokens of the tokenizer, which become control tokens (a turn may end or begin "
        "inside the text). Remove them if they are not intended; preftune audit shows them."
    ),
    "shortened": (
        "In {} a text is longer than max_length can need; only its two ends were tokenised, so its true length in "
        "tokens is larger than reported."
    ),
}
"""The sentence about the rows that a field of the report counts."""


@dataclass
class _Report:
    """The common part of the reports on pairs and demonstrations. Row numbers count in the dataset that was opened,
    from 0.
    """

    name: str = "the dataset"
    rows_in: int = 0
    rows_out: int = 0
    total_tokens: int = 0
    """Number of tokens of the rows kept, every prompt once."""
    longest: int = 0
    """Maximum number of tokens of prompt + longest completion, before truncation."""
    dropped: dict[str, RowCount] = field(default_factory=dict)
    """Reason (a key of `reasons`) -> rows."""
    truncated: dict[str, RowCount] = field(default_factory=dict)
    """'prompt', 'chosen', 'rejected' or 'row' -> kept rows in which it was cut."""
    moved_boundary: RowCount = field(default_factory=RowCount)
    """Rows in which the prompt is rendered or merged differently once an answer follows."""
    eos_added: RowCount = field(default_factory=RowCount)
    """Rows in which the chat template ends an answer without a special token, so that eos was appended."""
    ends_cut: RowCount = field(default_factory=RowCount)
    """Rows in which an answer ended with the mark that the chat template writes itself; it occurs once."""
    typed_marks: RowCount = field(default_factory=RowCount)
    """Rows with a text that holds special tokens, which become control tokens."""
    shortened: RowCount = field(default_factory=RowCount)
    """Rows with a text that is longer than the limits can need, so that its middle was not tokenised."""
    unwritten: dict[str, RowCount] = field(default_factory=dict)
    """One of `unwritten.PARTS` -> rows in which the chat template leaves it out."""
    notes: list[str] = field(default_factory=list)
    prompt_keys: array[int] = field(default_factory=partial(array, "Q"))
    """`prompt_key` of every distinct prompt of the rows kept, sorted."""

    completions: ClassVar[tuple[str, ...]]
    """Names of the completions."""
    reasons: ClassVar[Mapping[str, tuple[str, str]]]
    as_chat: ClassVar[str]
    """Advice on how to make conversations of plain rows."""

    def see(self, encoded: Encoded) -> None:
        """Measures a row before truncation."""
        self.longest = max(self.longest, encoded.tokens)

    def keep(self, encoded: Encoded, cut: Iterable[str]) -> None:
        """Counts a row that is trained, and its parts that were cut."""
        for part in cut:
            self.truncated.setdefault(part, RowCount()).add(encoded.row)

    def _notice(self, encoded: Encoded) -> None:
        for name in (*_ABOUT_TURNS, *_ABOUT_TEXTS):
            if hasattr(self, name) and getattr(encoded, name):
                getattr(self, name).add(encoded.row)
        if encoded.unwritten:
            self.unwritten.setdefault(encoded.unwritten, RowCount()).add(encoded.row)

    def count_left(self, left: Mapping[str, RowCount]) -> None:
        """Counts rows that were left out before they were tokenised."""
        for reason, out in left.items():
            self.dropped[reason] = RowCount(out.count, list(out.rows))
            self.rows_in += out.count

    def drop(self, reason: str, row: int) -> None:
        self.dropped.setdefault(reason, RowCount()).add(row)

    def measure(self, groups: GroupDataset) -> None:
        """Records the sizes of the trained groups."""
        self.rows_out, self.total_tokens = len(groups), groups.total_tokens

    def measure_next(self, group: TokenizedGroup) -> None:
        """Adds the sizes of one more trained group."""
        self.rows_out += 1
        self.total_tokens += group.tokens

    @property
    def rows_dropped(self) -> int:
        return sum(tally.count for tally in self.dropped.values())

    def lines(self) -> list[str]:
        """The report in sentences, each with a correction."""
        lines = [
            f"{self.name}: {self.rows_out:,} of {counted(self.rows_in, 'row')} kept, "
            f"{counted(self.total_tokens, 'token')}{self._trained()}; the longest has {self.longest:,}."
        ]
        for reason, tally in self.dropped.items():
            wrong, remedy = self.reasons[reason]
            lines.append(f"Dropped {tally}: {wrong}. {remedy}")
        lines += [
            self._cut(part, self.truncated[part]) for part in ("prompt", *self.completions) if part in self.truncated
        ]
        lines += self._sentences(_ABOUT_TURNS)
        lines += [
            f"In {tally} the chat template does not write {part}, and the model is trained without it. Give a template "
            "that writes it (--chat_template_path FILE), or change the rows."
            for part, tally in self.unwritten.items()
        ]
        return [*lines, *self._sentences(_ABOUT_TEXTS), *self.notes]

    def _trained(self) -> str:
        return ""

    def _cut(self, part: str, tally: RowCount) -> str:
        of = "" if part == "row" else f"{part} in "
        return (
            f"Cut the end of {of}{tally}; no end-of-sequence token is trained there. max_length={self.longest} would "
            "keep them whole."
        )

    def _sentences(self, about: Mapping[str, str]) -> list[str]:
        tallies = ((sentence, getattr(self, name, None)) for name, sentence in about.items())
        return [sentence.format(tally) for sentence, tally in tallies if tally is not None and tally.count]

    def to_json(self) -> dict[str, Any]:
        """Plain values without the keys of prompts, of which `report_of` makes a report again."""
        values = asdict(replace(self, prompt_keys=array("Q")))
        del values["prompt_keys"]
        return values


@dataclass
class TokenizeReport(_Report):
    """Outcome of `tokenize_pairs`."""

    longest_prompt: int = 0
    """Maximum number of tokens of a prompt, before truncation."""
    continued: RowCount = field(default_factory=RowCount)
    """Rows whose answer continues an assistant's turn that starts in the prompt."""
    several_turns: RowCount = field(default_factory=RowCount)
    """Rows whose sides diverge before the last answer: every later turn of the assistant is trained, other turns are
    context.
    """

    completions: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    reasons: ClassVar = REASONS
    as_chat: ClassVar = "For a chat model give prompts as messages, or load_pairs(...).as_chat() (--as_chat)."

    def see(self, encoded: Encoded) -> None:
        super().see(encoded)
        self._notice(encoded)
        self.longest_prompt = max(self.longest_prompt, len(encoded.prompt))

    def _cut(self, part: str, tally: RowCount) -> str:
        if part != "prompt":
            return super()._cut(part, tally)
        return (
            f"Cut the beginning of the prompt in {tally}. max_prompt_length={self.longest_prompt} would keep them "
            "whole."
        )


@dataclass
class LabelledReport(TokenizeReport):
    """Outcome of `tokenize_labelled`."""

    completions: ClassVar = ("answer",)
    reasons: ClassVar = LABELLED_REASONS
    as_chat: ClassVar = "For a chat model give prompts as messages, or load_labelled(...).as_chat() (--as_chat)."


@dataclass
class DemonstrationReport(_Report):
    """Outcome of `tokenize_demonstrations`."""

    kind: str = "demonstrations"
    scored_tokens: int = 0
    """Number of trained tokens; the others are context."""
    turns: int = 0
    """Number of trained turns of the assistant, in conversations."""
    trimmed: RowCount = field(default_factory=RowCount)
    """Rows in which turns after the last answer were left out, because nothing in them is trained."""
    first_turn: RowCount = field(default_factory=RowCount)
    """Rows in which the conversation begins with the assistant, whose first turn answers no question and is context."""
    context: RowCount = field(default_factory=RowCount)
    """Rows in which turns of the assistant are empty or have weight 0, and are context."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Quantiles of the rows' lengths in tokens, after truncation: "50%", "90%", "99%"."""

    completions: ClassVar = ("row",)
    reasons: ClassVar = DEMONSTRATION_REASONS
    as_chat: ClassVar = "For a chat model give messages, or load_demonstrations(...).as_chat() (--as_chat)."

    def keep(self, encoded: Encoded, cut: Iterable[str]) -> None:
        super().keep(encoded, cut)
        self._notice(encoded)
        self.turns += encoded.turns

    def measure(self, groups: GroupDataset) -> None:
        super().measure(groups)
        self.scored_tokens = groups.scored_tokens
        if len(groups):
            shares = {"50%": 0.5, "90%": 0.9, "99%": 0.99}
            found = np.quantile(groups.lengths, list(shares.values()), method="inverted_cdf")
            self.lengths = dict(zip(shares, map(int, found), strict=True))

    def measure_next(self, group: TokenizedGroup) -> None:
        super().measure_next(group)
        self.scored_tokens += sum(group.scored_lengths)

    def _trained(self) -> str:
        share = self.scored_tokens / max(1, self.total_tokens)
        return f", of which {self.scored_tokens:,} ({share:.0%}) are trained"


AnyReport = TokenizeReport | DemonstrationReport


def report_of(values: dict[str, Any], kind: type[AnyReport]) -> AnyReport:
    """Restores a report from its `to_json`."""
    empty = kind()
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(getattr(empty, name), RowCount):
            made[name] = RowCount(**value)
        elif isinstance(value, dict):
            made[name] = {key: RowCount(**item) if isinstance(item, dict) else item for key, item in value.items()}
        else:
            made[name] = value
    return kind(**made)
