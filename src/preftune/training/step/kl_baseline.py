"""KTO's baseline: how far the policy is from the reference on answers to other prompts, over a whole optimiser step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from preftune.logps import pack
from preftune.models.positions import positions_of
from preftune.reference import inference
from preftune.training.protocol import ReferencedTrainerView
from preftune.training.step.memory import score_in_parts
from preftune.types import TokenizedGroup


def mismatched(
    groups: Sequence[TokenizedGroup], of: Iterable[int], *, longest: int | None = None
) -> list[TokenizedGroup]:
    """Prompts with the answer to another one: each with that of the last group before it that has another
    prompt, going round.

    Args:
        groups: of the whole step, all ranks' in their order.
        of: the groups that are asked for. One without another prompt in the step is left out.
        longest: most tokens of a prompt and its answer. A longer answer is cut, and left out if nothing scored is left.
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


_MOVED = 8
"""Most tokens by which the boundary between a prompt and its answer moves, where a token spans it."""


def _same_prompt(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two prompts are the same text. Where a token spans the end of the prompt, it is a part of the answer: the
    prompt of that row is a shorter beginning of the same prompt.
    """
    shorter, longer = sorted((one, other), key=len)
    return len(longer) - len(shorter) <= _MOVED and list(longer[: len(shorter)]) == list(shorter)


def kl_baseline(trainer: ReferencedTrainerView, model: nn.Module, batches: Sequence[Sequence[TokenizedGroup]]) -> float:
    """The mean of log policy - log reference over mismatched prompts and answers, at least 0; nats.

    Args:
        batches: of this rank, in the order in which the loader deals them to the ranks in turn. Every rank must call it
            at the same time.
    """
    ranks: list[Sequence[Sequence[TokenizedGroup]]] = [batches]
    if trainer.args.world_size > 1:
        ranks = gather_object([[list(batch) for batch in batches]])
    # as one rank would have them, so that the same prompts meet the same answers
    dealt = [
        (rank, group)
        for turn in zip_longest(*ranks, fillvalue=())
        for rank, batch in enumerate(turn)
        for group in batch
    ]
    own = [place for place, (rank, _) in enumerate(dealt) if rank == trainer.args.process_index]
    everyones = [group for _, group in dealt]
    limits = [limit for limit in (trainer.args.max_length, positions_of(model)) if limit is not None]
    asked = mismatched(everyones, own, longest=min(limits, default=None))

    def score(part: Sequence[TokenizedGroup]) -> Sequence[Tensor]:
        batch = pack(part).to(trainer.args.device)
        reference = trainer.reference.fresh(model, batch)  # before the policy: it may exchange weights
        with trainer.autocast(), inference(model):
            policy = trainer.engine(model, batch)
        return list(policy.sum_K - reference.sum_K)

    found = [float(one) for parts in score_in_parts(trainer, asked, score, work="reference") for one in parts]
    totals = torch.tensor([sum(found), float(len(found))], device=trainer.args.device)
    if trainer.args.world_size > 1:
        totals = trainer.accelerator.reduce(totals, "sum")
    return max(0.0, float(totals[0] / totals[1].clamp(min=1)))
