"""The last good weights: a copy of the trainable weights on the CPU, which an alarm restores with guard='rollback'."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from preftune.log import warn
from preftune.training.guard.figures import Look


class Quality(NamedTuple):
    """Quality of the weights at a look: held-out accuracy, and for equal accuracies the margin. Higher is better."""

    accuracy: float
    margin: float

    @classmethod
    def of(cls, look: Look) -> Quality | None:
        """The quality at a look; None if no held-out pairs were scored."""
        if look.accuracy_held_out is None or look.margin_held_out is None:
            return None
        return cls(look.accuracy_held_out, look.margin_held_out)


class GoodWeights:
    """A copy of the best weights so far, in main memory."""

    def __init__(self, model: nn.Module, *, step: int = 0) -> None:
        """
        Args:
            step: the step of the present weights; not 0 in a resumed run.
        """
        self.step = step
        self.quality: Quality | None = None
        self._weights: dict[str, Tensor] = {}
        self._copy(model)

    @property
    def gigabytes(self) -> float:
        return sum(weight.nbytes for weight in self._weights.values()) / 2**30

    def better(self, quality: Quality | None) -> bool:
        """Whether weights of this quality should replace the copy: those that are at least as good on held-out pairs,
        or, without held-out pairs, the last ones. They always replace those from before the first step.
        """
        return quality is None or self.quality is None or quality >= self.quality

    def keep(self, model: nn.Module, step: int, quality: Quality | None) -> None:
        self.step, self.quality = step, quality
        self._copy(model)

    def put_back(self, model: nn.Module) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self._weights:
                    parameter.data.copy_(self._weights[name])

    def _copy(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            known = self._weights.get(name)
            if known is None:
                self._weights[name] = parameter.detach().to("cpu", copy=True)
            else:
                known.copy_(parameter.detach())


def end_run(good: GoodWeights | None, model: nn.Module, step: int, *, why: str = "") -> int | None:
    """Restore the good weights, and return their step; None without a copy.

    Args:
        step: the present step, for the warning.
        why: the reason why the weights are not restored, for the warning.
    """
    if good is None:
        warn(f"guard: training ends at step {step}; the weights are kept{why}.")
        return None
    good.put_back(model)
    what = "as received" if good.step == 0 else f"of step {good.step}"
    if good.quality is not None:
        what += f" (held-out accuracy {good.quality.accuracy:.0%}, margin {good.quality.margin:.2f})"
    warn(f"guard: training ends at step {step}, and the weights are again those {what}.")
    return good.step
