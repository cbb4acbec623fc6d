"""The records that pass from data to training. torch is not imported: it is used in annotations only.

    raw row -> PreferencePair -> Example -> TokenizedGroup -> PackedBatch -> GroupLogps -> LossOutput

Shape suffixes used in preftune: T scored completion tokens, R tokens of a packed row, K completions,
N pairs, D model width, V vocabulary, H attention heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


Message: TypeAlias = dict[str, Any]
"""One turn of a conversation: `role`, `content`, and other keys that the chat template reads (`tool_calls`, ...)."""

Text: TypeAlias = str | list[Message]
"""Plain text (standard shape) or turns (conversational shape)."""

Span: TypeAlias = tuple[int, int]
"""Beginning and end of a part, half-open."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One preference between two completions of one prompt, in canonical form.

    Either all three of `prompt`, `chosen` and `rejected` are strings (standard), or all three are message lists
    (conversational); the formats layer has already turned every mixed shape into one of the two.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    weight: float = 1.0
    """Weight of this pair's loss, >= 0."""
    margin: float = 0.0
    """Nats of reward by which chosen has to win, >= 0. This is not the strength of the preference in the data's own
    units.
    """
    agreement: float | None = None
    """Share of annotators who agree with the label, 0..1."""
    ratings: tuple[float, float] | None = None
    """The data's ratings of chosen and rejected, higher is better; read only if lists are made from pairs."""
    gold: Text | None = None
    """A third answer that is only imitated (TPO), in the same form as the sides; read only if a loss needs it."""
    id: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Passed to the chat template both in training and in generation (`enable_thinking`, ...)."""
    tools: Sequence[Any] | None = None
    row: int = -1
    """Index of the row in its source, for messages."""
    source: str | None = None
    """The origin of the pair: the row's own `source`, or in a mixture the dataset."""

    @property
    def example(self) -> Example:
        """The prompt with its two completions, chosen first, followed by the gold answer if there is one."""
        return Example(
            self.prompt,
            (self.chosen, self.rejected, *(() if self.gold is None else (self.gold,))),
            (Preference(0, 1, self.weight, self.margin),),
            scores=self.ratings or (),
            agreement=self.agreement,
            id=self.id,
            chat_template_kwargs=self.chat_template_kwargs,
            tools=self.tools,
            row=self.row,
            source=self.source,
        )


class Preference(NamedTuple):
    """A pair inside a group, by index into the group's completions."""

    chosen: int
    rejected: int
    weight: float = 1.0
    margin: float = 0.0
    rejected_margin: float | None = None
    """The margin for the gradient of the rejected side, if it differs (`aot_unpaired`, within a step)."""


class Label(NamedTuple):
    """Whether a single completion is good."""

    desirable: bool
    weight: float = 1.0
    """Weight of its loss, >= 0."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with K completions and the facts about them: preferences, labels or scores; a single completion without
    any is a demonstration. Prompt and completions have the same form, text or turns.
    """

    prompt: Text | None
    """None if the data do not separate it from the completion."""
    completions: tuple[Text, ...] = ()
    """The answers; one whole conversation or text if `prompt` is None."""
    pairs: tuple[Preference, ...] = ()
    labels: tuple[Label, ...] = ()
    """One label for each completion; empty if the data have no labels."""
    scores: tuple[float, ...] = ()
    """A rating of each completion, higher is better; empty if the data have no ratings."""
    agreement: float | None = None
    id: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Any] | None = None
    row: int = -1
    """Index of the row in its source, for messages."""
    source: str | None = None

    @property
    def completion(self) -> Text:
        """The completion of a demonstration."""
        (completion,) = self.completions
        return completion

    @property
    def golden(self) -> bool:
        """Whether the last completion is a gold answer, and the others a pair."""
        return len(self.pairs) == 1 and len(self.completions) == 3

    @property
    def is_chat(self) -> bool:
        """Whether the completions are turns of a conversation."""
        return isinstance(self.completions[0], list)


@dataclass(frozen=True, slots=True)
class TokenizedGroup:
    """One prompt with its K distinct completions and the preferences among them, as token ids.

    The prompt may be empty only if every completion begins with a token that needs no prediction; the tokeniser never
    makes such groups (it puts a beginning-of-sequence token, or the first token of the text, into the prompt)."""

    prompt_ids: Sequence[int]
    completions: tuple[Sequence[int], ...]
    pairs: tuple[Preference, ...]
    """The pairs. A completion in no pair is a gold answer, which is only imitated (TPO)."""
    id: str = ""
    scored: tuple[tuple[Span, ...], ...] = ()
    """The tokens of each completion that the loss covers, as ascending spans that do not touch. The other tokens are
    context.

    Empty spans of a completion mean the whole completion, and an empty tuple means that every completion is covered
    whole, as in nearly all groups; explicit spans of whole completions are converted to this form. """
    labels: tuple[Label, ...] = ()
    """One label for each completion; empty if the data have no labels."""
    scores: tuple[float, ...] = ()
    """A score of each completion, in units of the method; empty without scores. With scores, the pair of a group
    consists of the best and the worst completion of a list.
    """

    def __post_init__(self) -> None:
        if self.scored:
            object.__setattr__(self, "scored", _canonical_spans(self.scored, self.completions))

    def keys(self) -> tuple[str, ...]:
        """Names by which the row can be subscripted, like TRL's prepared rows."""
        if not self.pairs:
            one = ("completion_ids", "label") if self.labels else ("input_ids",)
            return ("prompt_ids", *one) if len(self.completions) == 1 else ("prompt_ids",)
        return ("prompt_ids", "chosen_ids", "rejected_ids") if len(self.pairs) == 1 else ("prompt_ids",)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, name: str) -> Any:
        """Token ids by TRL's names: `prompt_ids`, `chosen_ids` and `rejected_ids` of a pair, `input_ids` of a
        demonstration, `completion_ids` and `label` of an answer with a label.

        Raises: KeyError for any other name; a group of several pairs has `completions` and `pairs` instead.
        """
        if name not in self.keys():
            raise KeyError(f"{name!r}: this row has {', '.join(self.keys())} (and .completions, .pairs)")
        if name == "prompt_ids":
            return list(self.prompt_ids)
        if name == "label":
            return self.labels[0].desirable
        if name == "completion_ids":
            return list(self.completions[0])
        if name == "input_ids":
            return [*self.prompt_ids, *self.completions[0]]
        return list(self.completions[self.pairs[0].chosen if name == "chosen_ids" else self.pairs[0].rejected])

    @property
    def gold(self) -> int | None:
        """The index of the gold answer, which is in no pair; None without a gold answer."""
        if len(self.pairs) != 1 or len(self.completions) != 3 or self.scores:
            return None
        (pair,) = self.pairs
        return 3 - pair.chosen - pair.rejected

    @property
    def tokens(self) -> int:
        """Length of the group in a packed row: the prompt once, every completion once."""
        return len(self.prompt_ids) + sum(len(c) for c in self.completions)

    def spans(self, completion: int) -> tuple[Span, ...]:
        """The explicit spans of one completion, by index: never empty."""
        return (self.scored and self.scored[completion]) or ((0, len(self.completions[completion])),)

    @property
    def scored_lengths(self) -> list[int]:
        """Number of tokens of each completion that the loss covers."""
        return [sum(end - begin for begin, end in self.spans(index)) for index in range(len(self.completions))]


def _canonical_spans(
    scored: Sequence[Sequence[Span]], completions: Sequence[Sequence[int]]
) -> tuple[tuple[Span, ...], ...]:
    """Spans in the form that `TokenizedGroup` keeps. Raises: ValueError for invalid spans."""
    canonical: list[tuple[Span, ...]] = []
    for spans, completion in zip(scored, completions, strict=True):
        last = -1
        for begin, end in spans:
            if not last < begin < end <= len(completion):
                raise ValueError(
                    f"spans {tuple(spans)} are not ascending, or touch, or exceed the length {len(completion)}"
                )
            last = end
        whole = tuple(spans) == ((0, len(completion)),)
        canonical.append(() if whole else tuple((begin, end) for begin, end in spans))
    return tuple(canonical) if any(canonical) else ()


class Sides(NamedTuple):
    """The two sides of N pairs under one model."""

    chosen_N: Tensor
    """(N,) log-probability of the chosen completion, nats."""
    rejected_N: Tensor
    """(N,) log-probability of the rejected completion, nats."""
    chosen_length_N: Tensor
    """(N,) number of scored tokens."""
    rejected_length_N: Tensor
    """(N,) number of scored tokens."""
