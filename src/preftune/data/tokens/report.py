"""What tokenising did to the rows, in numbers and in sentences: nothing is dropped or cut in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REASONS: Mapping[str, tuple[str, str]] = {
    "empty_completion": ("chosen or rejected is empty", "Remove such rows, or fill the empty side in."),
    "identical": ("chosen and rejected are the same", "Remove such rows: they prefer nothing."),
    "identical_after_truncation": (
        "chosen and rejected differ only in what truncation cut off",
        "Raise max_length.",
    ),
    "prompt_too_long": ("the prompt leaves no room for an answer", "Raise max_length, or set max_prompt_length."),
    "too_long": ("longer than max_length", 'Raise max_length, or use truncation="truncate".'),
    "no_shared_prompt": (
        "chosen and rejected do not answer the same prompt",
        "Add a column 'prompt', or let both sides begin with the same turns.",
    ),
    "no_answer": ("a side does not end with a turn of the assistant", "Remove the turns after the last answer."),
    "answers_not_found": (
        "the chat template does not tell where the assistant's turns begin and end",
        "Mark them in the template with {% generation %}, or let only the last answer differ.",
    ),
    "no_answer_left": ("truncation cuts off all that the assistant says on a side", "Raise max_length."),
    "calls_not_written": (
        "the chat template does not write the calls of tools",
        "Use a model whose template knows tools, or give one with --chat_template_path FILE.",
    ),
    "template_refused": ("the chat template refuses the conversation", "See the template's words below."),
    "no_start_token": (
        "the prompt is empty and the tokenizer has neither bos nor eos to begin with",
        "Give a prompt, or set tokenizer.bos_token.",
    ),
}
"""Why a row cannot train: reason -> (what is wrong, what mends it)."""

_EXAMPLES = 5


@dataclass(slots=True)
class Tally:
    """A count of rows, with the first few row numbers."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < _EXAMPLES:
            self.rows.append(row)

    def __str__(self) -> str:
        """`3 rows (2, 5, 8)`, `1,200 rows (0, 1, 2, 3, 4, ...)`."""
        more = ", ..." if self.count > len(self.rows) else ""
        return f"{self.count:,} row{'s' * (self.count != 1)} ({', '.join(map(str, self.rows))}{more})"


def texts_lines(ends_cut: Tally, typed: Tally, shortened: Tally, unwritten: Mapping[str, Tally]) -> list[str]:
    """What is said about the data's texts: what the template leaves out, special tokens, more than is needed."""
    lines = [
        f"In {tally} the chat template does not write {part}, and the model is trained without it. Give a template "
        "that writes it (--chat_template_path FILE), or change the rows."
        for part, tally in unwritten.items()
    ]
    if ends_cut.count:
        lines.append(
            f"In {ends_cut} an answer ended with the mark with which the chat template ends a turn; it is trained once."
        )
    if typed.count:
        lines.append(
            f"In {typed} a text holds special tokens of the tokenizer, which become control tokens (a turn may end or "
            "begin inside the text). Remove them where they are not meant; preftune audit shows them."
        )
    if shortened.count:
        lines.append(
            f"In {shortened} a text is longer than max_length can need; only its two ends were tokenised, so its "
            "length in tokens is more than is said here."
        )
    return lines


@dataclass
class TokenizeReport:
    """Outcome of `tokenize_pairs`. Row numbers count in the dataset that was opened, from 0."""

    name: str = "the dataset"
    rows_in: int = 0
    rows_out: int = 0
    total_tokens: int = 0
    """Of the rows kept, every prompt once."""
    longest: int = 0
    """Tokens of prompt + longer completion, before truncation."""
    longest_prompt: int = 0
    """Tokens, before truncation."""
    dropped: dict[str, Tally] = field(default_factory=dict)
    """Reason (a key of `REASONS`) -> rows."""
    truncated: dict[str, Tally] = field(default_factory=dict)
    """'prompt', 'chosen' or 'rejected' -> rows in which it was cut, among those kept."""
    moved_boundary: Tally = field(default_factory=Tally)
    """The prompt is rendered or merged differently once an answer follows."""
    eos_added: Tally = field(default_factory=Tally)
    """The chat template ends an answer with no special token, so eos was appended."""
    continued: Tally = field(default_factory=Tally)
    """The answer continues a turn of the assistant that the prompt began."""
    several_turns: Tally = field(default_factory=Tally)
    """The sides part before the last answer: every later turn of the assistant is trained, the others' are context."""
    ends_cut: Tally = field(default_factory=Tally)
    """An answer ended with the mark that the chat template writes itself, and has it once."""
    typed_marks: Tally = field(default_factory=Tally)
    """A text holds special tokens, which become control tokens."""
    shortened: Tally = field(default_factory=Tally)
    """A text is longer than the limits can need, and its middle was not tokenised."""
    unwritten: dict[str, Tally] = field(default_factory=dict)
    """A part of `unwritten.PARTS` -> rows in which the chat template leaves it out, among those kept."""
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, row: int) -> None:
        self.dropped.setdefault(reason, Tally()).add(row)

    def cut(self, part: str, row: int) -> None:
        self.truncated.setdefault(part, Tally()).add(row)

    @property
    def rows_dropped(self) -> int:
        return sum(tally.count for tally in self.dropped.values())

    def lines(self) -> list[str]:
        """Plain sentences, each with what would mend it."""
        lines = [
            f"{self.name}: {self.rows_out:,} of {self.rows_in:,} rows kept, {self.total_tokens:,} tokens; "
            f"the longest has {self.longest:,}."
        ]
        for reason, tally in self.dropped.items():
            wrong, cure = REASONS[reason]
            lines.append(f"Dropped {tally}: {wrong}. {cure}")
        if "prompt" in self.truncated:
            lines.append(
                f"Cut the beginning of the prompt in {self.truncated['prompt']}. "
                f"max_prompt_length={self.longest_prompt} would keep all."
            )
        lines += [
            f"Cut the end of {side} in {self.truncated[side]}; no end-of-sequence token is trained there. "
            f"max_length={self.longest} would keep all."
            for side in ("chosen", "rejected")
            if side in self.truncated
        ]
        if self.moved_boundary.count:
            lines.append(
                f"In {self.moved_boundary} the prompt is tokenised differently once an answer follows (a template that "
                "changes the prompt's end, or a token across the boundary); the answer is trained from where they part."
            )
        if self.eos_added.count:
            lines.append(
                f"Appended the end-of-sequence token in {self.eos_added}: the chat template ends an answer without one."
            )
        if self.continued.count:
            lines.append(f"In {self.continued} the answer continues the assistant's turn that the prompt began.")
        if self.several_turns.count:
            lines.append(
                f"In {self.several_turns} the two sides part before the last answer: every turn of the assistant after "
                "that is trained, and what others say between is context."
            )
        return [*lines, *self._texts(), *self.notes]

    def _texts(self) -> list[str]:
        return texts_lines(self.ends_cut, self.typed_marks, self.shortened, self.unwritten)

    def to_json(self) -> dict[str, Any]:
        """Plain values for audit.json."""

        def plain(tally: Tally) -> dict[str, Any]:
            return {"count": tally.count, "rows": list(tally.rows)}

        return {
            "name": self.name,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "total_tokens": self.total_tokens,
            "longest": self.longest,
            "longest_prompt": self.longest_prompt,
            "dropped": {reason: plain(tally) for reason, tally in self.dropped.items()},
            "truncated": {part: plain(tally) for part, tally in self.truncated.items()},
            "moved_boundary": plain(self.moved_boundary),
            "eos_added": plain(self.eos_added),
            "continued": plain(self.continued),
            "several_turns": plain(self.several_turns),
            "ends_cut": plain(self.ends_cut),
            "typed_marks": plain(self.typed_marks),
            "shortened": plain(self.shortened),
            "unwritten": {part: plain(tally) for part, tally in self.unwritten.items()},
            "notes": list(self.notes),
        }
