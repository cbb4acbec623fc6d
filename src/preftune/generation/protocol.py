"""The protocols of generators of answers, and of the functions that take their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from preftune.generation.thoughts import Spoken, share_of_tokens, split_thoughts
from preftune.types import Text

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Side: TypeAlias = Literal["base", "aligned"]
Wanted: TypeAlias = AbstractSet[int] | None
"""Numbers of the requested prompts; None for all."""
SIDES: tuple[Side, ...] = ("base", "aligned")


class Answer(Protocol):
    """The result of a generator for one prompt; `preftune.generation.generate.Completion` is one.

    Two attributes are optional: `thought`, the reasoning before `text`, and `thought_tokens`. Without them, reasoning
    between marks in `text` is found (`preftune.generation.thoughts`)."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def finished(self) -> bool: ...


Take: TypeAlias = Callable[[int, Answer], None]
"""Called with the number of a prompt and its answer."""


class Generator(Protocol):
    """A source of answers: transformers, vLLM, an endpoint, or the dataset (`backends`, `vllm_backend`)."""

    @property
    def name(self) -> str:
        """The name for people."""

    def identity(self) -> Mapping[str, Any]:
        """The identity of the generator, so that answers of others are never used for its own; it contains no path,
        which may change.
        """

    def answer(self, prompts: Sequence[Text], rows: Rows, take: Take, wanted: Wanted = None) -> None:
        """Passes on the answer to every prompt when it arrives.

        Args:
            rows: the other values that affect each answer: `id`, the columns `SHAPING`, and `seed` (63 bits), which by
                default is derived from the generator's seed, the prompt and the id.
            wanted: numbers of the requested prompts; default: all. Batches are formed from all prompts, so others may
                be answered too.
        """

    def release(self) -> None:
        """Releases the weights, which are loaded again when needed."""


class PairGenerator(Protocol):
    """Answers prompts with one of two models; `rows` hold the `id` and the `SHAPING` columns of each prompt.

    A method `stream(side, prompts, rows, take)` is optional: it passes on every answer as soon as it exists, so that a
    kill loses only the answers in progress. Without it, answers are kept after every chunk."""

    def __call__(self, side: Side, prompts: Sequence[Text], rows: Rows) -> Sequence[Answer]: ...


_MOST_TOKENS = 10_000_000


def is_token_count(value: object) -> bool:
    """Whether a value that others wrote is a possible number of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS


class Kept(NamedTuple):
    """An answer in the form kept on disk, with its reasoning separated."""

    text: str
    tokens: int
    finished: bool
    thought: str = ""
    thought_tokens: int = 0

    @classmethod
    def of(cls, answer: Answer) -> Kept:
        """Converts any answer; reasoning that is still in its text is separated."""
        thought, thought_tokens = getattr(answer, "thought", ""), getattr(answer, "thought_tokens", 0)
        if thought:
            return cls(answer.text, answer.tokens, answer.finished, thought, thought_tokens)
        part = split_thoughts(answer.text)
        tokens = share_of_tokens(part, answer.text, answer.tokens)
        return cls(part.answer, tokens, answer.finished, part.thought, answer.tokens - tokens)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Kept:
        """Reads a line on disk; lines of earlier versions have the reasoning in the text."""
        kept = cls(*(record.get(name, cls._field_defaults.get(name)) for name in cls._fields))
        return kept if "thought" in record else cls.of(kept)

    @property
    def whole(self) -> Kept:
        """The text with the reasoning before it."""
        text = Spoken(self.text, self.thought).whole
        return Kept(text, self.tokens + self.thought_tokens, self.finished)


def row_id(row: Mapping[str, Any], index: int) -> str:
    """The row's own `id`, or its index."""
    return str(row["id"]) if row.get("id") is not None else str(index)
