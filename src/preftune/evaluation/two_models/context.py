"""Two models, and what is needed to compare them: what `preftune eval` hands to a suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.evaluation.two_models.answers import Progress
from preftune.generation.protocol import PairGenerator, Side
from preftune.judges.llm_client import Asker
from preftune.judges.protocol import Judge
from preftune.types import Text

if TYPE_CHECKING:
    from preftune.judges.reward_model import RewardModel


class PairOfModels(NamedTuple):
    """Both models for what needs their log-probabilities. They may be one: an adapter, and its base with it off."""

    model: Any
    """The aligned one; usable while `baseline` is not entered."""
    tokenizer: Any
    baseline: Callable[[], AbstractContextManager[Any]]
    """Enter the context for the baseline model, ready to be used; leave it and `model` is the aligned one again."""
    base_tokenizer: Any
    """Of the baseline; the same object where both have one."""

    @contextmanager
    def on(self, side: Side) -> Iterator[tuple[Any, Any]]:
        """A side's model, ready to be used inside, and its tokenizer."""
        base = side == "base"
        with self.baseline() if base else nullcontext(self.model) as model:
            yield model, self.base_tokenizer if base else self.tokenizer


@dataclass(frozen=True)
class Contest:
    """An aligned model against a baseline."""

    generate: PairGenerator
    """Answers for both. A row may say how it is sampled: `sampling: {"temperature": 0.7, "max_new_tokens": 1024}`
    (keys of `SamplingSettings`) stands over the contest's own settings, so that a suite can have its temperatures."""
    settings: Mapping[str, Any]
    """Who answers (identities of both models) and how: all that shapes an answer, for `answer_rows`."""
    folder: Path
    """The eval folder."""
    judge: Judge | None
    """Compares two answers; None when no judge was given."""
    asker: Asker | None
    """The judge as a chat model, for questions of one's own; None when it is not one."""
    baseline: str
    """For people, as `aligned`."""
    aligned: str
    progress: Progress | None = None
    judge_thoughts: bool = False
    """What thinking models write before their answers is judged and measured with them."""
    seed: int = 0
    confidence: float = 0.95
    load_models: Callable[[], PairOfModels] | None = None
    """None when one of the two cannot be had as a model here (an endpoint)."""
    scorers: Mapping[Side, RewardModel] = field(default_factory=dict)
    """Where the two are reward models: these, `aligned` and perhaps `base`. They write no answers."""
    seen: Callable[[list[Text]], int | None] = lambda _: None
    """How many of these prompts the aligned model was trained on, as far as that is known."""
