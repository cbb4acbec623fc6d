"""What every generator of answers gives, and what takes its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from preftune.generation.thoughts import Spoken, share_of_tokens, split_thoughts
from preftune.types import Text

Side: TypeAlias = Literal["base", "aligned"]


SIDES: tuple[Side, ...] = ("base", "aligned")


class Answer(Protocol):
    """What a generator returns for one prompt; `preftune.generation.generate.Completion` is one.

    Two attributes are optional: `thought`, what a thinking model wrote before `text`, and `thought_tokens`. Without
    them a thought between marks in `text` is found (`preftune.generation.thoughts`).
    """

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def finished(self) -> bool: ...


Take: TypeAlias = Callable[[int, Answer], None]
"""Called with the number of a prompt and its answer."""


class Generator(Protocol):
    """Answers prompts with one of the two models; `rows` hold the `id` and the `SHAPING` columns of each prompt.

    A method `stream(side, prompts, rows, take)` is optional: it hands every answer over as soon as it is there, so that
    a kill costs no more than what is under way. Without it answers are kept after every chunk.
    """

    def __call__(self, side: Side, prompts: Sequence[Text], rows: Sequence[Mapping[str, Any]]) -> Sequence[Answer]: ...


class Kept(NamedTuple):
    """An answer as it is kept on disk, its thought apart."""

    text: str
    tokens: int
    finished: bool
    thought: str = ""
    thought_tokens: int = 0

    @classmethod
    def of(cls, answer: Answer) -> Kept:
        """Any answer, with a thought that is still in its text taken out."""
        thought, thought_tokens = getattr(answer, "thought", ""), getattr(answer, "thought_tokens", 0)
        if thought:
            return cls(answer.text, answer.tokens, answer.finished, thought, thought_tokens)
        part = split_thoughts(answer.text)
        tokens = share_of_tokens(part, answer.text, answer.tokens)
        return cls(part.answer, tokens, answer.finished, part.thought, answer.tokens - tokens)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Kept:
        """From a line on disk; those of earlier versions have the thought in the text."""
        return cls.of(cls(*(record.get(name, cls._field_defaults.get(name)) for name in cls._fields)))

    @property
    def whole(self) -> Kept:
        """With the thought before the text."""
        text = Spoken(self.text, self.thought).whole
        return Kept(text, self.tokens + self.thought_tokens, self.finished)


def row_id(row: Mapping[str, Any], index: int) -> str:
    """The row's own `id`, or its index."""
    return str(row["id"]) if row.get("id") is not None else str(index)
