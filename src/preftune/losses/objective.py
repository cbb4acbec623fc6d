"""The objective: one loss or a weighted sum of several, with their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.losses.listwise import Lists
from preftune.losses.pairs import LossOutput, Pairs
from preftune.losses.registry import LOSSES, Loss, get_loss
from preftune.types import Sides

LIKELIHOODS = ("sft", "gold")
"""Terms that imitate an answer and do not compare two."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A weighted sum of losses of pairs, as in MPO, Wang et al. 2024 (arXiv:2411.10442), and in most recipes with a
    likelihood term.
    """

    terms: tuple[tuple[Loss, float], ...]
    beta: float
    options: Mapping[str, Any]
    """Values of the fields that the losses take by name."""

    @classmethod
    def of(
        cls, names: Sequence[str], weights: Sequence[float] | None, beta: float, options: Mapping[str, Any]
    ) -> Objective:
        """The losses of these names, with the likelihood terms that belong to their methods.

        Args:
            weights: one per name; None means 1 for each.
            options: every field of the configuration that a loss may take.
        Raises: ConfigError for an unknown name.
        """
        terms = [
            (get_loss(name), float(weight)) for name, weight in zip(names, weights or [1.0] * len(names), strict=True)
        ]
        for loss, weight in list(terms):
            strength = float(options[loss.likelihood] if isinstance(loss.likelihood, str) else loss.likelihood)
            if strength:
                terms.append((LOSSES[loss.imitates], weight * strength))
        return cls(tuple(terms), beta, options)

    @property
    def needs_reference(self) -> bool:
        return any(loss.reference for loss, _ in self.terms)

    @property
    def sorts(self) -> bool:
        return any(loss.sorts for loss, _ in self.terms)

    def step_margins(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The margins of a loss that sorts, for all pairs of a step: for the gradients of chosen and of rejected."""
        make = next(loss.step_margins for loss, _ in self.terms if loss.step_margins is not None)
        return make(pairs, beta=self.beta)

    @property
    def gap(self) -> Callable[[Pairs], Tensor] | None:
        """The differences of pairs whose running moments a loss needs; None without such a loss."""
        return next((loss.gap for loss, _ in self.terms if loss.gap is not None), None)

    @property
    def needs_gold(self) -> bool:
        """Whether a third answer of each row is imitated."""
        return any(loss.name == "gold" for loss, _ in self.terms)

    @property
    def takes_lists(self) -> bool:
        """Whether a loss takes all ranked completions of a prompt together."""
        return any(loss.lists for loss, _ in self.terms)

    @property
    def needs_running_mean(self) -> bool:
        """Whether a loss uses the mean of the rewards of earlier steps."""
        return any("delta" in loss.options for loss, _ in self.terms) and bool(self.options["bco_running_mean"])

    @property
    def has_usual_beta(self) -> bool:
        """Whether beta has DPO's scale, on which 0.1 is usual."""
        return all(loss.betas[0] <= 0.1 <= loss.betas[1] for loss, _ in self.terms if loss.has_beta)

    @property
    def needs_margins(self) -> bool:
        return any(loss.needs_margins for loss, _ in self.terms)

    @property
    def uses_margins(self) -> bool:
        return any(loss.margins for loss, _ in self.terms)

    def __call__(
        self,
        policy: Sides,
        reference: Sides | None,
        *,
        weight_N: Tensor,
        margin_N: Tensor,
        whole_N: Tensor | None = None,
        gold_N: Tensor | None = None,
        rejected_margin_N: Tensor | None = None,
        policy_weight_N: Tensor | float = 1.0,
        lists: Lists | None = None,
        **step: Any,
    ) -> LossOutput:
        """The losses and rewards of N pairs.

        Args:
            reference: None if no loss needs a reference; rewards are then those of the policy alone.
            weight_N: (N,) weight of each pair's loss; the mean is over pairs, not over weights.
            margin_N: (N,) nats of reward by which the chosen side must win.
            whole_N, gold_N, rejected_margin_N, lists: see `Pairs`.
            policy_weight_N: (N,) further weight of the losses of pairs, not of the likelihood term.
            step: values of the whole optimiser step: `tokens_per_pair`.
        """
        pairs = Pairs(policy, reference, margin_N, whole_N, gold_N, rejected_margin_N, lists)
        alone = pairs._replace(reference=None)
        values = {**self.options, **step}
        loss_N = torch.zeros_like(policy.chosen_N)
        for loss, weight in self.terms:
            options = {name: values[name] for name in loss.options}
            if loss.has_beta:
                options["beta"] = self.beta
            value_N = weight * loss.function(pairs if loss.reference else alone, **options)
            loss_N = loss_N + (value_N if loss.name in LIKELIHOODS else policy_weight_N * value_N)
        chosen_N, rejected_N = self._rewards(pairs)
        right_N = Lists.of(pairs).right_N() if self.takes_lists else None
        return LossOutput(weight_N * loss_N, self.beta * chosen_N.detach(), self.beta * rejected_N.detach(), right_N)

    def _rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Log-ratios, or log-probabilities without a reference, per token if the losses take them per token."""
        if pairs.reference is None and self.terms[0][0].per_token:
            return pairs.chosen_mean_N, pairs.rejected_mean_N
        return pairs.chosen_N, pairs.rejected_N


def check_options(objective: Objective, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises: ConfigError for an option of a loss that is not used, or for a value outside of the valid range."""
    used = {name for loss, _ in objective.terms for name in (*loss.options, *loss.step_options, loss.likelihood)}
    names = ", ".join(loss.name for loss, _ in objective.terms)
    for name, default in defaults.items():
        if name not in used and values[name] != default:
            owners = [
                loss.name for loss in LOSSES.values() if name in (*loss.options, *loss.step_options, loss.likelihood)
            ]
            raise ConfigError(
                f"{name}={values[name]!r} has no effect with loss_type={names}. Leave it at {default!r}, or use "
                f"{' or '.join(owners)}."
            )
    for loss, _ in objective.terms:
        if not loss.is_smoothed:
            continue
        low, high = loss.smoothing
        if not low <= values["label_smoothing"] <= high:
            hint = f" EXO's authors use about {1e-3:g}." if loss.name == "exo_pair" else ""
            raise ConfigError(
                f"label_smoothing={values['label_smoothing']} must be between {low:g} and {high:g} for "
                f"loss_type={loss.name!r}.{hint}"
            )
