"""When to look, from measured costs: all the guard does takes at most its share of the run's time. Pure arithmetic.

Glances at the training figures cost nothing and are not scheduled. Looks (answers, held-out pairs) are: the first one
comes early, since most of what goes wrong goes wrong early, the rest ever further apart, and one that something in the
glances asks for comes at once if it can be paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MOST_LOOKS = 40
"""Most evaluation passes of a run, however cheap they are."""

LOOKS_WANTED = 4
"""Evaluation passes that the budget must allow; answers are shortened until it does."""


@dataclass
class Schedule:
    """Counts seconds and says at which steps to look.

    Args:
        budget: share of the run's time, 0..1; 0 forbids everything that costs.
        steps: of the whole run.
        first_step: the step that this process began at; time is counted from there.
        look_seconds: what a look is expected to take; corrected by what looks took.
    """

    budget: float
    steps: int
    first_step: int = 0
    look_seconds: float = 0.0
    spent: float = 0.0
    """Seconds that the guard took, what it did before the first step included."""
    looks: int = 0
    _last: int | None = None

    def spend(self, seconds: float) -> None:
        """Count time that went into anything but looking, such as the reference's answers."""
        self.spent += seconds

    def looked(self, step: int, seconds: float) -> None:
        """Count a look. The next is expected to cost what this one did, or the mean if that is more."""
        self.spent += seconds
        self.looks += 1
        mean = seconds if self.looks == 1 else (self.look_seconds * (self.looks - 1) + seconds) / self.looks
        self.look_seconds = max(seconds, mean)
        self._last = step

    def allowance(self, step: int, training_seconds: float) -> float:
        """Seconds that the guard may take in the whole run, as far as the steps so far tell how long it will be.

        Args:
            training_seconds: what the steps took without the guard.
        """
        done = step - self.first_step
        if done < 1:
            return 0.0
        training = training_seconds / done * (self.steps - self.first_step)
        return allowed_seconds(training, self.budget)

    def affordable(self, step: int, training_seconds: float) -> int:
        """Looks that can still be paid."""
        left = self.allowance(step, training_seconds) - self.spent
        if self.look_seconds <= 0:
            return MOST_LOOKS if left > 0 else 0
        return max(0, int(left / self.look_seconds))

    def due(self, step: int, training_seconds: float, *, smells: bool = False) -> bool:
        """Whether to look after this step.

        Args:
            smells: something in the glances is not as it should be. A look then need not wait, except that one has
                been taken at the same sight within the last `MOST_LOOKS`th of the run.
        """
        if self._last == step:
            return False
        number = self.affordable(step, training_seconds)
        if number < 1:
            return False
        since = step - (self.first_step if self._last is None else self._last)
        apart = max(1, (self.steps - self.first_step) // MOST_LOOKS)
        if smells and since >= apart:
            return True
        return since >= max(apart, self._wait(number))

    def _wait(self, number: int) -> float:
        """Steps between the last look and the next, when this many can be paid: at first a small part of the rest."""
        begin = self.first_step if self._last is None else self._last
        return (self.steps - begin) / (2 * min(number, MOST_LOOKS) + 1)


LEAST_SECONDS = 5.0
"""With less than this in all, not even the smallest answers are tried: to learn their cost would take as much."""


def allowed_seconds(run_seconds: float, budget: float) -> float:
    """What the guard may take in addition to a run of this many seconds, so that it is the budget's share of both."""
    return budget / (1 - budget) * run_seconds


class Size(NamedTuple):
    """How much a look looks at."""

    prompts: int
    tokens: int
    """Longest answer."""
    distance_tokens: int
    """Longest answer that the distance to the reference is measured on; 0: it is not measured."""
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
"""From what a long run pays to what one of two minutes on a CPU does."""

_READING = 8
"""Reading the prompts takes about as long as this many tokens of the answers."""


class Costs(NamedTuple):
    """Measured on the smallest size, in seconds."""

    answers: float
    """Its answers."""
    per_token: float
    """Scoring one token."""
    tokens_per_pair: float
    tokens_per_prompt: float
    spent: float
    """So far."""

    def of_answers(self, size: Size) -> float:
        """Answers cost by their number and length, as if none ended before its time."""
        least = SIZES[-1]
        return self.answers * size.prompts / least.prompts * (size.tokens + _READING) / (least.tokens + _READING)

    def of_look(self, size: Size) -> float:
        scored = size.pairs * self.tokens_per_pair
        if size.distance_tokens:
            scored += size.prompts * (self.tokens_per_prompt + size.distance_tokens)
        return self.of_answers(size) + scored * self.per_token

    def before(self, size: Size) -> float:
        """What is still to be done before the first step."""
        if size == SIZES[-1]:
            return 0.0
        return self.of_look(size) + self.of_answers(size._replace(tokens=size.distance_tokens))


def size_for(run_seconds: float, budget: float, costs: Costs, *, prompts: int | None = None) -> Size | None:
    """The largest size of which the reference's part and `LOOKS_WANTED` looks fit into the budget; if none does, the
    smallest, if at least one look of it fits; None if that does not fit either.

    Args:
        run_seconds: estimate of the run without the guard.
        prompts: how many there must be, if that is settled.
    """
    allowed = allowed_seconds(run_seconds, budget) - costs.spent
    for looks in (LOOKS_WANTED, 1):
        for size in SIZES if looks > 1 else SIZES[-1:]:
            asked = size if prompts is None else size._replace(prompts=prompts)
            if costs.before(asked) + looks * costs.of_look(asked) <= allowed:
                return asked
    return None
