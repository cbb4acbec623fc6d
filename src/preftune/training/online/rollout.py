"""Answers sampled from the policy as it is now, as token ids: what it is trained on must be what it wrote.

The tokens are drawn from the policy's own distribution at a temperature, with nothing cut off: no top-k, top-p or
penalties, whatever the model's generation config says. So the log-probabilities that the engine computes are those of
the distribution that was sampled from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from preftune.evaluation.generation import _batches as batches_of
from preftune.evaluation.generation import _generate_batch as generate_batch
from preftune.evaluation.generation import _inference as generating
from preftune.evaluation.generation import generation_config
from preftune.evaluation.prompt_ids import check_lengths
from preftune.evaluation.prompts import Prompt
from preftune.types import TokenizedGroup

_NOTHING_CUT_OFF = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
}
"""Written down one by one: what is unset, transformers would take from the model's generation config."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer of the policy."""

    prompt: Prompt
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    """As sampled, the token that ended the answer included; at least one."""
    text: str
    """Without special tokens."""
    finished: bool
    """The policy ended the answer itself; otherwise `max_new_tokens` cut it."""
    number: int
    """How many answers were sampled before this one in the run."""

    @property
    def group(self) -> TokenizedGroup:
        return TokenizedGroup(self.prompt_ids, (self.response_ids,), (), id=f"{self.prompt.id}#{self.number}")


class Sampler(Protocol):
    """Answers prompts with the policy as it is."""

    def __call__(
        self, model: Any, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], *, first: int
    ) -> list[Rollout]:
        """One answer to each prompt (give a prompt as often as answers are wanted), in their order.

        Args:
            first: number of the first answer, which decides the draws together with the seed.
        """
        ...


class TransformersSampler:
    """Samples with the model in memory, in batches; every answer draws from its own seed."""

    def __init__(
        self, tokenizer: Any, *, max_new_tokens: int, temperature: float, batch_size: int, seed: int, autocast: Any
    ) -> None:
        """
        Args:
            autocast: the dtype that the policy is trained in, or None.
        """
        self._tokenizer, self._seed, self._autocast = tokenizer, seed, autocast
        self._max_new_tokens, self._temperature, self._batch_size = max_new_tokens, temperature, batch_size

    def __call__(
        self, model: Any, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], *, first: int
    ) -> list[Rollout]:
        config = self.config(model)
        check_lengths(model, token_ids, self._max_new_tokens)
        seeds = [seed_of(self._seed, first + place) for place in range(len(prompts))]
        answers: dict[int, list[int]] = {}
        with generating(model, self._autocast, self._seed):
            for part in batches_of(token_ids, self._batch_size):
                rows = generate_batch(model, [token_ids[i] for i in part], config, [seeds[i] for i in part])
                answers |= dict(zip(part, rows, strict=True))
        return [
            rollout_of(prompt, ids, answers[place], config.eos_token_id, self._tokenizer, number=first + place)
            for place, (prompt, ids) in enumerate(zip(prompts, token_ids, strict=True))
        ]

    def config(self, model: Any) -> Any:
        """The generation config: the model's end tokens, sampling, and nothing else of its own."""
        config = generation_config(
            model,
            self._tokenizer,
            max_new_tokens=self._max_new_tokens,
            do_sample=True,
            temperature=self._temperature,
        )
        for name, value in _NOTHING_CUT_OFF.items():
            setattr(config, name, value)
        return config


def rollout_of(
    prompt: Prompt,
    prompt_ids: Sequence[int],
    tokens: Sequence[int],
    ends: Sequence[int] | None,
    tokenizer: Any,
    *,
    number: int,
) -> Rollout:
    """A rollout from sampled tokens, of which those behind the first end are padding."""
    end = next((place for place, token in enumerate(tokens) if token in (ends or ())), None)
    response = tuple(tokens if end is None else tokens[: end + 1])
    said = response if end is None else response[:-1]
    text = str(tokenizer.decode(list(said), skip_special_tokens=True))
    return Rollout(prompt, tuple(prompt_ids), response, text, end is not None, number)


def seed_of(seed: int, number: int) -> int:
    """The seed of one answer of a run."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
