"""`OnlineDPOTrainer`: the policy answers, a judge says which answer is better, and a DPO step is made of it.

Guo et al. 2024 (arXiv:2402.04792) with any judge; Xu et al. 2023 (arXiv:2312.16682) for the idea of iterating.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from preftune.evaluation.labelling.pair_selection import rank
from preftune.evaluation.labelling.scoring import Rated
from preftune.logps.batch import GroupLogps, PackedBatch
from preftune.losses import LossOutput, get_loss
from preftune.training.online.config import JudgedConfig, OnlineDPOConfig
from preftune.training.online.fresh import FreshStep
from preftune.training.online.judged import Answers, JudgedTrainer
from preftune.training.online.rollout import Rollout
from preftune.training.setup.advice import about_beta
from preftune.training.step.collate import chosen_tokens
from preftune.training.step.metrics import PER_PAIR, pair_metrics
from preftune.training.step.pair_loss import pair_loss
from preftune.types import Preference, TokenizedGroup


class OnlineDPOTrainer(JudgedTrainer):
    """Aligns a policy with a judge's preferences between its own answers. Arguments: see `JudgedTrainer`."""

    args: OnlineDPOConfig
    method = "online-dpo"
    config_class: ClassVar[type[JudgedConfig]] = OnlineDPOConfig

    def advice(self) -> list[str]:
        loss = get_loss(self.args.loss)
        low, high = loss.betas
        if not loss.has_beta:
            return super().advice()
        return super().advice() + about_beta(self.args.beta, title=loss.title, usual=loss.beta, low=low, high=high)

    def make_steps(self, rollouts: Sequence[Rollout], round_number: int) -> list[list[TokenizedGroup]]:
        """One step: a group per prompt, with its distinct answers and the pairs that the judge made of them."""
        rated = self.rated(rollouts)
        made = [group for answers, one in rated if (group := self._pairs(answers, one)) is not None]
        pairs = sum(len(group.pairs) for group in made)
        asked = len(rated)
        self._window.add({"judge/prompts_without_pair": 1 - len(made) / asked, "judge/pairs_per_prompt": pairs / asked})
        return [made] if made else []

    def _pairs(self, answers: Answers, rated: Rated) -> TokenizedGroup | None:
        """The group of one prompt, with the answers that are in a pair; None if the judge prefers none."""
        known = {place: score for place, score in enumerate(self.scores_of(answers, rated)) if score is not None}
        if len(known) < 2:
            return None
        whole = len(known) == len(answers) and not self.args.missing_eos_penalty
        comparisons = rated.comparisons if whole else None
        ranked = rank([*known.values()], which=self.args.which_pairs, comparisons=comparisons)  # type: ignore[arg-type]
        places = [*known]
        wanted = [(places[pair.chosen], places[pair.rejected]) for pair in ranked.pairs]
        wanted = [(a, b) for a, b in wanted if answers[a].response_ids != answers[b].response_ids]
        if not wanted:
            return None
        used = sorted({side for pair in wanted for side in pair})
        place = {answer: index for index, answer in enumerate(used)}
        return TokenizedGroup(
            answers[0].prompt_ids,
            tuple(answers[answer].response_ids for answer in used),
            tuple(Preference(place[a], place[b]) for a, b in wanted),
            id=f"{answers[0].prompt.id}#{answers[0].number}",
        )

    def compute_part(self, part: PackedBatch, step: FreshStep) -> tuple[Tensor, Mapping[str, Tensor], Tensor]:
        pairs, tokens = sum(len(group.pairs) for group in step.groups), chosen_tokens(step.groups)
        self.model.train()
        with self.autocast():
            known = GroupLogps(self.reference.score(self.model, part, self.engine), part.owner_T, part.completions)
        self.model.train()
        with self.autocast():
            scored = (
                self.engine(self.model, part, squares=True)
                if self.args.use_weighting
                else self.engine(self.model, part)
            )
        output, policy = pair_loss(
            self.args, self.args.objective(), part, scored=scored, known=known, tokens_per_pair=tokens / pairs
        )
        loss_N, sums = self.losses(part, output, scored)
        loss = loss_N.sum() / pairs
        self.accelerator.backward(loss)
        sums |= dict(zip(PER_PAIR, pair_metrics(output, policy).sum(0), strict=True))
        distance = (scored.sum_K.detach() - known.sum_K).sum() / part.completions
        sums["objective/kl"] = distance * part.pairs  # answers of this round's policy: an estimate of its distance
        return loss.detach(), sums, torch.tensor(float(part.pairs), device=loss.device)

    def losses(self, part: PackedBatch, output: LossOutput, scored: GroupLogps) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (N,) of every pair, and figures as sums over pairs."""
        return output.loss_N, {}
