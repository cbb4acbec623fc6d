"""What every generator of answers gives, and what takes its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from preftune.generation.thoughts import Spoken, share_of_tokens, split_thoughts
from preftune.types import Text

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Side: TypeAlias = Literal["base", "aligned"]
Wanted: TypeAlias = AbstractSet[int] | None
"""Numbers of prompts; None for all."""
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
    """Where answers come from: transformers, vLLM, an endpoint, or the dataset (`backends`, `vllm_backend`)."""

    @property
    def name(self) -> str:
        """For people."""

    def identity(self) -> Mapping[str, Any]:
        """What is asked, so that the answers of another one are never taken for its own; no path, which may change."""

    def answer(self, prompts: Sequence[Text], rows: Rows, take: Take, wanted: Wanted = None) -> None:
        """Hands over the answer to every prompt as it comes.

        Args:
            rows: what shapes each answer besides its prompt: `id`, the columns `SHAPING`, and `seed` (63 bits), which
                else follows from the generator's seed, the prompt and the id.
            wanted: numbers of the prompts whose answers are wanted; default: all. Batches are those of all prompts, so
                others may be answered too.
        """

    def release(self) -> None:
        """Lets go of weights, which are loaded again when they are needed again."""


class PairGenerator(Protocol):
    """Answers prompts with one of two models; `rows` hold the `id` and the `SHAPING` columns of each prompt.

    A method `stream(side, prompts, rows, take)` is optional: it hands every answer over as soon as it is there, so that
    a kill costs no more than what is under way. Without it answers are kept after every chunk.
    """

    def __call__(self, side: Side, prompts: Sequence[Text], rows: Rows) -> Sequence[Answer]: ...


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
        kept = cls(*(record.get(name, cls._field_defaults.get(name)) for name in cls._fields))
        return kept if "thought" in record else cls.of(kept)

    @property
    def whole(self) -> Kept:
        """With the thought before the text."""
        text = Spoken(self.text, self.thought).whole
        return Kept(text, self.tokens + self.thought_tokens, self.finished)


def row_id(row: Mapping[str, Any], index: int) -> str:
    """The row's own `id`, or its index."""
    return str(row["id"]) if row.get("id") is not None else str(index)
