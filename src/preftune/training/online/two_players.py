"""`XPOTrainer` and `NashMDTrainer`: the policy's answer is compared with an answer of another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from preftune.evaluation.labelling.scoring import Rated
from preftune.generation.seeded_sampling import GeometricMixture
from preftune.logps.batch import GroupLogps, PackedBatch
from preftune.losses import LossOutput
from preftune.reference import inference
from preftune.reference.sources import LiveSource
from preftune.training.online.config import JudgedConfig, NashMDConfig, XPOConfig
from preftune.training.online.fresh import FreshStep, choose_sampler, scale_logps
from preftune.training.online.judged import Answers, JudgedTrainer
from preftune.training.online.preference import OnlineDPOTrainer
from preftune.training.online.rollout import Rollout
from preftune.training.setup.advice import about_beta
from preftune.types import TokenizedGroup


class TwoPlayerTrainer(JudgedTrainer):
    """The common part: the first of the two answers to a prompt is the policy's, the second the opponent's.

    A reward model in memory uses the policy's tokenizer unless `reward_processing_classes` is given.
    """

    def __init__(self, model: Any = None, args: Any = None, train_dataset: Any = None, **options: Any) -> None:
        given = options.get("reward_funcs")
        if isinstance(given, torch.nn.Module) and options.get("reward_processing_classes") is None:
            options["reward_processing_classes"] = options.get("processing_class")
        super().__init__(model, args, train_dataset, **options)

    _passes = 0
    """Number of passes over the prompts before this round."""

    def sample(self, asked: Sequence[int]) -> list[Rollout]:
        self._passes = self._sampled // (self.answers_per_prompt * len(self.prompts))
        prompts = asked[::2]
        own = super().sample(prompts)
        other = self.opponent(prompts, first=self._sampled + len(own))
        return [answer for pair in zip(own, other, strict=True) for answer in pair]

    def own_answers(self, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        return rollouts[::2]

    def opponent(self, asked: Sequence[int], *, first: int) -> list[Rollout]:
        """One answer of the opponent to each prompt."""
        raise NotImplementedError

    def _now(self, by_epoch: Sequence[float]) -> float:
        """The value for this pass over the prompts; later passes use the last value."""
        return by_epoch[min(self._passes, len(by_epoch) - 1)]

    @contextmanager
    def _reference_model(self) -> Iterator[torch.nn.Module]:
        """The model that answers as the reference, without dropout."""
        with cast(LiveSource, self.reference).acting(self.model) as model, inference(model):
            yield model


class XPOTrainer(TwoPlayerTrainer, OnlineDPOTrainer):
    """Exploratory preference optimisation: online DPO between an answer of the policy and one of the reference, with a
    term that makes the reference's answers less likely. Xie et al. 2024 (arXiv:2405.21046), algorithm 1.

    Arguments: see `JudgedTrainer`.
    """

    args: XPOConfig
    method = "xpo"
    config_class: ClassVar[type[JudgedConfig]] = XPOConfig

    def opponent(self, asked: Sequence[int], *, first: int) -> list[Rollout]:
        with self._reference_model() as reference:
            return self.answers(self.sampler, reference, asked, first=first)

    def losses(self, part: PackedBatch, output: LossOutput, scored: GroupLogps) -> tuple[Tensor, dict[str, Tensor]]:
        # of a pair's two completions the second is the reference's, whichever was preferred
        theirs_N = torch.maximum(part.chosen_N, part.rejected_N)
        alpha = self._now(self.args.alpha)
        explored_N = alpha * scored.sum_K[theirs_N]
        figures = {
            "loss/dpo": output.loss_N.detach().sum(),
            "loss/xpo": explored_N.detach().sum(),
            "alpha": torch.tensor(alpha * part.pairs),
            "judge/win_rate": (part.chosen_N < part.rejected_N).sum(),
        }
        return output.loss_N + explored_N, figures


class NashMDTrainer(TwoPlayerTrainer):
    """Nash-MD: a policy gradient on the probability of winning against the geometric mixture of policy and reference.
    Munos et al. 2023 (arXiv:2312.00886), section 7: the gradient is the mean of
    `grad log pi(y) (P(y > y') - 1/2 - beta (log pi(y) - log pi_ref(y)))`.

    A judge gives P = 1, 1/2 or 0; with scores, P is the sigmoid of their difference. Arguments: see
    `JudgedTrainer`.
    """

    args: NashMDConfig
    method = "nash-md"
    config_class: ClassVar[type[JudgedConfig]] = NashMDConfig

    def __init__(self, model: Any = None, args: Any = None, train_dataset: Any = None, **options: Any) -> None:
        super().__init__(model, args, train_dataset, **options)
        self._mixture_sampler = choose_sampler(self, self.processing_class, processor=self._mixture)

    def advice(self) -> list[str]:
        return super().advice() + about_beta(self.args.beta, title=self.method, usual=0.1, low=0.005, high=1.0)

    def _mixture(self, attention_mask: Tensor) -> GeometricMixture:
        return GeometricMixture(self._reference_model, attention_mask, weight=self._now(self.args.mixture_coef))

    def opponent(self, asked: Sequence[int], *, first: int) -> list[Rollout]:
        return self.answers(self._mixture_sampler, self.model, asked, first=first)

    def _after_check(self) -> None:
        scale_logps(self, self.args.temperature)

    def make_steps(self, rollouts: Sequence[Rollout], round_number: int) -> list[list[TokenizedGroup]]:
        """One step: the policy's answers, weighted with the difference of the probability of winning from 1/2."""
        coefficient = self._now(self.args.mixture_coef)
        rated = self.rated(rollouts)
        known = [(answers[0], p) for answers, one in rated if (p := self._winning(answers, one)) is not None]
        self._window.add({"judge/prompts_without_pair": 1 - len(known) / len(rated)})
        if not known:
            return []
        rate = sum(p for _, p in known) / len(known)
        self._window.add({"judge/win_rate": rate, "mixture_coef": coefficient}, weight=len(known))
        return [
            [
                TokenizedGroup(
                    one.prompt_ids, (one.response_ids,), (), id=f"{one.prompt.id}#{one.number}", scores=(p - 0.5,)
                )
                for one, p in known
            ]
        ]

    def _winning(self, answers: Answers, rated: Rated) -> float | None:
        """The probability that the policy's answer is the better one; None if it is not known."""
        own, other = self.scores_of(answers, rated)
        if own is None or other is None:
            return None
        if rated.comparisons is None:
            return float(torch.sigmoid(torch.tensor(own - other, dtype=torch.float64)))
        return min(1.0, max(0.0, (1.0 + own - other) / 2))

    def compute_part(self, part: PackedBatch, step: FreshStep) -> tuple[Tensor, Mapping[str, Tensor], Tensor]:
        self.model.train()
        with self.autocast():
            reference_T = self.reference.score(self.model, part, self.engine)
        self.model.train()
        with self.autocast():
            scored = self.engine(self.model, part)
        known = GroupLogps(reference_T, part.owner_T, part.completions)
        distance_K = (scored.sum_K - known.sum_K).detach()
        advantage_K = part.score_K - self.args.beta * distance_K
        loss = -(advantage_K * scored.sum_K).sum() / len(step.groups)
        self.accelerator.backward(loss)
        answers = part.completions
        sums = {
            "loss/score": (part.score_K * scored.sum_K.detach()).sum(),
            "objective/kl": distance_K.sum(),
            "objective/advantage": advantage_K.sum(),
        }
        return loss.detach(), sums, torch.tensor(float(answers), device=loss.device)
