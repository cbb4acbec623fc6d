"""Where a policy stands: gold reward, KL to the reference, VADER, length and repetition, on fresh samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gold import Floats, GoldReward, Vader
from preferences import texts_of
from sampling import completion_logps, sample

from preftune.statistics.intervals import mean_interval
from preftune.text_quality.repetition import repeated, split_words

_SHOWN = 3
"""Texts kept with each measurement."""
_NGRAM = 2
"""Sentences are short: a pair of words that returns counts as repeated."""


class Ruler:
    """Measures policies on the same test prompts against the same reference.

    Args:
        reference: the language model before training; not changed.
        prompts: token ids of the test prompts.
        samples: completions of each prompt at every measurement.
    """

    def __init__(
        self, reference: Any, tokenizer: Any, gold: GoldReward, vader: Vader, prompts: Sequence[Sequence[int]], *,
        samples: int, new_tokens: int,
    ) -> None:  # fmt: skip
        self.reference, self.tokenizer, self.gold, self.vader = reference, tokenizer, gold, vader
        self.new_tokens = new_tokens
        self._prompts = [prompt for prompt in prompts for _ in range(samples)]
        self._clusters = [index for index in range(len(prompts)) for _ in range(samples)]
        self._distinct = list(prompts)

    def measure(self, policy: Any, *, seed: int) -> dict[str, Any]:
        """One point: means with standard errors clustered by prompt.

        `kl` is the mean over samples of log policy minus log reference of the whole completion, in nats: an unbiased
        estimate of the sequence-level KL divergence. `reward` is in nats of log-odds, `vader` from -1 to 1, `tokens`
        the length of a completion, `finished` the share that ended by itself, `repeated` the share of words in pairs of
        words that stood in the text before.
        """
        completions = sample(policy, self._prompts, new_tokens=self.new_tokens, seed=seed)
        texts = texts_of(self.tokenizer, self._prompts, completions)
        ratio = completion_logps(policy, self._prompts, completions) - completion_logps(
            self.reference, self._prompts, completions
        )
        end = self.tokenizer.eos_token_id
        figures: dict[str, Floats] = {
            "reward": self.gold(texts),
            "kl": ratio,
            "vader": self.vader(texts),
            "tokens": np.array([len(completion) for completion in completions], np.float64),
            "finished": np.array([completion[-1] == end for completion in completions], np.float64),
            "repeated": np.array([repeated(split_words(text), n=_NGRAM) for text in texts]),
        }
        point: dict[str, Any] = {}
        for name, values in figures.items():
            interval = mean_interval(values, self._clusters)
            point[name], point[f"{name}_error"] = round(interval.mean, 5), round(interval.standard_error, 5)
        step = max(1, len(texts) // _SHOWN)
        return {**point, "texts": texts[::step][:_SHOWN]}

    def baseline(self, best_of: Sequence[int], *, seed: int) -> dict[str, Any]:
        """The reference itself, and the best of n of its samples by gold reward.

        The KL of best-of-n is its known bound, log n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879).
        """
        width = max(best_of)
        prompts = [prompt for prompt in self._distinct for _ in range(width)]
        texts = texts_of(
            self.tokenizer, prompts, sample(self.reference, prompts, new_tokens=self.new_tokens, seed=seed)
        )
        reward, vader = self.gold(texts).reshape(-1, width), self.vader(texts).reshape(-1, width)
        result: dict[str, Any] = {
            "samples": reward.size,
            "reward": round(float(reward.mean()), 5),
            "reward_deviation": round(float(reward.std()), 5),
            "vader": round(float(vader.mean()), 5),
            "vader_deviation": round(float(vader.std()), 5),
            "best_of": [],
        }
        for n in best_of:
            sets = reward[:, : width - width % n].reshape(-1, n)  # sets of n samples of one prompt
            of_vader = vader[:, : width - width % n].reshape(-1, n)
            best = sets.argmax(axis=1)[:, None]
            result["best_of"].append(
                {
                    "n": n,
                    "kl": round(math.log(n) - (n - 1) / n, 5),
                    "reward": round(float(np.take_along_axis(sets, best, 1).mean()), 5),
                    "vader": round(float(np.take_along_axis(of_vader, best, 1).mean()), 5),
                }
            )
        return result
