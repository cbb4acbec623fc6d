"""Detection of a model that training has destroyed. Such a run has failed, even if its loss is low."""

from __future__ import annotations

import math
from typing import Any

import torch

from preftune.data import GroupDataset
from preftune.logps import pack
from preftune.logps.batch import GroupLogps
from preftune.reference import inference
from preftune.training.protocol import GroupTrainerView, RecordedTrainerView
from preftune.types import TokenizedGroup

_FAR = 1.5
"""Multiple of the nats of a uniform guess above which a model counts as destroyed. A random model stays below."""
_GROUPS = 4
_BEHIND = 3
"""The mark is one of this many last tokens, because templates write a line break after it."""
_HARDLY_EVER = -7.0
"""In nats, a probability of about one in a thousand. A model that was tuned on its template stays above -2."""
_LANGUAGE_MODELS = ("dpo", "sft")


def broken_by_training(trainer: RecordedTrainerView) -> str | None:
    """A message if training has destroyed the model, otherwise None. Every rank must call it.

    A model is destroyed if it gives the answers that it was trained on far less probability than a uniform guess over
    its vocabulary does. The shortest `_GROUPS` of the first 64 training rows are scored.
    """
    data = trainer.train_dataset
    if trainer.method not in _LANGUAGE_MODELS or not isinstance(data, GroupDataset):
        return None
    vocabulary = trainer.model.config.get_text_config().vocab_size
    groups, scores = score_shortest(trainer, data)
    chosen = [number for number, _ in _chosen(groups)]
    nats_K = -(scores.sum_K / scores.length_K).float()
    nats, uniform = float(nats_K[chosen].mean()), math.log(vocabulary)
    if nats <= _FAR * uniform:  # False for NaN, which shows a destroyed model too
        return None
    return (
        f"The model is destroyed: a token of its own training answers costs it {nats:.0f} nats, and a random guess "
        f"would cost {uniform:.1f}. Train again with a lower learning rate "
        f"(learning_rate={trainer.args.learning_rate:g} now; 5e-6 to 5e-5 is usual for an adapter, 5e-7 to 5e-6 for "
        "full fine-tuning)."
    )


def score_shortest(trainer: RecordedTrainerView, data: GroupDataset) -> tuple[list[TokenizedGroup], GroupLogps]:
    """The shortest `_GROUPS` of the first 64 rows, and their scores under the present model."""
    groups = sorted((data[row] for row in range(min(len(data), 64))), key=lambda group: group.tokens)[:_GROUPS]
    batch = pack(groups).to(trainer.args.device)
    with torch.no_grad(), inference(trainer.model), trainer.autocast():
        return groups, trainer.engine(trainer.model, batch)


def ends_unlearned(trainer: GroupTrainerView, mark: int | None) -> bool:
    """Whether the model gives the end mark of its chat template a probability below one in a thousand at the end of
    answers, as a model that was never tuned on conversations does.

    Args:
        mark: token id of the mark; False without one.
    """
    if mark is None:
        return False
    groups, scores = score_shortest(trainer, trainer.train_dataset)
    lengths = scores.length_K.long().tolist()
    lasts = (scores.length_K.cumsum(0).long() - 1).tolist()  # the scored tokens of a completion are adjacent
    ends = [
        last - behind
        for last, length, ids in zip(
            lasts, lengths, (ids for group in groups for ids in group.completions), strict=True
        )
        if length == len(ids)  # the positions are not known if only parts of a completion are scored
        for behind in range(min(_BEHIND, len(ids)))
        if ids[-1 - behind] == mark
    ]
    return bool(ends) and float(scores.token_logps_T[ends].float().mean()) < _HARDLY_EVER


def _chosen(groups: Any) -> Any:
    """Number and group of each completion that is chosen in a pair; of all completions of a group without pairs."""
    number = 0
    for group in groups:
        better = {pair.chosen for pair in group.pairs}
        for place in range(len(group.completions)):
            if place in better or not better:
                yield number, group
            number += 1
