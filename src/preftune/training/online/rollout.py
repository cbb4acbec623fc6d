"""Answers sampled from the policy as it is now, as token ids: what it is trained on must be what it wrote.

The tokens are drawn from the policy's own distribution at a temperature, with nothing cut off: no top-k, top-p or
penalties, whatever the model's generation config says. So the log-probabilities that the engine computes are those of
the distribution that was sampled from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from preftune.generation.encode_prompts import check_fit
from preftune.generation.generate import generate_batch, generating, generation_config, longest_first
from preftune.generation.prompts import Prompt
from preftune.generation.thoughts import Spoken, spoken
from preftune.losses.group_relative import most_uncertain
from preftune.types import TokenizedGroup


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer of the policy."""

    prompt: Prompt
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    """As sampled, the token that ended the answer included; at least one."""
    text: str
    """The answer, without special tokens and without the thought: what is scored."""
    finished: bool
    """The policy ended the answer itself; otherwise `max_new_tokens` cut it."""
    number: int
    """How many answers were sampled before this one in the run."""
    thought: str = ""
    """What a thinking policy wrote before its answer."""

    def judged(self, *, thoughts: bool) -> str:
        """What a judge or a reward model sees: the answer, with its thought where that is asked for."""
        return Spoken(self.text, self.thought).whole if thoughts else self.text

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
        self,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        temperature: float,
        batch_size: int,
        seed: int,
        autocast: Any,
        processor: Any = None,
    ) -> None:
        """
        Args:
            autocast: the dtype that the policy is trained in, or None.
            processor: makes a processor of the model's logits, given the attention mask of the padded prompts.
        """
        self._tokenizer, self._seed, self._autocast, self._processor = tokenizer, seed, autocast, processor
        self._max_new_tokens, self._temperature, self._batch_size = max_new_tokens, temperature, batch_size

    def __call__(
        self, model: Any, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], *, first: int
    ) -> list[Rollout]:
        config = self.config(model)
        check_fit(model, token_ids, self._max_new_tokens)
        seeds = [seed_of(self._seed, first + place) for place in range(len(prompts))]
        answers = self.draw(model, token_ids, config, seeds)
        return [
            rollout_of(prompt, ids, answers[place], config.eos_token_id, self._tokenizer, number=first + place)
            for place, (prompt, ids) in enumerate(zip(prompts, token_ids, strict=True))
        ]

    def draw(
        self, model: Any, token_ids: Sequence[Sequence[int]], config: Any, seeds: Sequence[int]
    ) -> list[list[int]]:
        """The new tokens of each prompt; what follows an end is padding."""
        answers: dict[int, list[int]] = {}
        with generating(model, self._autocast, self._seed), _nothing_else(model, config):
            for part in longest_first(token_ids, self._batch_size):
                rows = generate_batch(
                    model, [token_ids[i] for i in part], config, [seeds[i] for i in part], processor=self._processor
                )
                answers |= dict(zip(part, rows, strict=True))
        return [answers[place] for place in range(len(token_ids))]

    def config(self, model: Any) -> Any:
        """The generation config: the model's end tokens, sampling, and nothing else of its own."""
        from transformers import GenerationConfig

        own = generation_config(model, self._tokenizer, max_new_tokens=self._max_new_tokens)
        config: Any = GenerationConfig()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens"):
            setattr(config, name, getattr(own, name))
        config.do_sample, config.use_cache = True, True
        config.temperature, config.top_p, config.top_k = self._temperature, 1.0, 0
        return config


@contextmanager
def _nothing_else(model: Any, config: Any) -> Iterator[None]:
    """Inside, the model's own generation config says nothing but its special tokens: what is unset in the one that it
    is asked to use, transformers fills in from there (suppressed tokens, a forced end).
    """
    from transformers import GenerationConfig

    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = [(holder, holder.generation_config) for holder in (model, whole) if "generation_config" in vars(holder)]
    try:
        for holder, _ in own:
            holder.generation_config = GenerationConfig(**ids)
        yield
    finally:
        for holder, before in own:
            holder.generation_config = before


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
    said, _ = spoken(tokenizer, response if end is None else response[:-1], prompt_ids)
    return Rollout(prompt, tuple(prompt_ids), response, said.answer, end is not None, number, said.thought)


def figures_of_answers(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean length in tokens, the end among them, and how many came to an end, as logged."""
    finished = sum(one.finished for one in rollouts)
    return {
        "completions/mean_length": sum(len(one.response_ids) for one in rollouts) / len(rollouts),
        "completions/eos_share": finished / len(rollouts),
        "val/num_eos_tokens": float(finished),
    }


def seed_of(seed: int, number: int) -> int:
    """The seed of one answer of a run."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


Key = tuple[str, tuple[int, ...]]
"""A group's id and an answer's tokens."""


class Known(NamedTuple):
    """What was measured of an answer when it was sampled; (tokens,) each, on the CPU."""

    old: Tensor | None
    """Log-probabilities of the policy that sampled; None where the first step's are they."""
    reference: Tensor | None
    trains: bool
    entropy: Tensor | None = None
    """Of the policy that sampled, nats; None if it was not measured."""
    kept: Tensor | None = None
    """Bool: the tokens that train."""

    def kept_of(self, tokens: int) -> Tensor:
        """Which of its tokens train; none of an answer for which nothing was chosen."""
        return torch.zeros(tokens, dtype=torch.bool) if self.kept is None else self.kept


def keep_uncertain(known: dict[Key, Known], groups: Sequence[TokenizedGroup], share: float) -> dict[str, float]:
    """Chooses the tokens of a step that train, by their entropy among all of its tokens. Returns: the mean entropy."""
    keys = [(group.id, tuple(one)) for group in groups for one in group.completions]
    measured = {key: entropy for key in keys if known[key].trains and (entropy := known[key].entropy) is not None}
    if not measured:
        return {}
    whole = torch.cat(list(measured.values()))
    parts = most_uncertain(whole, share).split([len(one) for one in measured.values()])
    for key, kept in zip(measured, parts, strict=True):
        known[key] = known[key]._replace(kept=kept)
    return {"entropy": float(whole.mean())}
