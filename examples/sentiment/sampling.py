"""Completions at temperature 1 as token ids, and their log-probabilities by preftune's engine.

Token ids all the way: text that a model wrote does not always tokenise to what it wrote, and a KL divergence is about
what it wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from preftune.logps import make_engine, pack
from preftune.types import TokenizedGroup

_SAMPLES, _SCORED = 256, 48
"""Completions made, and scored, at a time."""


def sample(model: Any, prompts: Sequence[Sequence[int]], *, new_tokens: int, seed: int) -> list[list[int]]:
    """One completion of every prompt, from the model's own distribution; an end token is part of it.

    Args:
        prompts: token ids.
        new_tokens: a longer completion is cut.
        seed: decides the draws; the global random state is left alone.
    """
    completions: list[list[int]] = []
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), _SAMPLES):
            completions += _sample_batch(model, prompts[start : start + _SAMPLES], new_tokens)
    model.train(training)
    return completions


def _sample_batch(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask[row, width - len(ids) :] = 1
    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=pad,
        eos_token_id=end,
    )
    rows = output[:, width:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def completion_logps(
    model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """(completions,) log-probability of each completion given its prompt, in nats."""
    engine = make_engine(model, "packed")
    groups = [
        TokenizedGroup(tuple(prompt), (tuple(completion),), ())
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = [engine(model, pack(groups[i : i + _SCORED])).sum_K for i in range(0, len(groups), _SCORED)]
    model.train(training)
    return torch.cat(parts).double().numpy()
