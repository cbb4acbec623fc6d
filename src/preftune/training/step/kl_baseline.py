"""KTO's baseline: how far the policy is from the reference on answers to other prompts, over a whole optimiser step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from preftune.logps import pack
from preftune.models.positions import positions_of
from preftune.reference import ReferenceScores, inference
from preftune.training.protocol import ReferencedTrainerView
from preftune.training.step.memory import score_in_parts
from preftune.training.step.micro_batches import with_completions
from preftune.types import TokenizedGroup


def mismatched(
    groups: Sequence[TokenizedGroup], of: Iterable[int], *, longest: int | None = None
) -> list[TokenizedGroup]:
    """Prompts with an answer to another prompt: the first completion of the nearest earlier group whose prompt differs.
    The search continues at the end of the step when it reaches the start.

    Args:
        groups: groups of the whole step, of all ranks in the order in which the loader deals them.
        of: indices into `groups`. A group is left out if no prompt in the step differs from its own.
        longest: most tokens of a prompt and its answer. A longer answer is cut, and the group is left out if no scored
            token remains.
    Returns: one group with one completion and no pairs for each index that is not left out.
    """
    made = []
    for place in of:
        prompt = groups[place].prompt_ids
        others = (groups[(place - ahead) % len(groups)] for ahead in range(1, len(groups)))
        other = next((group for group in others if not _same_prompt(group.prompt_ids, prompt)), None)
        if other is not None:
            room = None if longest is None else max(0, longest - len(prompt))
            answer = other.completions[0][:room]
            spans = [(begin, min(end, len(answer))) for begin, end in other.spans(0) if begin < len(answer)]
            scored = (tuple(spans),) if other.scored else ()
            if spans:
                made.append(TokenizedGroup(prompt, (answer,), (), id=groups[place].id, scored=scored))
    return made


_OTHER = 1.0
"""Marks the answer to another prompt in `TokenizedGroup.scores`, which a part of a group keeps."""
_MOVED = 8
"""Most tokens by which the boundary between a prompt and its answer moves when a token spans it."""


def _same_prompt(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two prompts are the same text. A token that spans the end of the prompt belongs to the answer, so the
    prompt of that row is a prefix of the same prompt, at most `_MOVED` tokens shorter.
    """
    shorter, longer = sorted((one, other), key=len)
    return len(longer) - len(shorter) <= _MOVED and list(longer[: len(shorter)]) == list(shorter)


def kl_baseline(trainer: ReferencedTrainerView, model: nn.Module, batches: Sequence[Sequence[TokenizedGroup]]) -> float:
    """The mean of log policy - log reference over mismatched prompts and answers, at least 0; nats.

    Args:
        batches: this rank's groups of the step, in the loader's order.
    Every rank must call it at the same time.
    """
    ranks: list[Sequence[Sequence[TokenizedGroup]]] = [batches]
    if trainer.args.world_size > 1:
        ranks = gather_object([[list(batch) for batch in batches]])
    # in the order of a single rank, so that a prompt gets the same answer for any number of ranks
    dealt = [
        (rank, group)
        for turn in zip_longest(*ranks, fillvalue=())
        for rank, batch in enumerate(turn)
        for group in batch
    ]
    own = [place for place, (rank, _) in enumerate(dealt) if rank == trainer.args.process_index]
    everyones = [group for _, group in dealt]
    limits = [limit for limit in (trainer.args.max_length, positions_of(model)) if limit is not None]
    trainer.reference.ahead.clear()
    asked = [
        _with_own(other, everyones[place], trainer.reference)
        for place in own
        for other in mismatched(everyones, [place], longest=min(limits, default=None))
    ]

    def score(part: Sequence[TokenizedGroup]) -> Sequence[Tensor | None]:
        """The difference for each group's answer to another prompt; None for a part that has only own answers."""
        device = trainer.args.device
        marks = [_marks(group) for group in part]
        kept = [not other for of_group in marks for other in of_group]
        reference_K = trainer.reference.fresh_keeping(model, part, kept, device)  # before the policy: may exchange it
        first = np.cumsum([0, *map(len, marks)])[:-1].tolist()
        place = [of_group.index(True) if True in of_group else 0 for of_group in marks]
        chosen = [with_completions(group, [at]) for group, at in zip(part, place, strict=True)]
        with trainer.autocast(), inference(model):
            policy = trainer.engine(model, pack(chosen).to(device))
        differences = policy.sum_K - reference_K[[begin + at for begin, at in zip(first, place, strict=True)]]
        return [value if True in of_group else None for value, of_group in zip(differences, marks, strict=True)]

    parts = score_in_parts(trainer, asked, score, work="reference")
    found = [float(one) for of_group in parts for one in of_group if one is not None]
    totals = torch.tensor([sum(found), float(len(found))], device=trainer.args.device)
    if trainer.args.world_size > 1:
        totals = trainer.accelerator.reduce(totals, "sum")
    return max(0.0, float(totals[0] / totals[1].clamp(min=1)))


def _with_own(other: TokenizedGroup, own: TokenizedGroup, reference: ReferenceScores) -> TokenizedGroup:
    """A prompt with the answer to another one, and with its own answers where the reference has not scored them: the
    prompt is then computed once for both. The scores of the group mark the answer to another prompt.
    """
    answers = (other, own) if reference.missing([own]) else (other,)
    spans = [one.spans(place) for one in answers for place in range(len(one.completions))]
    completions = tuple(answer for one in answers for answer in one.completions)
    marks = (_OTHER, *[0.0] * (len(completions) - 1))
    return TokenizedGroup(own.prompt_ids, completions, (), id=own.id, scored=tuple(spans), scores=marks)


def _marks(group: TokenizedGroup) -> list[bool]:
    """For each completion, whether it is the answer to another prompt."""
    return [score == _OTHER for score in group.scores] or [False] * len(group.completions)
