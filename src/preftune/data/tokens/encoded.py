"""The token ids of one example, what was noticed while they were made, and the texts that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from preftune.data.tokens import spans
from preftune.types import Example, TokenizedGroup


@dataclass(slots=True)
class Encoded:
    """Token ids of one example, or the reason for having no ids."""

    row: int
    prompt: list[int] = field(default_factory=list)
    completions: list[list[int]] = field(default_factory=list)
    scored: list[list[int]] = field(default_factory=list)
    """Where the scored tokens of each completion begin and end, in turn."""
    reason: str | None = None
    """Why the example cannot train: a key of `reasons.REASONS`, or of `DEMONSTRATION_REASONS`."""
    detail: str = ""
    moved_boundary: bool = False
    """The boundary is not at the end of the prompt as it is rendered alone."""
    eos_added: bool = False
    continued: bool = False
    """The answer continues a turn of the assistant that the prompt began."""
    several_turns: bool = False
    """A completion holds turns that are not scored."""
    golden: bool = False
    """The last of three completions is a gold answer."""
    trimmed: bool = False
    first_turn: bool = False
    context: bool = False
    ends_cut: bool = False
    """An answer ended with the mark that the template writes."""
    typed_marks: bool = False
    """A text holds special tokens, which become control tokens."""
    shortened: bool = False
    """A text was longer than the limits can need, and its middle was not tokenised."""
    unwritten: str = ""
    """What the chat template leaves out, one of `unwritten.PARTS`."""
    turns: int = 0
    """Turns of a demonstration that are trained."""

    @property
    def identical(self) -> bool:
        """Two completions train the same; what follows the last scored token plays no part, nor does a gold answer."""
        trained = [(edges, ids[: edges[-1]]) for edges, ids in zip(self.scored, self.completions, strict=True)]
        trained = trained[:2] if self.golden else trained
        return any(one == other for one, other in combinations(trained, 2))

    @property
    def tokens(self) -> int:
        """Length of the prompt with the longest completion."""
        return len(self.prompt) + max(map(len, self.completions))

    def cut(self, room: int | None) -> None:
        """Cuts completions to `room` tokens (None: to none fewer); the reason says if nothing is left to train on."""
        self.completions = [ids[:room] for ids in self.completions]
        self.scored = [spans.within(len(ids), own) for ids, own in zip(self.completions, self.scored, strict=True)]
        if not all(self.scored):
            self.reason = "no_answer_left"
        elif self.identical:
            self.reason = "identical_after_truncation"

    def group(self, example: Example) -> TokenizedGroup:
        """The example as the trainer takes it."""
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
    """What is tokenised for one example."""

    prompt: str | None
    """None where nothing separates it from the completion."""
    wholes: Sequence[str]
    """Prompt and completion as one text, for each completion."""
    special_tokens: bool
    """Whether the tokeniser adds its bos and eos; a chat template has already written them."""
    seen: Encoded
    """What was noticed about the texts; it receives the ids."""
    ended: Sequence[bool] = ()
    """Whether each rendered whole ends with an end-of-turn mark."""
    answers: Sequence[Sequence[int]] = ()
    """Where each whole's turns of the assistant begin and end, in turn; empty for a single answer, which is all that
    follows the prompt."""

    @property
    def parts(self) -> list[str]:
        """All texts to tokenise: the prompt, the wholes, and each whole up to where an answer begins or ends."""
        heads = (text[:at] for text, edges in self._answers() for at in edges if at < len(text))
        return [*([] if self.prompt is None else [self.prompt]), *self.wholes, *heads]

    def edges(self, wholes: Sequence[list[int]], heads: Sequence[list[int]]) -> list[list[int]]:
        """Where each whole's answers begin and end in tokens, as `answers` in characters.

        Args:
            wholes: their ids, with the eos that belongs to the last answer.
            heads: the ids of what follows the wholes in `parts`.
        """
        ids, found = iter(heads), []
        for whole, (text, edges) in zip(wholes, self._answers(), strict=True):
            found.append([spans.common(next(ids), whole) if at < len(text) else len(whole) for at in edges])
        return found

    def _answers(self) -> Iterator[tuple[str, Sequence[int]]]:
        return zip(self.wholes, self.answers or [()] * len(self.wholes), strict=True)
