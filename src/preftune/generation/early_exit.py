"""Generation in rounds: rows that have ended leave the batch, and their share of the work with them.

`model.generate` computes every row until the last one has ended. Answers differ in length by an order of magnitude, so
most of that work is padding. This module generates a few tokens, continues the unfinished rows with their part of the
key-value cache, and so on. The tokens are the same up to the rounding of a smaller batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from preftune.generation.shared_prompts import can_leave, shared_prompts

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessor

    from preftune.generation.seeded_sampling import RowDraws

ROUND = 16
"""Number of tokens after which rows may leave."""

_NEEDS_THE_PROMPT: Mapping[str, Any] = {
    "begin_suppress_tokens": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "max_time": None,
    "min_new_tokens": 0,
    "stop_strings": None,
}
"""Options that depend on the end of the prompt or on the prompt alone, and the values at which they have no effect."""


def serves(config: GenerationConfig) -> bool:
    """Whether the configuration is supported: greedy, one beam, and no option that depends on the prompt, because in a
    second round all earlier tokens are the prompt.
    """
    special = any(getattr(config, name, None) not in (None, nothing) for name, nothing in _NEEDS_THE_PROMPT.items())
    return not config.do_sample and config.num_beams in (1, None) and not special


def generate_in_rounds(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: GenerationConfig,
    *,
    ends: AbstractSet[int],
    draws: RowDraws | None = None,
    last: Sequence[LogitsProcessor] = (),
) -> list[list[int]]:
    """New tokens of each row up to and with its end, or `config.max_new_tokens` of them.

    Args:
        input_ids, attention_mask: (rows, tokens), padded on the left.
        config: greedy, or that of `draws`.
        ends: the tokens that end a row.
        draws: samples the tokens.
        last: processors after those of `draws`.
    """
    whole = config.max_new_tokens
    config = copy.deepcopy(config)
    config.return_dict_in_generate = True
    new_ids: list[list[int]] = [[] for _ in range(len(input_ids))]
    alive, done = list(range(len(input_ids))), 0
    cache = shared_prompts(model, input_ids, attention_mask)
    while alive and done < whole:
        config.max_new_tokens = whole - done if cache is None and done else min(ROUND, whole - done)
        options: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if draws is not None or last:
            options["logits_processor"] = [*(draws.processors(alive) if draws is not None else ()), *last]
        output = model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=config, **options)
        made = output.sequences[:, input_ids.shape[1] :]
        done += made.shape[1]
        going = []
        for place, (row, tokens) in enumerate(zip(alive, made.tolist(), strict=True)):
            end = next((at for at, token in enumerate(tokens) if token in ends), None)
            new_ids[row] += tokens if end is None else tokens[: end + 1]
            if end is None:
                going.append(place)
        cache = output.past_key_values if can_leave(output.past_key_values) else None
        keep = torch.tensor(going)  # on the CPU, where it can index the layers of a model on several devices
        if cache is not None and going and len(going) < len(alive):
            cache.batch_select_indices(keep)
        alive = [alive[place] for place in going]
        if alive:
            input_ids = output.sequences[keep]
            seen = attention_mask[keep]
            attention_mask = torch.cat([seen, seen.new_ones(len(going), made.shape[1])], 1)
    return new_ids
