"""The token ids of one example, the observations made meanwhile, and the source texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from preftune.data.tokens import spans
from preftune.types import Example, TokenizedGroup


@dataclass(slots=True)
class Encoded:
    """Token ids of one example, or the reason why there are none."""

    row: int
    prompt: list[int] = field(default_factory=list)
    completions: list[list[int]] = field(default_factory=list)
    scored: list[list[int]] = field(default_factory=list)
    """Beginnings and ends of the scored spans of each completion, alternating."""
    reason: str | None = None
    """Why the example cannot be trained: a key of `reasons.REASONS` or `DEMONSTRATION_REASONS`."""
    detail: str = ""
    moved_boundary: bool = False
    """Whether the boundary differs from the end of the separately rendered prompt."""
    eos_added: bool = False
    continued: bool = False
    """Whether the answer continues an assistant's turn that starts in the prompt."""
    several_turns: bool = False
    """Whether a completion holds turns that are not scored."""
    golden: bool = False
    """Whether the last of three completions is a gold answer."""
    trimmed: bool = False
    first_turn: bool = False
    context: bool = False
    ends_cut: bool = False
    """Whether an answer ended with the mark that the template writes."""
    typed_marks: bool = False
    """Whether a text holds special tokens, which become control tokens."""
    shortened: bool = False
    """Whether a text was longer than the limits can need, so that its middle was not tokenised."""
    unwritten: str = ""
    """The part that the chat template leaves out, one of `unwritten.PARTS`."""
    turns: int = 0
    """Number of trained turns of a demonstration."""

    @property
    def identical(self) -> bool:
        """Whether both completions have the same scored tokens; tokens after the last scored one and a gold answer do
        not count.
        """
        trained = [(edges, ids[: edges[-1]]) for edges, ids in zip(self.scored, self.completions, strict=True)]
        trained = trained[:2] if self.golden else trained
        return any(one == other for one, other in combinations(trained, 2))

    @property
    def tokens(self) -> int:
        """Length of the prompt with the longest completion."""
        return len(self.prompt) + max(map(len, self.completions))

    def cut(self, room: int | None) -> None:
        """Cuts completions to `room` tokens (None: no cut); the reason says if nothing is left to train on."""
        self.completions = [ids[:room] for ids in self.completions]
        self.scored = [spans.within(len(ids), own) for ids, own in zip(self.completions, self.scored, strict=True)]
        if not all(self.scored):
            self.reason = "no_answer_left"
        elif self.identical:
            self.reason = "identical_after_truncation"

    def group(self, example: Example) -> TokenizedGroup:
        """The example as the trainer's group."""
        name = example.id if example.id is not None else str(example.row)
        scored = tuple(map(spans.pairs, self.scored))
        return TokenizedGroup(
            self.prompt,
            tuple(self.completions),
            example.pairs,
            id=name,
            scored=scored,
            labels=example.labels,
            scores=example.scores,
        )


class Texts(NamedTuple):
    """The texts that are tokenised for one example."""

    prompt: str | None
    """None if it is not separated from the completion."""
    wholes: Sequence[str]
    """Prompt and completion as one text, for each completion."""
    special_tokens: bool
    """Whether the tokeniser adds bos and eos; a chat template has already written them."""
    seen: Encoded
    """The observations about the texts; it receives the ids."""
    ended: Sequence[bool] = ()
    """Whether each rendered whole ends with an end-of-turn mark."""
    answers: Sequence[Sequence[int]] = ()
    """Beginnings and ends of the assistant's turns in each whole, alternating; empty for a single answer, which is the
    text after the prompt.
    """

    @property
    def parts(self) -> list[str]:
        """All texts to tokenise: the prompt, the wholes, and each whole up to the beginning or end of each answer."""
        heads = (text[:at] for text, edges in self._answers() for at in edges if at < len(text))
        return [*([] if self.prompt is None else [self.prompt]), *self.wholes, *heads]

    def edges(self, wholes: Sequence[list[int]], heads: Sequence[list[int]]) -> list[list[int]]:
        """Beginnings and ends of each whole's answers in tokens, corresponding to `answers` in characters.

        Args:
            wholes: ids of the wholes, with the eos of the last answer.
            heads: ids of the texts that follow the wholes in `parts`.
        """
        ids, found = iter(heads), []
        for whole, (text, edges) in zip(wholes, self._answers(), strict=True):
            found.append([spans.common(next(ids), whole) if at < len(text) else len(whole) for at in edges])
        return found

    def _answers(self) -> Iterator[tuple[str, Sequence[int]]]:
        return zip(self.wholes, self.answers or [()] * len(self.wholes), strict=True)
