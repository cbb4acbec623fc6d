"""The steps of the guard's looks, from measured costs, so that the guard takes at most its share of the run's time.

Glances at the training metrics take no time and are not scheduled. Looks (answers, held-out pairs) are scheduled: the
first one is early, because most problems arise early, and the intervals grow. Suspicious training metrics cause a look
at once if the budget allows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MOST_LOOKS = 40
"""Most evaluation passes of a run, even if the budget allows more."""

LOOKS_WANTED = 4
"""Evaluation passes that the budget must allow; the size of a look is reduced until it does."""


@dataclass
class Schedule:
    """Counts the guard's seconds, and decides at which steps to look.

    Args:
        budget: share of the run's time, 0 to 0.5; 0 allows no look.
        steps: steps of the whole run.
        first_step: the step at which this process started; time is counted from there.
        look_seconds: expected seconds of a look, corrected by those of each look.
    """

    budget: float
    steps: int
    first_step: int = 0
    look_seconds: float = 0.0
    spent: float = 0.0
    """Seconds that the guard has taken, with those before the first step."""
    looks: int = 0
    _last: int | None = None

    def spend(self, seconds: float) -> None:
        """Count seconds of other work than a look, such as the reference's answers."""
        self.spent += seconds

    def looked(self, step: int, seconds: float) -> None:
        """Count a look. The next one is expected to take as long as this one, or the running mean if that is more."""
        self.spent += seconds
        self.looks += 1
        mean = seconds if self.looks == 1 else (self.look_seconds * (self.looks - 1) + seconds) / self.looks
        self.look_seconds = max(seconds, mean)
        self._last = step

    def allowance(self, step: int, training_seconds: float) -> float:
        """Seconds that the guard may take in the whole run, whose length is estimated from the steps so far.

        Args:
            step: the present step.
            training_seconds: seconds of the steps so far, without the guard.
        """
        done = step - self.first_step
        if done < 1:
            return 0.0
        training = training_seconds / done * (self.steps - self.first_step)
        return allowed_seconds(training, self.budget)

    def affordable(self, step: int, training_seconds: float) -> int:
        """Number of looks for which the budget has time left."""
        left = self.allowance(step, training_seconds) - self.spent
        if self.look_seconds <= 0:
            return MOST_LOOKS if left > 0 else 0
        return max(0, int(left / self.look_seconds))

    def due(self, step: int, training_seconds: float, *, suspicious: bool = False) -> bool:
        """Whether to look after this step.

        Args:
            step: the present step.
            training_seconds: seconds of the steps so far, without the guard.
            suspicious: whether the training metrics are suspicious. A look is then due once a `MOST_LOOKS`th of the run
                has passed since the last one.
        """
        if self._last == step:
            return False
        number = self.affordable(step, training_seconds)
        if number < 1:
            return False
        since = step - (self.first_step if self._last is None else self._last)
        apart = max(1, (self.steps - self.first_step) // MOST_LOOKS)
        if suspicious and since >= apart:
            return True
        return since >= max(apart, self._wait(number))

    def _wait(self, number: int) -> float:
        """Steps from the last look to the next if the budget allows `number` more: a part of the remaining steps."""
        begin = self.first_step if self._last is None else self._last
        return (self.steps - begin) / (2 * min(number, MOST_LOOKS) + 1)


LEAST_SECONDS = 5.0
"""Least seconds of the guard for which the smallest size is tried: measuring its cost would take about as much."""


def allowed_seconds(run_seconds: float, budget: float) -> float:
    """Seconds of the guard, in addition to the run's, that are the share `budget` of both together."""
    return budget / (1 - budget) * run_seconds


class Size(NamedTuple):
    """The size of a look."""

    prompts: int
    tokens: int
    """Most tokens of an answer."""
    distance_tokens: int
    """Most tokens of an answer on which the distance to the reference is measured; 0 to not measure it."""
    pairs: int
    """Held-out pairs that are scored."""


SIZES = (
    Size(8, 128, 64, 64),
    Size(8, 96, 64, 48),
    Size(8, 64, 48, 32),
    Size(8, 48, 32, 24),
    Size(8, 32, 24, 16),
    Size(6, 24, 16, 8),
    Size(4, 16, 0, 4),
)
"""From the size for a long run to that for a run of two minutes on a CPU."""

_READING = 8
"""Processing the prompts takes about as long as this many tokens of the answers."""


class Costs(NamedTuple):
    """Costs in seconds, measured on the smallest size."""

    answers: float
    """Seconds of the answers of the smallest size."""
    per_token: float
    """Seconds of scoring one token."""
    tokens_per_pair: float
    tokens_per_prompt: float
    spent: float
    """Seconds that the guard has taken so far."""

    def of_answers(self, size: Size) -> float:
        """Seconds of the answers of a size, in proportion to their number and greatest length."""
        least = SIZES[-1]
        return self.answers * size.prompts / least.prompts * (size.tokens + _READING) / (least.tokens + _READING)

    def of_look(self, size: Size) -> float:
        scored = size.pairs * self.tokens_per_pair
        if size.distance_tokens:
            scored += size.prompts * (self.tokens_per_prompt + size.distance_tokens)
        return self.of_answers(size) + scored * self.per_token

    def before(self, size: Size) -> float:
        """Seconds of the remaining work before the first step; 0 for the smallest size, whose answers exist."""
        if size == SIZES[-1]:
            return 0.0
        return self.of_look(size) + self.of_answers(size._replace(tokens=size.distance_tokens))


def size_for(run_seconds: float, budget: float, costs: Costs, *, prompts: int | None = None) -> Size | None:
    """The largest size whose reference answers and `LOOKS_WANTED` looks fit into the budget; otherwise the smallest
    size, if one look of it fits; otherwise None.

    Args:
        run_seconds: estimated seconds of the run without the guard.
        budget: the guard's share of the run's time.
        costs: measured on the smallest size.
        prompts: number of prompts, if it is given; None for that of each size.
    """
    allowed = allowed_seconds(run_seconds, budget) - costs.spent
    for looks in (LOOKS_WANTED, 1):
        for size in SIZES if looks > 1 else SIZES[-1:]:
            asked = size if prompts is None else size._replace(prompts=prompts)
            if costs.before(asked) + looks * costs.of_look(asked) <= allowed:
                return asked
    return None
