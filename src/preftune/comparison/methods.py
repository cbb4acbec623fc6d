"""The methods that can be compared: losses of pairs, losses of labels such as KTO, and the methods that train on fresh
answers. Each has its command and its strength, the setting that the trials vary by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from preftune.errors import RequestError, did_you_mean
from preftune.losses.registry import LOSSES, Loss

Command: TypeAlias = Literal["dpo", "kto", "ppo", "grpo", "rloo", "online", "xpo", "nash-md"]

_TRAINING = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")
_INTERNAL = ("delta", "tokens_per_pair", "step_beta", "gap_mean", "gap_std")
"""Options of losses that the trainer computes."""
_GROUPS = (
    "learning_rate", "total_episodes", "per_device_train_batch_size", "num_generations", "max_new_tokens",
    "temperature", "beta", "num_iterations", "epsilon", "epsilon_high", "dynamic_sampling",
    "mask_truncated_completions", "missing_eos_penalty",
)  # fmt: skip
_PPO = (
    "learning_rate", "total_episodes", "per_device_train_batch_size", "num_mini_batches", "num_ppo_epochs",
    "max_new_tokens", "temperature", "kl_coef", "kl_estimator", "kl_target", "kl_horizon", "gamma", "lam",
    "cliprange", "cliprange_value", "vf_coef", "value_learning_rate", "value_init", "whiten_advantages",
    "whiten_rewards", "normalize_rewards", "reward_clip", "missing_eos_penalty",
)  # fmt: skip
_JUDGED = (
    "learning_rate", "total_episodes", "per_device_train_batch_size", "num_generations", "max_new_tokens",
    "temperature", "beta", "missing_eos_penalty",
)  # fmt: skip
REWARD_TUNED = (*_TRAINING, "center_rewards_coefficient")
"""The settings of a reward model that need tuning, in every method that has one."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method that trains a policy on preference pairs."""

    name: str
    """Name in `--methods`, in the flag with its settings and in the folders of its trials."""
    title: str
    """Name in texts."""
    command: Command
    strength: str
    """The setting that limits the distance from the start (for a loss without beta, the learning rate). The trials vary
    it by default."""
    values: Sequence[float]
    """Default values of the strength: the authors' value, about a third of it and three times as much, within the usual
    range."""
    tuned: Sequence[str]
    """The settings that need tuning, without those of a reward model."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Settings that define the method."""
    models: Sequence[str] = ("policy",)
    """The models that it trains."""

    def usual(self, number: int, shared: Mapping[str, str]) -> dict[str, list[str]]:
        """The first default values of its strength.

        Args:
            number: number of values, at most that of `values`.
            shared: settings of every training. Learning rates are multiples of a learning rate in them.
        """
        values = self.values[:number]
        if self.strength == "learning_rate":
            adapter = shared.get("use_peft", "").lower() in ("true", "1", "yes")
            here = float(shared.get("learning_rate", self.values[0] * (10 if adapter else 1)))
            values = [value / self.values[0] * here for value in values]
        return {self.strength: [f"{value:g}" for value in values]}

    @property
    def needs_reward(self) -> bool:
        """Whether a reward model is trained for it."""
        return "reward model" in self.models

    @property
    def settings_to_tune(self) -> int:
        return len(self.tuned) + (len(REWARD_TUNED) if self.needs_reward else 0)


def _around(middle: float, ends: tuple[float, float] = (0.0, math.inf)) -> list[float]:
    return [middle, *(float(f"{value:.0e}") for value in (max(ends[0], middle / 3), min(ends[1], 3 * middle)))]


def _of_pairs(name: str, loss: Loss, title: str = "", **fixed: str) -> Method:
    """A loss of pairs. For a loss without beta, the learning rate is the strength."""
    strength, values = "beta", _around(loss.beta, loss.betas)
    if not loss.has_beta:
        strength, values = "learning_rate", [loss.learning_rate * factor for factor in (1.0, 0.3, 3.0)]
    options = [option for option in (*loss.options, *loss.step_options) if option not in _INTERNAL]
    tuned = dict.fromkeys((*_TRAINING, strength, *options))
    own = {} if loss.name == "sigmoid" else {"loss_type": loss.name}
    return Method(name, title or loss.title, "dpo", strength, values, [*tuned], own | fixed)


def _all() -> dict[str, Method]:
    found = [
        _of_pairs("dpo", LOSSES["sigmoid"]),
        _of_pairs("cdpo", LOSSES["sigmoid"], "cDPO", label_smoothing="0.1"),
        _of_pairs("robust", LOSSES["robust"], label_smoothing="0.1"),
        _of_pairs("exo_pair", LOSSES["exo_pair"], label_smoothing="0.001"),
    ]
    known = {"sigmoid", *(method.name for method in found)}
    found += [
        _of_pairs(name, loss)
        for name, loss in LOSSES.items()
        if name not in known and not loss.needs_margins and not loss.needs_gold
    ]
    labels, betas = (*_TRAINING, "beta"), _around(0.1, (0.05, 0.5))
    rewarded = ("reward model", "policy")
    groups = (*_GROUPS, "loss_type", "scale_rewards")
    found += [
        Method("kto", "KTO", "kto", "beta", betas, (*labels, "desirable_weight", "undesirable_weight")),
        Method(
            "apo_zero_unpaired", "APO-zero on labels", "kto", "beta", betas, labels, {"loss_type": "apo_zero_unpaired"}
        ),
        Method("bco", "BCO on labels", "kto", "beta", betas, labels, {"loss_type": "bco"}),
        Method("ppo", "PPO", "ppo", "kl_coef", _around(0.05), _PPO, models=(*rewarded, "value function")),
        Method("grpo", "GRPO", "grpo", "beta", _around(0.04), groups, models=rewarded),
        Method("rloo", "RLOO", "rloo", "beta", _around(0.05), (*_GROUPS, "normalize_advantages"), models=rewarded),
        Method("online", "Online DPO", "online", "beta", betas, (*_JUDGED, "which_pairs"), models=rewarded),
        Method("xpo", "XPO", "xpo", "beta", betas, (*_JUDGED, "alpha"), models=rewarded),
        Method("nash_md", "Nash-MD", "nash-md", "beta", betas, (*_JUDGED, "mixture_coef"), models=rewarded),
    ]
    return {method.name: method for method in found}


METHODS: Mapping[str, Method] = _all()


def parse_methods(words: Sequence[str]) -> list[Method]:
    """From `dpo,ipo kto`. Raises: RequestError for an unknown name, a repeated one, or fewer than two."""
    names = [name for word in words for name in word.lower().replace("-", "_").split(",") if name]
    for name in names:
        if name not in METHODS:
            likely = {"sigmoid": "dpo", "reinforce": "rloo", "rlhf": "ppo", "slic_hf": "slic"}.get(name)
            hint = (
                f"It is called {likely}."
                if likely
                else did_you_mean(name, METHODS, otherwise=f"Known are {', '.join(METHODS)}.")
            )
            raise RequestError(f"--methods {name}: there is no such method. {hint}")
        if names.count(name) > 1:
            raise RequestError(f"--methods: {name} is given twice. Give different methods.")
    if len(names) < 2:
        raise RequestError(f"--methods {','.join(names)}: give at least two, as dpo,ipo,kto.")
    return [METHODS[name] for name in names]
