"""What tokenising did to demonstrations, in numbers and in sentences: nothing is dropped or cut in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from preftune.data.tokens.report import Tally, texts_lines

REASONS: Mapping[str, tuple[str, str]] = {
    "bad_answer": ("the answer is labelled as a bad one", "Nothing is to be done."),
    "repeated": ("the same answer to the same prompt is there already", "Nothing is to be done."),
    "beaten": ("another answer is preferred to this one elsewhere", "Nothing is to be done."),
    "empty_completion": ("there is nothing to learn in the answer", "Remove such rows, or fill the answer in."),
    "no_answer": ("nobody's turn is the assistant's", "Remove such rows, or correct their roles."),
    "no_question": ("the assistant's only turn comes first, and answers nothing", "Add a turn of the user before it."),
    "too_long": ("longer than max_length", 'Raise max_length, or use truncation="truncate".'),
    "no_answer_left": ("truncation cuts off all that is trained", "Raise max_length."),
    "answers_not_found": (
        "the chat template does not tell where the assistant's turns begin and end",
        "Mark them in the template with {% generation %}, or set assistant_only_loss=False.",
    ),
    "calls_not_written": (
        "the chat template does not write the calls of tools",
        "Use a model whose template knows tools, or give one with --chat_template_path FILE.",
    ),
    "template_refused": ("the chat template refuses the conversation", "See the template's words below."),
    "no_start_token": (
        "there is a single token, and nothing before it that could predict it",
        "Remove such rows, or set tokenizer.bos_token.",
    ),
}
"""Why a row cannot train: reason -> (what is wrong, what mends it)."""


@dataclass
class DemonstrationReport:
    """Outcome of `tokenize_demonstrations`. Row numbers count in the dataset that was opened, from 0."""

    name: str = "the dataset"
    rows_in: int = 0
    rows_out: int = 0
    total_tokens: int = 0
    """Of the rows kept."""
    scored_tokens: int = 0
    """Of those, how many are trained; the others are context."""
    turns: int = 0
    """Turns of the assistant that are trained, in conversations."""
    longest: int = 0
    """Tokens of the longest row, before truncation."""
    dropped: dict[str, Tally] = field(default_factory=dict)
    """Reason (a key of `REASONS`) -> rows."""
    truncated: Tally = field(default_factory=Tally)
    """Rows that lost their end, among those kept."""
    moved_boundary: Tally = field(default_factory=Tally)
    """The prompt is rendered or merged differently once an answer follows."""
    eos_added: Tally = field(default_factory=Tally)
    """The chat template ends an answer with no special token, so eos was appended."""
    trimmed: Tally = field(default_factory=Tally)
    """Turns after the last answer were left off: nothing in them is trained."""
    first_turn: Tally = field(default_factory=Tally)
    """The conversation begins with the assistant, whose first turn answers nothing and is context."""
    context: Tally = field(default_factory=Tally)
    """Turns of the assistant are empty or have weight 0, and are context."""
    ends_cut: Tally = field(default_factory=Tally)
    """An answer ended with the mark that the chat template writes itself, and has it once."""
    typed_marks: Tally = field(default_factory=Tally)
    """A text holds special tokens, which become control tokens."""
    shortened: Tally = field(default_factory=Tally)
    """A text is longer than the limits can need, and its middle was not tokenised."""
    unwritten: dict[str, Tally] = field(default_factory=dict)
    """A part of `unwritten.PARTS` -> rows in which the chat template leaves it out, among those kept."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Quantiles of the rows' tokens, after truncation: "50%", "90%", "99%"."""
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, row: int) -> None:
        self.dropped.setdefault(reason, Tally()).add(row)

    @property
    def rows_dropped(self) -> int:
        return sum(tally.count for tally in self.dropped.values())

    def lines(self) -> list[str]:
        """Plain sentences, each with what would mend it."""
        trained = self.scored_tokens / max(1, self.total_tokens)
        lines = [
            f"{self.name}: {self.rows_out:,} of {self.rows_in:,} rows kept, {self.total_tokens:,} tokens, of which "
            f"{self.scored_tokens:,} ({trained:.0%}) are trained; the longest has {self.longest:,}."
        ]
        for reason, tally in self.dropped.items():
            wrong, cure = REASONS[reason]
            lines.append(f"Dropped {tally}: {wrong}. {cure}")
        if self.truncated.count:
            lines.append(
                f"Cut the end of {self.truncated}; no end-of-sequence token is trained there. "
                f"max_length={self.longest} would keep all."
            )
        if self.moved_boundary.count:
            lines.append(
                f"In {self.moved_boundary} the prompt is tokenised differently once an answer follows (a template that "
                "changes the prompt's end, or a token across the boundary); the answer is trained from where they part."
            )
        if self.eos_added.count:
            lines.append(
                f"Appended the end-of-sequence token in {self.eos_added}: the chat template ends an answer without one."
            )
        if self.trimmed.count:
            lines.append(f"Left the turns after the last answer off in {self.trimmed}.")
        if self.first_turn.count:
            lines.append(
                f"In {self.first_turn} the assistant speaks first: that turn answers nothing and is context only."
            )
        if self.context.count:
            lines.append(f"In {self.context} turns of the assistant are empty or have weight 0, and are context only.")
        return [*lines, *texts_lines(self.ends_cut, self.typed_marks, self.shortened, self.unwritten), *self.notes]

    def to_json(self) -> dict[str, Any]:
        """Plain values for audit.json."""

        def plain(tally: Tally) -> dict[str, Any]:
            return {"count": tally.count, "rows": list(tally.rows)}

        return {
            "name": self.name,
            "kind": "demonstrations",
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "total_tokens": self.total_tokens,
            "scored_tokens": self.scored_tokens,
            "turns": self.turns,
            "longest": self.longest,
            "lengths": dict(self.lengths),
            "dropped": {reason: plain(tally) for reason, tally in self.dropped.items()},
            "truncated": {"row": plain(self.truncated)} if self.truncated.count else {},
            "moved_boundary": plain(self.moved_boundary),
            "eos_added": plain(self.eos_added),
            "trimmed": plain(self.trimmed),
            "first_turn": plain(self.first_turn),
            "context": plain(self.context),
            "ends_cut": plain(self.ends_cut),
            "typed_marks": plain(self.typed_marks),
            "shortened": plain(self.shortened),
            "unwritten": {part: plain(tally) for part, tally in self.unwritten.items()},
            "notes": list(self.notes),
        }
