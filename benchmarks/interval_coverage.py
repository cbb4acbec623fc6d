"""How often the intervals of an evaluation contain the true rate, in simulations: the figures of docs/evaluation.md.

    python benchmarks/interval_coverage.py [--only PART ...] [--repetitions 1.0] [-o FOLDER]

- `anytime`: 4,000 sequences of 300 prompts; how often the confidence sequence excludes the true rate at any number of
  prompts, how often the ordinary interval does so at a look after every tenth prompt (400 sequences), how much wider
  the confidence sequence is, and how often each shows a true rate of 60% (200 evaluations).
- `equal-length`: 400 evaluations each; how often the interval at equal length contains the true rate, how far the mean
  rate is from it, and how often the result is "extrapolated". Answers are `shift` standard deviations longer on
  average.
- `methods`: 400 comparisons of 3 seeds and 200 prompts; how often the interval over prompts and seeds contains the true
  rate of a method, and how often the one over prompts alone does. Standard deviations are in log-odds.
- `unequal`: prompts with unequal numbers of comparisons, 400 evaluations each of two rates, two shares of ties and
  three correlations within a prompt; how often the interval contains the true rate, and how often the plain sandwich
  variance with one degree of freedom less than prompts does: the least and the mean of the settings.

`anytime` and `methods` take a minute on one core, the others five to ten. `--repetitions 0.1` simulates a tenth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, provenance, rounded, write_result
from scipy import stats

from preftune.statistics.clusters import Floats
from preftune.statistics.confidence_sequence import anytime_interval
from preftune.statistics.intervals import win_rate
from preftune.statistics.length_control import length_controlled
from preftune.statistics.over_seeds import win_rate_over_seeds
from preftune.statistics.profile_likelihood import sigmoid

KINDS = (("wins and losses", 0.5), ("wins and losses", 0.95), ("ties", 0.5), ("probabilities", 0.6))
EFFECTS = ((0.4, 0.0), (0.4, 1.2), (-0.5, 3.0))
"""Log-odds of a win at equal length, and of the length."""
SHIFTS = (0.0, 0.8, 1.4, 2.5)
LAYOUTS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "1 or 20 by chance": lambda rng, prompts: rng.choice([1, 20], prompts),
    "1 and 20 in turn": lambda rng, prompts: np.tile([1, 20], prompts)[:prompts],
    "one with 20, the others 1": lambda rng, prompts: np.array([20] + [1] * (prompts - 1)),
    "3 each": lambda rng, prompts: np.full(prompts, 3),
}
"""Numbers of comparisons of the prompts."""


def outcomes_of(rng: np.random.Generator, kind: str, rate: float, prompts: int) -> Floats:
    """Outcomes with this true rate, one per prompt."""
    if kind == "wins and losses":
        return (rng.random(prompts) < rate).astype(np.float64)
    if kind == "ties":
        return rng.choice([0.0, 0.5, 1.0], p=[0.8 - rate, 0.4, rate - 0.2], size=prompts)
    return rng.beta(2 * rate, 2 * (1 - rate), prompts)


def anytime(sequences: int, looks: int, evaluations: int) -> dict[str, Any]:
    excluded = []
    for kind, rate in KINDS:
        rng = np.random.default_rng(17)
        found = [anytime_interval(outcomes_of(rng, kind, rate, 300)) for _ in range(sequences)]
        # the last interval is the intersection of all, so it excludes what any of them excludes
        share = float(np.mean([not one.ci_low <= rate <= one.ci_high for one in found]))
        excluded.append({"kind": kind, "rate": rate, "excluded": share})
    rng = np.random.default_rng(18)
    wrong = []
    for _ in range(looks):
        outcomes = outcomes_of(rng, "wins and losses", 0.5, 300)
        found = [win_rate(outcomes[:size]) for size in range(20, 301, 10)]
        wrong.append(any(not one.ci_low <= 0.5 <= one.ci_high for one in found))
    return {
        "sequences": excluded,
        "ordinary interval at every tenth prompt": {"rate": 0.5, "excluded": float(np.mean(wrong))},
        "a rate of 60%": [_shown(prompts, evaluations) for prompts in (200, 800)],
    }


def _shown(prompts: int, evaluations: int) -> dict[str, Any]:
    rng = np.random.default_rng(19)
    shown, ordinary, widths = [], [], []
    for _ in range(evaluations):
        outcomes = outcomes_of(rng, "wins and losses", 0.6, prompts)
        wide, narrow = anytime_interval(outcomes), win_rate(outcomes)
        shown.append(wide.ci_low > 0.5)
        ordinary.append(narrow.ci_low > 0.5)
        widths.append((wide.ci_high - wide.ci_low) / (narrow.ci_high - narrow.ci_low))
    return {
        "prompts": prompts,
        "shown": float(np.mean(shown)),
        "by the ordinary interval": float(np.mean(ordinary)),
        "times as wide": float(np.mean(widths)),
    }


def equal_length(evaluations: int) -> list[dict[str, Any]]:
    cells = []
    for prompts in (64, 200):
        for quality, by_length in EFFECTS:
            for shift in SHIFTS:
                rng = np.random.default_rng(9)
                truth, found = float(sigmoid(np.array(quality))), []
                for _ in range(evaluations):
                    longer = rng.normal(shift, 1, prompts) * 100
                    chance = sigmoid(quality + by_length * np.tanh(longer / longer.std()))
                    found.append(length_controlled((rng.random(prompts) < chance).astype(float), longer))
                rates = [one.win_rate for one in found if one.win_rate is not None]
                cells.append(
                    {
                        "prompts": prompts,
                        "shift": shift,
                        "log-odds at equal length": quality,
                        "log-odds of length": by_length,
                        "contained": float(np.mean([one.ci_low <= truth <= one.ci_high for one in found])),
                        "mean rate less the true one": float(np.mean(rates)) - truth if rates else None,
                        "extrapolated": float(np.mean([one.extrapolated for one in found])),
                    }
                )
                print(f"  {cells[-1]}", flush=True)
    return cells


def methods(comparisons: int) -> list[dict[str, Any]]:
    cells = []
    for of_seeds in (0.0, 0.3, 1.0):
        rng = np.random.default_rng(1)
        truth = float(sigmoid(rng.normal(size=(2000, 1)) + of_seeds * rng.normal(size=2000)).mean())
        both, alone = [], []
        for _ in range(comparisons):
            logits_SP = rng.normal(size=200) + of_seeds * rng.normal(size=(3, 1))
            outcomes_SP = (rng.random((3, 200)) < sigmoid(logits_SP)).astype(float)
            wide = win_rate_over_seeds(outcomes_SP.tolist())
            narrow = win_rate(outcomes_SP.ravel(), [*range(200)] * 3)
            both.append(wide.ci_low <= truth <= wide.ci_high)
            alone.append(narrow.ci_low <= truth <= narrow.ci_high)
        cells.append(
            {
                "deviation of seeds": of_seeds,
                "contained": float(np.mean(both)),
                "by the interval over prompts alone": float(np.mean(alone)),
            }
        )
    return cells


def unequal(evaluations: int) -> list[dict[str, Any]]:
    cells = []
    for layout, sizes_of in LAYOUTS.items():
        for prompts in (5, 10, 20, 60):
            settings = [
                _contained(sizes_of, prompts, rate, ties, correlation, evaluations)
                for rate in (0.5, 0.8)
                for ties in (0.0, 0.4)
                for correlation in (0.0, 0.5, 1.0)
            ]
            (least, plain_least), (mean, plain_mean) = np.min(settings, axis=0), np.mean(settings, axis=0)
            cells.append(
                {
                    "comparisons of a prompt": layout,
                    "prompts": prompts,
                    "least": float(least),
                    "mean": float(mean),
                    "least of the plain variance": float(plain_least),
                    "mean of the plain variance": float(plain_mean),
                }
            )
            print(f"  {cells[-1]}", flush=True)
    return cells


def _contained(
    sizes_of: Callable[[np.random.Generator, int], Any],
    prompts: int,
    rate: float,
    ties: float,
    correlation: float,
    evaluations: int,
) -> tuple[float, float]:
    """Shares of evaluations whose interval contains the rate: `win_rate`'s, and that of the plain variance.

    Args:
        ties: share of comparisons that are ties, as far as the rate allows it.
        correlation: chance that a comparison has the outcome of its prompt.
    """
    rng, found, plain = np.random.default_rng(23), [], []
    ties = min(ties, 2 * min(rate, 1 - rate))
    chances = [1 - rate - ties / 2, ties, rate - ties / 2]
    for _ in range(evaluations):
        prompt_N = np.repeat(np.arange(prompts), sizes_of(rng, prompts))
        of_prompt_P = rng.choice([0.0, 0.5, 1.0], prompts, p=chances)
        own_N = rng.choice([0.0, 0.5, 1.0], prompt_N.size, p=chances)
        outcomes_N = np.where(rng.random(prompt_N.size) < correlation, of_prompt_P[prompt_N], own_N)
        interval = win_rate(outcomes_N, prompt_N.tolist())
        found.append(interval.ci_low <= rate <= interval.ci_high)
        plain.append(abs(outcomes_N.mean() - rate) <= _plain_half_width(outcomes_N, prompt_N))
    return float(np.mean(found)), float(np.mean(plain))


def _plain_half_width(outcomes_N: Floats, prompt_N: Any) -> float:
    """Of a 95% interval from the cluster-robust variance of the mean, with one degree of freedom less than prompts."""
    residuals_P = np.bincount(prompt_N, outcomes_N - outcomes_N.mean())
    prompts = residuals_P.size
    variance = prompts / (prompts - 1) * float(residuals_P @ residuals_P) / outcomes_N.size**2
    return float(stats.t.ppf(0.975, prompts - 1)) * variance**0.5


PARTS: dict[str, Callable[[Callable[[int], int]], Any]] = {
    "anytime": lambda times: anytime(times(4000), times(400), times(200)),
    "methods": lambda times: methods(times(400)),
    "unequal": lambda times: unequal(times(400)),
    "equal-length": lambda times: equal_length(times(400)),
}
"""Name -> the simulation; it is given the function that scales a number of repetitions."""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS], help="parts to simulate (all)")
    parser.add_argument("--repetitions", type=float, default=1.0, help="share of the usual number (1.0)")
    asked = parser.parse_args(words)
    began = time.perf_counter()
    found = {part: PARTS[part](lambda usual: max(2, round(usual * asked.repetitions))) for part in asked.only}
    command = "python benchmarks/interval_coverage.py"
    if asked.only != [*PARTS]:
        command += f" --only {' '.join(asked.only)}"
    if asked.repetitions != 1:
        command += f" --repetitions {asked.repetitions:g}"
    result = {**provenance(command), "seconds": round(time.perf_counter() - began, 1), **rounded(found)}
    write_result(result, asked.output, "interval_coverage")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
