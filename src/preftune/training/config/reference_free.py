"""`CPOConfig`, `ORPOConfig` and `TPOConfig`: TRL's names for the losses of pairs without a reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

from preftune.errors import ConfigError
from preftune.losses import LOSSES, Objective
from preftune.training.config.dpo import DPOConfig
from preftune.training.config.options import option

_OF_TRL = {"sigmoid": "cpo", "simpo": "simpo", "hinge": "hinge", "ipo": "ipo"}
"""TRL's and preftune's names of CPO's losses."""


@dataclass
class CPOConfig(DPOConfig):
    """Configuration of `CPOTrainer`, with the names, defaults and meanings of TRL's.

    `loss_type="simpo"` adds the likelihood term with the weight `cpo_alpha`, as TRL does: the original SimPO needs
    `cpo_alpha=0`, a beta of 2 to 10 and its own gamma; `DPOConfig(loss_type="simpo")` has these defaults."""

    beta: float = option(0.1, "Scale of the difference of log-probabilities.")
    alpha: float = option(0.0, "Other than 0: AlphaPO's reward instead of the log-probability (TRL's name).")

    @property
    def full_learning_rate(self) -> float:  # type: ignore[override]
        """The learning rate of TRL and of CPO's authors."""
        return LOSSES["cpo"].learning_rate

    def settle_losses(self) -> None:
        unknown = [name for name in self.loss_type if name not in _OF_TRL]
        if unknown:
            raise ConfigError(
                f"loss_type={unknown[0]!r} is not a loss of CPOTrainer. Use {', '.join(_OF_TRL)}, or DPOConfig, which "
                "has all losses."
            )
        if len(self.loss_type) > 1:
            raise ConfigError(
                f"loss_type={self.loss_type} names {len(self.loss_type)} losses, but CPOTrainer has one, with the "
                "likelihood (cpo_alpha). Give one, or use DPOConfig with loss_weights."
            )
        if self.alpha and self.loss != "simpo":
            raise ConfigError(
                f"alpha={self.alpha} is an option of AlphaPO and needs loss_type='simpo'. Set that, or leave alpha out."
            )
        super().settle_losses()

    def objective(self) -> Objective:
        found = super().objective()
        (first, weight), *rest = found.terms
        loss = replace(
            LOSSES["alphapo" if self.alpha else _OF_TRL[first.name]], reference=False, likelihood="cpo_alpha"
        )
        if loss.name in ("hinge", "ipo"):
            loss = replace(loss, title=f"CPO with the loss {loss.name}", paper=LOSSES["cpo"].paper)
        loss = replace(loss, options=tuple(name for name in loss.options if not name.startswith("f_")))
        terms = [(loss, weight), *((term, strength) for term, strength in rest if term.name == "sft")]
        if self.cpo_alpha:
            terms.append((LOSSES["sft"], weight * self.cpo_alpha))
        return replace(found, terms=tuple(terms), options={**found.options, "alphapo_alpha": self.alpha})


@dataclass
class ORPOConfig(DPOConfig):
    """Configuration of `ORPOTrainer`, with TRL's names.

    The likelihood term covers only the chosen answer; TRL's covers the prompt too.
    """

    loss_type: list[str] = option(["orpo"], "Only orpo.")
    beta: float = option(0.1, "Weight of the preference term: lambda of the paper.")

    def settle_losses(self) -> None:
        super().settle_losses()
        if self.loss_type != ["orpo"]:
            raise ConfigError(
                f"loss_type={self.loss_type} is not a loss of ORPOTrainer. Leave it out, or use DPOConfig."
            )


_TPO = {"sigmoid": "tpo", "tpo-l": "tpo_l", "tpo": "tpo", "tpo_l": "tpo_l", "hinge": "hinge", "ipo": "ipo"}
"""TRL's and preftune's names of TPO's losses."""


@dataclass
class TPOConfig(DPOConfig):
    """Configuration of `TPOTrainer`, with the names, defaults and meanings of TRL's. TRL's `loss_type` sigmoid and
    tpo-l are called `tpo` and `tpo_l`.
    """

    loss_type: list[str] = option(["tpo"], "tpo (TRL's sigmoid), tpo_l (TRL's tpo-l), hinge or ipo.")
    beta: float = option(0.01, "Scale of the difference of log-probabilities; for tpo_l 2 to 10 is suitable.")

    @property
    def full_learning_rate(self) -> float:  # type: ignore[override]
        """TRL's."""
        return LOSSES["tpo"].learning_rate

    def settle_losses(self) -> None:
        names = self.loss_type
        if len(names) != 1 or names[0] not in _TPO:
            raise ConfigError(
                f"loss_type={', '.join(names)!r} is not a loss of TPOTrainer. Use one of tpo, tpo_l, hinge, "
                "ipo, or DPOConfig, which has all losses."
            )
        self.loss_type = [_TPO[names[0]]]
        super().settle_losses()

    def objective(self) -> Objective:
        found = super().objective()
        if self.loss not in ("hinge", "ipo"):
            return found
        (first, weight), *rest = found.terms
        loss = replace(
            first, title=f"TPO with the loss {first.name}", paper=LOSSES["tpo"].paper, reference=False, options=(),
            likelihood="tpo_alpha", imitates="gold",
        )  # fmt: skip
        gold = [(LOSSES["gold"], float(self.tpo_alpha))] if self.tpo_alpha else []
        return replace(found, terms=((loss, weight), *rest, *gold))
