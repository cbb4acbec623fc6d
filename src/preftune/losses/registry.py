"""Names of the losses. Adding one is a function and a line here; nothing else knows the list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from preftune.errors import ConfigError, did_you_mean
from preftune.losses import pairwise
from preftune.losses.pairwise import LossOutput


@dataclass(frozen=True, slots=True)
class Loss:
    """A pairwise loss and what the configuration must know about it."""

    name: str
    function: Callable[..., LossOutput]
    smoothing_limit: float | None = None
    """Largest meaningful `label_smoothing` (exclusive for `robust`, which divides by 1 - 2e); None: not used."""


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("sigmoid", pairwise.sigmoid, smoothing_limit=0.5),
        Loss("robust", pairwise.robust, smoothing_limit=0.4999),
        Loss("hinge", pairwise.hinge),
        Loss("ipo", pairwise.ipo),
    )
}

TRL_ONLY = frozenset(
    [
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    ]
)
"""Losses of TRL 1.16 that preftune does not compute (yet): refused by name, never taken for a misspelling."""


def get_loss(name: str) -> Loss:
    """The loss called `name`; a `ConfigError` names the nearest one otherwise."""
    if name in LOSSES:
        return LOSSES[name]
    known = ", ".join(LOSSES)
    if name in TRL_ONLY:
        raise ConfigError(f"loss_type={name!r} exists in TRL but not in preftune yet. Use one of: {known}.")
    hint = did_you_mean(str(name), LOSSES, cutoff=0.5, otherwise="Check the spelling.")
    raise ConfigError(f"loss_type={name!r} is not a loss. Use one of: {known}. {hint}")
