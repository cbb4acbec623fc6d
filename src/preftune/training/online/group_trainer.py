"""`GRPOTrainer` and `RLOOTrainer`: several answers to each prompt, whose rewards are each other's baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from preftune.logps.batch import PackedBatch
from preftune.losses.advantages import whiten
from preftune.losses.group_relative import (
    GroupLoss,
    deviation,
    group_advantages,
    group_loss,
    leave_one_out,
)
from preftune.losses.surrogates import Clipped
from preftune.training.online.fresh import STEP, FreshStep, scale_logps
from preftune.training.online.grpo_config import GroupConfig, GRPOConfig, RLOOConfig
from preftune.training.online.prompts import PromptSet, prepare_prompts, shared_answers
from preftune.training.online.reward_functions import BatchFunction, Rewards, open_rewards
from preftune.training.online.rollout import Key, Known, Rollout, figures_of_answers, keep_uncertain
from preftune.training.online.trainer import OnlineTrainer
from preftune.training.setup.advice import about_beta
from preftune.training.setup.arguments import check_evaluation, own_config
from preftune.training.step.metrics import Averages
from preftune.training.step.shares import shared
from preftune.types import TokenizedGroup

_HELD_OUT = 1 << 40
"""Number of the first answer of every evaluation, beyond those of any training: the draws are the same each time."""


class GroupTrainer(OnlineTrainer):
    """The common part of GRPO and RLOO.

    Args:
        model: the policy: a model, a hub id or a folder.
        reward_funcs: what rates an answer: a function as TRL takes it (`prompts`, `completions`, columns -> a list of
            numbers), a scorer (prompt, answer, row -> a number), a reward model or its name, or a list of these; by
            default `reward_model` of the configuration.
        reward_processing_classes: the tokenizer of a reward model in memory; of several rewards a list.
        eval_dataset: held-out prompts, or a dict of them by name. An evaluation samples answers to them at the
            training temperature, the same draws every time, and logs their rewards (`eval_reward`).
        args, train_dataset, ref_model, processing_class, peft_config, quantization_config, callbacks, optimizers,
            sampler: as for `OnlineTrainer`.
    """

    args: GroupConfig
    holds_back = "beta (double it; 0.04 where it is 0)"
    repeats = "num_iterations"
    config_class: ClassVar[type[GroupConfig]]
    kl_in_reward: ClassVar[bool] = False
    """Whether advantages need the KL, which must be known before the step then."""
    _totals: Mapping[str, int]
    """Answers of the step at hand, and tokens of those that train."""

    def __init__(
        self,
        model: Any = None,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        reward_processing_classes: Any = None,
        **options: Any,
    ) -> None:
        args = own_config(args, self.config_class, method=self.method)
        check_evaluation(args, eval_dataset, ["reward"], has_own_metrics=True)
        self._opened = ExitStack()
        self.rewards: Rewards = open_rewards(reward_funcs, args, self._opened, tokenizers=reward_processing_classes)
        self.rated_by, self.rated_with = self.rewards.name, self.rewards.keys
        self.answers_per_prompt = args.num_generations
        self._known: dict[Key, Known] = {}
        self._waiting: list[TokenizedGroup] = []
        self._surplus = 0
        """Groups that dynamic sampling collected beyond a step's number, and left out."""
        super().__init__(model, args, train_dataset, eval_dataset=eval_dataset, **options)
        if eval_dataset is not None:
            self.eval_dataset = (
                {name: self._held_out(part) for name, part in eval_dataset.items()}
                if isinstance(eval_dataset, Mapping)
                else self._held_out(eval_dataset)
            )
        for scorer in self.rewards.scorers:
            if isinstance(scorer, BatchFunction):
                scorer.context = self._said_to_rewards

    def _said_to_rewards(self) -> dict[str, Any]:
        def log_metric(name: str, value: float) -> None:
            self._window.add({name: float(value)})

        return {"trainer_state": self.state, "log_metric": log_metric}

    @property
    def needs_reference(self) -> bool:
        return bool(self.args.beta)

    def advice(self) -> list[str]:
        return super().advice() + about_beta(self.args.beta, title=self.method, usual=0.04, low=0.0, high=0.5)

    def _after_check(self) -> None:
        scale_logps(self, self.args.temperature)

    def _plan_round(self, args: Any, step: int) -> None:
        self.prompts_per_round = step // args.num_generations
        self.steps_per_round = args.num_iterations

    # --- what a subclass says ---

    def advantages(self, reward_PK: Tensor, kl_PK: Tensor) -> Tensor:
        """(P, K), from rewards (NaN without one) and the log-ratio of whole answers to the reference."""
        raise NotImplementedError

    def token_loss(
        self, logps_T: Tensor, old_T: Tensor, advantage_T: Tensor, owner_T: Tensor, reference_T: Tensor | None
    ) -> GroupLoss:
        """The loss of every token of a part; the advantage of a token that does not train is 0."""
        raise NotImplementedError

    def token_weight(self, length_K: Tensor, *, answers: int, tokens: int) -> Tensor:
        """(K,): weight of each token of an answer in the loss of a step.

        Args:
            length_K: tokens of the answers.
            answers, tokens: of the whole step; tokens of those that train.
        """
        raise NotImplementedError

    # --- a round ---

    def make_steps(self, rollouts: Sequence[Rollout], round_number: int) -> list[list[TokenizedGroup]]:
        args, size = self.args, self.answers_per_prompt
        reward_PK, members = self._rewards_of(rollouts, size)
        self._window.add({"objective/unscored": float(reward_PK.isnan().float().mean())})
        if bool(reward_PK.isnan().all()):
            return []
        groups = [_group(rollouts[start : start + size]) for start in range(0, len(rollouts), size)]
        self._log_rewards(reward_PK, members)
        if not self._waiting:
            self._known = {}
        kl_PK = self._measure(groups, rollouts)
        advantage_PK = self.advantages(reward_PK, kl_PK)
        made = [
            TokenizedGroup(group.prompt_ids, group.completions, (), id=group.id, scores=tuple(advantages))
            for group, advantages in zip(groups, advantage_PK.tolist(), strict=True)
        ]
        if args.dynamic_sampling:
            self._waiting += [one for one in made if any(one.scores)]
            if len(self._waiting) < self.prompts_per_round:
                return []
            surplus = len(self._waiting) - self.prompts_per_round
            self._surplus += surplus
            self._window.add({"objective/surplus": surplus / len(self._waiting)})
            made, self._waiting = self._waiting[: self.prompts_per_round], []
        if args.top_entropy_quantile < 1:
            self._window.add(keep_uncertain(self._known, made, args.top_entropy_quantile))
        self.step_has_weight = any(
            score and self._known[group.id, tuple(answer)].trains
            for group in made
            for score, answer in zip(group.scores, group.completions, strict=True)
        )
        return [made] * args.num_iterations

    def _rewards_of(self, rollouts: Sequence[Rollout], size: int) -> tuple[Tensor, list[list[float | None]]]:
        """(P, K) with NaN where no reward rates an answer, and each reward's own."""

        def rate(places: range) -> list[list[tuple[float | None, tuple[float | None, ...]]]]:
            # whole prompts: a reward may compare the answers to one
            sums, members = self.rewards(rollouts[places.start * size : places.stop * size])
            rows = list(zip(sums, zip(*members, strict=True), strict=True))
            return [rows[start : start + size] for start in range(0, len(rows), size)]

        rated = [row for of_prompt in shared(self, len(rollouts) // size, rate) for row in of_prompt]
        sums, members = [one for one, _ in rated], [list(of) for of in zip(*(of for _, of in rated), strict=True)]
        penalty = self.args.missing_eos_penalty or 0.0
        known = [
            torch.nan if one is None else one - penalty * (not rollout.finished)
            for one, rollout in zip(sums, rollouts, strict=True)
        ]
        return torch.tensor(known).double().view(-1, size), members  # double: their deviation squares them

    def _log_rewards(self, reward_PK: Tensor, members: Sequence[Sequence[float | None]]) -> None:
        known = reward_PK[~reward_PK.isnan()]
        if not len(known):
            return
        spread_P = deviation(reward_PK, 1)[:, 0]
        figures = {
            "objective/scores": float(known.mean()),
            "reward": float(known.mean()),
            "reward_std": float(deviation(known[None], 1)),
            "frac_reward_zero_std": float((spread_P == 0).float().mean()),
        }
        for name, scores in zip(self.rewards.names, members, strict=True):
            rated = [score for score in scores if score is not None]
            if rated:
                figures[f"rewards/{name}/mean"] = sum(rated) / len(rated)
                figures[f"rewards/{name}/std"] = float(deviation(torch.tensor([rated]), 1))
        self._window.add(figures, weight=len(known))

    def _measure(self, groups: Sequence[TokenizedGroup], rollouts: Sequence[Rollout]) -> Tensor:
        """Keeps what the steps need of every answer. Returns: (P, K) log policy - log reference of whole answers; zeros
        where that is left to the step.
        """
        args, size = self.args, self.answers_per_prompt
        old: list[Any] = [None] * len(rollouts)
        reference: list[Any] = [None] * len(rollouts)
        entropy: list[Any] = [None] * len(rollouts)
        measured = args.num_iterations > 1 or (self.kl_in_reward and args.beta)
        if args.top_entropy_quantile < 1:
            both = self.in_parts(groups, self._logps_and_entropy)
            old, entropy = ([one[:, column] for one in both] for column in (0, 1))
        elif measured:
            old = self.in_parts(groups, lambda part: self.engine(self.model, part).token_logps_T)
        if args.beta:
            reference = self.in_parts(groups, lambda part: self.reference.score(self.model, part, self.engine))
        for place, rollout in enumerate(rollouts):
            trains = rollout.finished or not args.mask_truncated_completions
            key = groups[place // size].id, tuple(rollout.response_ids)
            kept = old[place] if args.num_iterations > 1 else None
            self._known[key] = Known(kept, reference[place], trains, entropy[place])
        if not (args.beta and measured):
            return torch.zeros(len(groups), size)
        kl = [float((now - then).sum()) for now, then in zip(old, reference, strict=True)]
        tokens = sum(map(len, old))
        self._window.add({"objective/kl": sum(kl) / len(kl), "kl": sum(kl) / tokens}, weight=len(kl))
        return torch.tensor(kl).view(-1, size)

    def _logps_and_entropy(self, part: PackedBatch) -> Tensor:
        """(T, 2), in one pass."""
        found = self.engine(self.model, part, entropy=True)
        return torch.stack([found.token_logps_T, found.entropies], 1)

    def result_facts(self) -> dict[str, Any]:
        return super().result_facts() | ({"surplus_groups": self._surplus} if self.args.dynamic_sampling else {})

    def checkpoint_facts(self) -> dict[str, Any]:
        return {**super().checkpoint_facts(), "surplus": self._surplus}

    def recall(self, state: Mapping[str, Any]) -> None:
        super().recall(state)
        self._surplus = state.get("surplus", 0)

    # --- evaluation ---

    def _held_out(self, source: Any) -> PromptSet:
        return prepare_prompts(source, self.processing_class, max_prompt_length=self.args.max_prompt_length)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str) and isinstance(self.eval_dataset, dict):
            chosen = self.eval_dataset[chosen]
        return chosen if isinstance(chosen, PromptSet) else self._held_out(chosen)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The rewards of fresh answers to held-out prompts."""
        prompts: PromptSet = dataloader
        size = self.args.num_generations_eval or self.args.num_generations
        asked = [place for place in range(len(prompts)) for _ in range(size)]
        training, self._window = self._window, Averages()
        try:
            rollouts = shared_answers(self, prompts, asked, partial(self.sampler, self.model), first=_HELD_OUT)
            self._log_rewards(*self._rewards_of(rollouts, size))
            self._window.add(figures_of_answers(rollouts), weight=len(rollouts))
            figures = self._window.drain()
        finally:
            self._window = training
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(prompts))  # type: ignore[arg-type]

    # --- a step ---

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        answers = [(group.id, tuple(one)) for group in inputs[STEP].groups for one in group.completions]
        lengths = [(len(key[1]), self._known[key].trains) for key in answers]
        self._totals = {
            "answers": len(answers),
            "tokens": sum(length for length, trains in lengths if trains),
            "all_tokens": sum(length for length, _ in lengths),
        }
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_part(self, part: PackedBatch, step: FreshStep) -> tuple[Tensor, Mapping[str, Tensor], Tensor]:
        device, owner_T = part.owner_T.device, part.owner_T
        known = [self._known[group.id, tuple(one)] for group in part.groups for one in group.completions]
        lengths = [len(one) for group in part.groups for one in group.completions]
        with self.autocast():
            logps_T = self.engine(self.model, part).token_logps_T
        old = [one.old for one in known if one.old is not None]
        reference = [one.reference for one in known if one.reference is not None]
        old_T = torch.cat(old).to(device) if old else logps_T.detach()
        reference_T = torch.cat(reference).to(device) if reference else None
        advantage_T = part.score_K[owner_T]
        if self.args.top_entropy_quantile < 1:
            kept = [one.kept_of(length) for one, length in zip(known, lengths, strict=True)]
            advantage_T = advantage_T * torch.cat(kept).to(device)
        found = self.token_loss(logps_T, old_T, advantage_T, owner_T, reference_T)
        trains_K = torch.tensor([float(one.trains) for one in known], device=device)
        weight_K = trains_K * self.token_weight(
            torch.tensor(lengths, device=device), answers=self._totals["answers"], tokens=self._totals["tokens"]
        )
        loss = (weight_K[owner_T] * found.loss_T).sum()
        self.accelerator.backward(loss)
        tokens = torch.tensor(float(len(owner_T)), device=device)
        sums = {
            "val/ratio": found.ratio_T.sum(),
            "policy/clipfrac_avg": found.clipped_T.float().sum(),
            "policy/entropy_avg": -logps_T.detach().sum(),
        }
        if reference_T is not None and not old:  # the sampling policy's own step
            sums["kl"] = (logps_T.detach() - reference_T).sum()
            sums["objective/kl"] = sums["kl"] * self._totals["all_tokens"] / self._totals["answers"]
        return loss.detach(), sums, tokens


class GRPOTrainer(GroupTrainer):
    """Group relative policy optimisation, Shao et al. 2024 (arXiv:2402.03300). Args: those of `GroupTrainer`."""

    args: GRPOConfig
    method = "grpo"
    config_class = GRPOConfig

    def advantages(self, reward_PK: Tensor, kl_PK: Tensor) -> Tensor:
        return group_advantages(reward_PK, scale=self.args.scale_rewards)

    def token_loss(
        self, logps_T: Tensor, old_T: Tensor, advantage_T: Tensor, owner_T: Tensor, reference_T: Tensor | None
    ) -> GroupLoss:
        args = self.args
        return group_loss(
            logps_T,
            old_T,
            advantage_T,
            owner_T,
            reference_T=reference_T,
            beta=args.beta,
            surrogate=args.surrogate,
            level=args.importance_sampling_level,
            corrected_kl=args.use_bias_correction_kl,
        )

    def token_weight(self, length_K: Tensor, *, answers: int, tokens: int) -> Tensor:
        if self.args.loss_type == "luspo":
            return torch.full_like(length_K, 1 / answers, dtype=torch.float32)
        if self.args.loss_type in ("grpo", "sapo"):
            return 1 / (answers * length_K)
        if self.args.loss_type == "dr_grpo":
            return torch.full_like(length_K, 1 / (answers * self.args.max_new_tokens), dtype=torch.float32)
        return torch.full_like(length_K, 1 / max(1, tokens), dtype=torch.float32)


class RLOOTrainer(GroupTrainer):
    """REINFORCE leave-one-out, Ahmadian et al. 2024 (arXiv:2402.14740). Args: those of `GroupTrainer`."""

    args: RLOOConfig
    method = "rloo"
    config_class = RLOOConfig
    kl_in_reward = True

    def advantages(self, reward_PK: Tensor, kl_PK: Tensor) -> Tensor:
        advantage_PK = leave_one_out(reward_PK - self.args.beta * kl_PK)
        if self.args.normalize_advantages:
            advantage_PK = whiten(advantage_PK, ~reward_PK.isnan())
        return advantage_PK

    def token_loss(
        self, logps_T: Tensor, old_T: Tensor, advantage_T: Tensor, owner_T: Tensor, reference_T: Tensor | None
    ) -> GroupLoss:
        surrogate = Clipped(*self.args.epsilons)
        return group_loss(
            logps_T, old_T, advantage_T, owner_T, reference_T=None, beta=0.0, surrogate=surrogate, level="answer"
        )

    def token_weight(self, length_K: Tensor, *, answers: int, tokens: int) -> Tensor:
        return 1 / (answers * length_K)  # every token has the loss of its answer


def _group(answers: Sequence[Rollout]) -> TokenizedGroup:
    """The answers to one prompt, which share it in the engine."""
    first = answers[0]
    completions = tuple(one.response_ids for one in answers)
    return TokenizedGroup(first.prompt_ids, completions, (), id=f"{first.prompt.id}#{first.number}")
