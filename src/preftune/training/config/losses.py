"""`LossFields`: the losses of a trainer on pairs, and their options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from preftune.amounts import counted
from preftune.errors import ConfigError
from preftune.losses import LOSSES, Objective
from preftune.losses.objective import check_options
from preftune.training.config.base import positive
from preftune.training.config.options import option

_NOT_NEGATIVE = (
    "beta_dpo_alpha", "alpha_dpo_alpha", "rdpo_alpha", "dpop_lambda", "simpo_gamma", "slic_delta", "slic_lambda",
    "cpo_alpha", "rpo_alpha", "tpo_alpha", "tpo_l_gamma",
)  # fmt: skip


@dataclass
class LossFields:
    """Names follow TRL where TRL has the option. docs/methods.md has a section for every loss."""

    loss_type: list[str] = option(
        ["sigmoid"],
        "The loss, or several with loss_weights: sigmoid (DPO), ipo, hinge, robust, sigmoid_norm, apo_zero, simpo, "
        "cpo, orpo, plackett_luce (ranked lists) and others, see docs/methods.md.",
    )
    loss_weights: list[float] | None = option(None, "Weight of each loss of loss_type. Default: 1 each.")
    beta: float = option(
        None,
        "Strength of the KL penalty, or scale of the reward. A higher beta keeps the policy closer to the reference. "
        "Default: that of the loss's authors, 0.1 for sigmoid.",
    )
    label_smoothing: float = option(
        0.0, "Probability that a label is flipped, for sigmoid (cDPO), robust, exo_pair and others."
    )
    f_divergence_type: str = option(
        "reverse_kl",
        "Divergence from the reference that determines the reward.",
        choices=["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"],
    )
    f_alpha_divergence_coef: float = option(0.5, "alpha of f_divergence_type alpha_divergence; 1 is reverse_kl.")
    ld_alpha: float | None = option(
        None, "LD-DPO: weight, 0 to 1, of the tokens of the longer answer beyond the length of the shorter one."
    )
    ld_policy_only: bool = option(False, "LD-DPO as in LLaMA-Factory and ms-swift: all tokens of the reference count.")
    use_weighting: bool = option(
        False, "WPO: weight pairs by the likelihood of both answers under the policy, at most 1 (TRL does not clamp)."
    )
    bco_running_mean: bool = option(
        True, "Use the mean of the rewards so far as bco_pair's delta; False: 0, as in TRL."
    )
    discopop_tau: float = option(0.05, "Temperature of discopop's gate.")
    rdpo_alpha: float = option(0.1, "Nats per token by which rdpo penalises a longer chosen answer.")
    dpop_lambda: float = option(50.0, "Strength of dpop's penalty on a chosen answer that becomes less likely.")
    rpo_distance: str = option(
        "backward_kl",
        "How reward_aware measures the distance to the margin.",
        choices=["backward_kl", "forward_kl", "squared"],
    )
    beta_dpo_alpha: float = option(0.6, "Strength with which beta_dpo's beta follows the step's mean difference.")
    beta_dpo_filter: float = option(0.2, "Share of a step's pairs that beta_dpo leaves out, mostly outlying ones.")
    alpha_dpo_alpha: float = option(0.2, "Strength with which alpha_dpo's margin follows the lead of a pair.")
    tpo_alpha: float = option(1.0, "Weight of tpo's likelihood of the gold answer; 0: the rows need no gold answer.")
    tpo_l_gamma: float = option(0.5, "Margin of tpo_l in nats.")
    lipo_labels: str = option(
        "wins",
        "lipo's labels: the share of the other answers that an answer beats, or the data's scores unchanged.",
        choices=["wins", "scores"],
    )
    nca_tau: float = option(
        1e-4,
        "Temperature of the labels of info_nca and nca, in points of the score; with a small value only the best "
        "answer counts.",
    )
    simpo_gamma: float = option(0.5, "Margin of simpo, alphapo and alpha_dpo in nats.")
    alphapo_alpha: float = option(0.25, "alpha of alphapo's reward; 0 is simpo.")
    slic_delta: float = option(1.0, "Margin of slic in nats.")
    slic_lambda: float = option(0.1, "Weight of slic's likelihood term.")
    cpo_alpha: float = option(1.0, "Weight of cpo's likelihood term.")
    rpo_alpha: float | None = option(
        None, "Adds the likelihood of the chosen answer with this weight to any loss (loss_type sft)."
    )
    sft_mean: str = option(
        "tokens",
        "Mean of the likelihood term: over the chosen tokens of the whole step, or over pairs of the mean of each "
        "completion.",
        choices=["tokens", "completions"],
    )

    @property
    def loss(self) -> str:
        """The name of the loss, or of the first of several."""
        return self.loss_type[0]

    def objective(self) -> Objective:
        """The objective that is minimised. Raises: ConfigError for an unknown loss."""
        names, weights = list(self.loss_type), list(self.loss_weights or [1.0] * len(self.loss_type))
        if self.rpo_alpha:
            names, weights = [*names, "sft"], [*weights, float(self.rpo_alpha)]
        return Objective.of(names, weights, self.beta, self._values())

    def settle_losses(self) -> None:
        """Completes and checks the fields. Raises: ConfigError that names field and value."""
        if not self.loss_type:
            raise ConfigError("loss_type is empty. Name a loss: sigmoid is DPO.")
        weights = self.loss_weights
        if weights is not None and len(weights) != len(self.loss_type):
            raise ConfigError(
                f"loss_weights={weights} has {counted(len(weights), 'weight')} for "
                f"{counted(len(self.loss_type), 'loss', 'losses')} ({', '.join(self.loss_type)}). Give one for each."
            )
        if self.beta is None:
            self.beta = next((LOSSES[name].beta for name in self.loss_type if name in LOSSES), 0.1)
        objective = self.objective()
        positive("beta", self.beta, "0.1 is a safe start; a higher beta keeps the policy closer to the reference")
        if self.ld_alpha is not None and not 0 <= self.ld_alpha <= 1:
            raise ConfigError(
                f"ld_alpha={self.ld_alpha} must be between 0 and 1: the authors use 0.5, and 1 has no effect."
            )
        self._check_sorted(objective)
        self._check_lists(objective)
        self._check_combination(objective)
        if self.ld_policy_only and self.ld_alpha is None:
            raise ConfigError("ld_policy_only belongs to ld_alpha. Set that too, or leave ld_policy_only out.")
        if self.sft_mean != "tokens" and not any(term.name == "sft" for term, _ in objective.terms):
            raise ConfigError(
                f"sft_mean={self.sft_mean!r} has no effect without a likelihood term. Set rpo_alpha, or leave sft_mean "
                "out."
            )
        self._check_numbers()
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights or []) or (weights and not any(weights)):
            raise ConfigError(f"loss_weights={weights} must be finite numbers, 0 or above, and not all 0.")
        if self.f_divergence_type != "alpha_divergence" and self.f_alpha_divergence_coef != 0.5:
            raise ConfigError("f_alpha_divergence_coef belongs to f_divergence_type='alpha_divergence'. Set that too.")
        defaults = {entry.name: entry.default for entry in fields(LossFields) if entry.name in _OPTIONS}
        check_options(objective, self._values(), defaults)

    def _check_numbers(self) -> None:
        """Checks that the options of single losses are in their valid ranges."""
        positive("discopop_tau", self.discopop_tau, "the authors use 0.05")
        positive("nca_tau", self.nca_tau, "the authors use 1e-4")
        if not 0 <= self.beta_dpo_filter < 1:
            raise ConfigError(f"beta_dpo_filter={self.beta_dpo_filter} must be between 0 and 1: the authors use 0.2.")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value} must be a finite number, 0 or above.")
        for name in ("alphapo_alpha", "f_alpha_divergence_coef"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} must be a finite number.")

    def _check_combination(self, objective: Objective) -> None:
        """Checks losses of a whole step, and weights of single pairs."""
        adaptive = [loss.name for loss, _ in objective.terms if loss.gap is not None]
        if len(adaptive) > 1:
            raise ConfigError(
                f"loss_type={', '.join(self.loss_type)}: {adaptive[0]} and {adaptive[1]} follow running moments of "
                "different quantities. Use one of them."
            )
        if objective.needs_gold and getattr(self, "group_by_prompt", False):
            raise ConfigError(
                f"group_by_prompt is not honoured with loss_type={', '.join(self.loss_type)}: a gold answer belongs to "
                "its row. Leave it out."
            )
        if self.use_weighting and (objective.sorts or objective.takes_lists):
            raise ConfigError(
                f"use_weighting=True weights single pairs, but loss_type={', '.join(self.loss_type)} is not a loss of "
                "single pairs. Leave use_weighting out."
            )

    def _check_sorted(self, objective: Objective) -> None:
        """Checks losses that sort: their margins come from one order of all pairs, of whole answers, for one loss."""
        if not objective.sorts:
            return
        first, *more = [loss.name for loss, _ in objective.terms if loss.sorts]
        others = [loss.name for loss, _ in objective.terms if loss.margins and not loss.sorts] + more
        if others:
            raise ConfigError(
                f"loss_type={', '.join(self.loss_type)}: {first} replaces the margins, which {others[0]} would use "
                f"too. Use {first} with sft or another loss without margins."
            )
        if self.ld_alpha is not None:
            raise ConfigError(
                f"ld_alpha={self.ld_alpha} is not honoured with {first}, which sorts whole answers. Leave it out."
            )

    def _check_lists(self, objective: Objective) -> None:
        """Checks losses of lists: a list is one item of the loss, so that losses of pairs have no pairs."""
        if not objective.takes_lists:
            return
        names = ", ".join(self.loss_type)
        others = [loss.name for loss, _ in objective.terms if not loss.lists and loss.name != "sft"]
        if others:
            raise ConfigError(
                f"loss_type={names}: {others[0]} takes pairs, but the others take ranked lists. Leave {others[0]} out; "
                "only sft can be combined with losses of lists."
            )
        if self.ld_alpha is not None:
            raise ConfigError(
                f"ld_alpha={self.ld_alpha} is not honoured with loss_type={names}: it applies to the two lengths of a "
                "pair. Leave it out."
            )
        if getattr(self, "group_by_prompt", False):
            raise ConfigError(
                f"group_by_prompt has no effect with loss_type={names}: a ranked list is already one group. Leave it "
                "out."
            )

    def _values(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in _OPTIONS}


_OPTIONS = [
    entry.name
    for entry in fields(LossFields)
    if any(entry.name in (*loss.options, *loss.step_options, loss.likelihood) for loss in LOSSES.values())
]
"""Fields that a loss takes by name."""
