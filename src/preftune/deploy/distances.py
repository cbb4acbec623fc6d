"""How far a served model is from the trained one and from its base, and what that means. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preftune.amounts import counted
from preftune.generation.protocol import Kept

Floats = NDArray[np.float64]

TIE = 0.1
"""Nats: two tokens whose log-probabilities differ by less are a tie, which the rounding of a computation decides."""
_HARDLY = 1e-3
"""Nats per token by which training must have moved the model for a comparison to mean something."""
_ROUNDING = 0.01
"""Nats per token that rounding to 16 bits may cost."""
_FREE_SHARE = 0.05
"""A smaller distance, as a share of the training's own effect, is not reported as a cost."""
_MOSTLY = 0.5
"""Share of greedy answers that a server with the trained weights must reproduce."""
_SAME_SHARE = 0.15
"""Largest distance to the trained model, as a share of the training's own effect."""
_BASE_SHARE = 0.25
"""Largest distance to the base, as the same share, of a model that is the base."""


class Scored(NamedTuple):
    """Log-probabilities of both completions of N groups under three models, and their numbers of tokens."""

    run: Sequence[tuple[float, float]]
    base: Sequence[tuple[float, float]]
    served: Sequence[tuple[float, float]]
    lengths: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Figures:
    """Distances in nats per token, margins in nats per pair, shares of prompts."""

    prompts: int
    same_answers: float
    """Share of prompts with the same greedy answer, or one that first differs at a tie."""
    as_base: float
    """Share of the prompts, where trained model and base differ, to which the served answer begins more like the
    base's."""
    apart: int
    """Number of prompts where trained model and base differ."""
    endless: int
    """Number of answers that the trained model ended and the served one did not."""
    pairs: int = 0
    """Number of pairs that all three models can score."""
    unscored: int = 0
    """Number of pairs that do not fit into the positions of one of them."""
    moved: float = 0.0
    """Distance of the trained model from its base."""
    off: float = 0.0
    """Distance of the served model from the trained one."""
    from_base: float = 0.0
    """Distance of the served model from the base."""
    margin: float = 0.0
    """Mean reward margin of the trained model: what it added to the log-probability of chosen over rejected."""
    served_margin: float = 0.0
    agreement: float = 1.0
    """Share of pairs whose margin has the same sign under both."""
    identical: float = 1.0
    """Share of prompts with the same greedy answer, letter by letter."""

    def cost(self, form: str) -> str:
        """What the number format of the weights costs, as a sentence."""
        if self.off <= max(_FREE_SHARE * self.moved, _HARDLY):
            return "What is served is what was aligned."
        lost = (self.served_margin - self.margin) / abs(self.margin) if self.margin else 0.0
        return (
            f"What is served is what was aligned, in {form}, which changes the reward margin from {self.margin:.2f} to "
            f"{self.served_margin:.2f} nats ({lost:+.0%}) and its sign on {1 - self.agreement:.0%} of "
            f"{counted(self.pairs, 'pair')}; {self.same_answers:.0%} of {counted(self.prompts, 'greedy answer')} are "
            "the same."
        )

    def faults(self, form: str, *, proven: bool = False) -> Iterator[tuple[Any, str]]:
        """The stages of the faults that the figures show.

        Args:
            form: the number format of the weights, if it rounds more than float16 does; otherwise empty.
            proven: whether the weights are known to be the run's, rounded to `form`.
        """
        if self.endless:
            yield "end token", f"{counted(self.endless, 'answer')} that the trained model ends did not end."
        if self.pairs and self.moved >= _HARDLY:
            yield from self._faults_of_scores(form, proven)
        elif not self.pairs and self.apart and self.as_base > max(0.5, self.same_answers):
            yield "adapter not applied", _LIKE_BASE.format(f"{self.as_base:.0%} of its answers begin as the base's")
        if self.same_answers < _MOSTLY and not form:
            yield (
                "generation",
                (
                    f"only {self.same_answers:.0%} of the greedy answers are the trained model's. Check the server's "
                    "sampling defaults, penalties and limits; if it serves a coarse number format, name it with --form."
                ),
            )

    def _faults_of_scores(self, form: str, proven: bool) -> Iterator[tuple[Any, str]]:
        is_base = self.from_base <= _BASE_SHARE * self.moved and self.from_base < self.off
        if is_base and not proven:
            distance = f"{self.from_base:.4f} nats per token from the base, and {self.off:.4f} from the trained model"
            yield "adapter not applied", _LIKE_BASE.format(f"it is {distance}")
        elif form and (self.off >= self.moved or is_base):
            yield (
                "precision",
                (
                    f"{form} changes the scores by {self.off:.3f} nats per token, and the training by "
                    f"{self.moved:.3f}: export a type with more bits (--dtype float16, gguf:q8_0)."
                ),
            )
        elif not form and self.off > max(_ROUNDING, _SAME_SHARE * self.moved):
            yield (
                "weights",
                (
                    f"the scores differ by {self.off:.3f} nats per token from those of the trained model, and by "
                    f"{self.from_base:.3f} from the base's: another run, checkpoint or base, or a coarse number format "
                    "(name it with --form)."
                ),
            )


_LIKE_BASE = (
    "the served model equals the base ({}). Check that the server loads the adapter, or export with --to merged."
)


def figures_of(
    scored: Scored | None,
    run: Sequence[Kept],
    base: Sequence[Kept],
    served: Sequence[Kept],
    gaps: Mapping[int, float],
) -> Figures:
    """The figures of N prompts.

    Args:
        run, base, served: greedy answers.
        gaps: by number of a prompt, the gap at the first token that differs; missing where one answer is longer.
    """
    same = [
        own.text == other.text or gaps.get(n, 1.0) <= TIE
        for n, (own, other) in enumerate(zip(run, served, strict=True))
    ]
    apart = [n for n, (own, other) in enumerate(zip(run, base, strict=True)) if own.text != other.text]
    like = [_common(served[n], base[n]) > _common(served[n], run[n]) for n in apart]
    endless = sum(_goes_on(own, other) for own, other in zip(run, served, strict=True))
    answers: dict[str, Any] = {
        "prompts": len(run),
        "same_answers": float(np.mean(same)) if same else 1.0,
        "identical": float(np.mean([own.text == other.text for own, other in zip(run, served, strict=True)] or [True])),
        "as_base": float(np.mean(like)) if like else 0.0,
        "apart": len(apart),
        "endless": endless,
    }
    if scored is None or not scored.run:
        return Figures(**answers)
    table_4N2 = np.array(scored, dtype=np.float64)
    known_N = np.isfinite(table_4N2).all(axis=(0, 2))
    answers["unscored"] = int((~known_N).sum())
    run_N2, base_N2, served_N2, lengths_N2 = table_4N2[:, known_N]
    if not known_N.any():
        return Figures(**answers)

    def apart_by(one: Floats, other: Floats) -> float:
        return float(np.mean(np.abs(one - other) / lengths_N2))

    margin_N = (run_N2 - base_N2) @ [1.0, -1.0]
    served_margin_N = (served_N2 - base_N2) @ [1.0, -1.0]
    return Figures(
        **answers,
        pairs=len(run_N2),
        moved=apart_by(run_N2, base_N2),
        off=apart_by(served_N2, run_N2),
        from_base=apart_by(served_N2, base_N2),
        margin=float(margin_N.mean()),
        served_margin=float(served_margin_N.mean()),
        agreement=float(np.mean(np.sign(margin_N) == np.sign(served_margin_N))),
    )


def _common(one: Kept, other: Kept) -> int:
    """Number of characters with which both answers begin."""
    pairs = zip(one.text, other.text, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _goes_on(own: Kept, other: Kept) -> bool:
    """Whether the served answer is the trained model's and continues where that ended."""
    return own.finished and not other.finished and other.text.startswith(own.text)
