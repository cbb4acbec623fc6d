"""The oracle: one sequence at a time, full logits, log_softmax. Slow, simple, and correct; it supports float64.

Every faster path is tested against this one in values and gradients, and `engine="naive"` selects it. It deliberately
uses no padding: in float64 transformers' eager mask turns padded rows into NaN, and rotary variants that depend on the
longest position of a batch would make a score depend on its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from preftune.logps.batch import PackedBatch
from preftune.logps.layers.rope import unscaled_rope


def naive_logps(
    model: nn.Module,
    batch: PackedBatch,
    *,
    hits: list[Tensor] | None = None,
    squares: list[Tensor] | None = None,
    entropies: list[Tensor] | None = None,
) -> Tensor:
    """Log-probability of every scored token given all tokens before it, in the order of `batch.target_T`.

    Args:
        model: a causal language model whose forward returns `.logits`.
        batch: only its groups are read.
        hits: an output: whether each scored token was the likeliest, in parts to be concatenated.
        squares: an output: the log of the sum of all tokens' squared probabilities before each scored token.
        entropies: an output: the entropy of the distribution of each scored token, nats.
    Returns: (T,) nats, float32 or wider.
    """
    logps = []
    for ids, prompt, spans in batch.sequences():
        unscaled_rope(model)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        targets = ids[0, prompt:]
        # The logits before a token predict it. Counted from the end: the last logits belong to the last token,
        # whatever an adapter puts in front of the first one (the virtual tokens of prompt tuning).
        predicting = logits[-len(targets) - 1 : -1].to(torch.promote_types(logits.dtype, torch.float32))
        of_all = predicting.log_softmax(-1)
        every_token = of_all.gather(-1, targets[:, None])[:, 0]
        logps += [every_token[begin:end] for begin, end in spans]
        if hits is not None:
            likeliest = every_token >= of_all.amax(-1)
            hits += [likeliest[begin:end] for begin, end in spans]
        if squares is not None:
            square = (2 * of_all.detach()).logsumexp(-1)
            squares += [square[begin:end] for begin, end in spans]
        if entropies is not None:
            entropy = -(of_all.detach() * of_all.detach().exp()).sum(-1)
            entropies += [entropy[begin:end] for begin, end in spans]
    return torch.cat(logps)
