"""Whether training has destroyed the model: a run that ends so has failed, whatever its loss says."""

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
"""Times the nats of a uniform guess; a random model, which never knew a language, stays below."""
_GROUPS = 4
_BEHIND = 3
"""Tokens at the end among which the mark is: templates write a line break after it."""
_HARDLY_EVER = -7.0
"""Nats: about one in a thousand. A model that was tuned on its template stays above -2."""
_LANGUAGE_MODELS = ("dpo", "sft")


def broken_by_training(trainer: RecordedTrainerView) -> str | None:
    """What shows that the model is of no use, in a sentence; None for a model that is.

    A model that gives the answers that it was trained on far less probability than a uniform guess over its vocabulary
    knows no language any more. Scores the shortest few of the training rows; every rank calls it.
    """
    data = trainer.train_dataset
    if trainer.method not in _LANGUAGE_MODELS or not isinstance(data, GroupDataset):
        return None
    vocabulary = trainer.model.config.get_text_config().vocab_size
    groups, scores = score_shortest(trainer, data)
    chosen = [number for number, _ in _chosen(groups)]
    nats_K = -(scores.sum_K / scores.length_K).float()
    nats, uniform = float(nats_K[chosen].mean()), math.log(vocabulary)
    if nats <= _FAR * uniform:  # NaN is no less broken
        return None
    return (
        f"The model is destroyed: a token of its own training answers costs it {nats:.0f} nats, and a random guess "
        f"would cost {uniform:.1f}. Train again with a lower learning rate "
        f"(learning_rate={trainer.args.learning_rate:g} now; 5e-6 to 5e-5 is usual for an adapter, 5e-7 to 5e-6 for "
        "full fine-tuning)."
    )


def score_shortest(trainer: RecordedTrainerView, data: GroupDataset) -> tuple[list[TokenizedGroup], GroupLogps]:
    """The shortest few of the first training rows, and their scores under the model as it is now."""
    groups = sorted((data[row] for row in range(min(len(data), 64))), key=lambda group: group.tokens)[:_GROUPS]
    batch = pack(groups).to(trainer.args.device)
    with torch.no_grad(), inference(trainer.model), trainer.autocast():
        return groups, trainer.engine(trainer.model, batch)


def ends_unlearned(trainer: GroupTrainerView, mark: int | None) -> bool:
    """Whether the model hardly ever ends an answer with the mark of its chat template, as one that was never tuned on
    conversations.
    """
    if mark is None:
        return False
    groups, scores = score_shortest(trainer, trainer.train_dataset)
    lengths = scores.length_K.long().tolist()
    lasts = (scores.length_K.cumsum(0).long() - 1).tolist()  # the scored tokens of a completion stand together
    ends = [
        last - behind
        for last, length, ids in zip(
            lasts, lengths, (ids for group in groups for ids in group.completions), strict=True
        )
        if length == len(ids)  # of a completion that is scored in parts, the places are not known
        for behind in range(min(_BEHIND, len(ids)))
        if ids[-1 - behind] == mark
    ]
    return bool(ends) and float(scores.token_logps_T[ends].float().mean()) < _HARDLY_EVER


def _chosen(groups: Any) -> Any:
    """The number of every completion that is chosen in a pair, and of every one where there are no pairs."""
    number = 0
    for group in groups:
        better = {pair.chosen for pair in group.pairs}
        for place in range(len(group.completions)):
            if place in better or not better:
                yield number, group
            number += 1
