"""The measurements of the guard: glances (means of training metrics), looks (evaluation passes), and a run's history.

Distances are in nats of log-probability, policy minus reference, of a whole completion or per token. The reward in the
metrics is beta times the distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from preftune.training.guard.alarms import Alarm

PREFIX = "guard/"
TRAINING = "guard/train_"
"""Prefix of the fields of `Glance` in metrics.jsonl."""

ALIKE_IN_LENGTH = 0.1
"""Sides whose lengths differ by at most this share of the longer one count as equally long."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The settings of a run that the rules use."""

    beta: float
    learning_rate: float
    full: bool
    """Whether all weights train, as opposed to an adapter."""
    steps: int
    loss: str = "sigmoid"
    epochs: float = 1.0
    held_out: bool = True
    """Whether the looks score pairs that are not trained on."""
    reference: bool = True
    """Whether the loss has a fixed reference, so that rewards are distances from the start of the run."""
    usual_beta: bool = True
    """Whether beta has DPO's scale, on which 0.1 is usual and 0.5 is high."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def hold_back(self) -> str:
        """The changes of the settings with which the policy moves less, as a sentence."""
        steps = ["Halve the learning rate first"]
        if self.beta < 0.5 and self.usual_beta:
            steps.append(f"then raise beta to {'0.2 to 0.5' if self.beta < 0.2 else '0.5'}")
        if self.epochs > 1:
            steps.append("train for one epoch, which is usually enough")
        return "; ".join(steps) + "."

    @property
    def too_free(self) -> str:
        """The settings with which the policy moves too far, as a clause."""
        rate = f"the learning rate ({self.learning_rate:g}) is too high"
        return rate if self.beta >= 0.5 or not self.usual_beta else f"{rate}, or beta ({self.beta:g}) too low"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Facts:
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


class Glance(NamedTuple):
    """Means over the pairs of some training steps. Each pair was scored before its step changed the weights, so a pair
    that was not trained on before serves as a held-out pair.
    """

    step: int
    """The last of these steps."""
    steps: float
    pairs: float
    loss: float
    loss_change: float
    """Root mean square of the change of the loss from one step to the next."""
    margin: float
    """Policy minus reference, chosen minus rejected, in nats."""
    margin_rms: float
    """Root mean square of the margins, in nats, which measures their size without their sign."""
    accuracy: float
    """Share of pairs with a margin above 0."""
    chosen: float
    """Policy minus reference, in nats per completion."""
    rejected: float
    chosen_tokens: float
    """Tokens per completion."""
    rejected_tokens: float
    copies: float
    """Share of pairs that were trained on before in the same pass over the data: exact copies."""
    known: float
    """Share of pairs that were trained on before, in this pass or an earlier one."""
    margin_known: float
    """Mean margin of those pairs, in nats; 0 without such pairs."""
    longer: float
    """Share of pairs whose chosen side is longer, by more than `ALIKE_IN_LENGTH`."""
    shorter: float
    contained: float
    """Mean share of the shorter side's tokens that are in the longer side too. Near 1, only the length differs."""
    accuracy_alike: float
    """Accuracy on pairs whose sides count as equally long; 0 without such pairs."""

    @property
    def alike(self) -> float:
        """Share of pairs whose sides count as equally long."""
        return max(0.0, 1.0 - self.longer - self.shorter)

    @property
    def chosen_per_token(self) -> float:
        """Policy minus reference of the chosen answers, in nats per token; below 0 if the policy makes them less
        probable than the reference.
        """
        return self.chosen / max(1.0, self.chosen_tokens)

    @property
    def rejected_per_token(self) -> float:
        return self.rejected / max(1.0, self.rejected_tokens)

    @property
    def margin_error(self) -> float:
        """Standard error of the mean margin, in nats."""
        variance = max(0.0, self.margin_rms**2 - self.margin**2)
        return math.sqrt(variance / max(1.0, self.pairs - 1))

    def to_metrics(self) -> dict[str, float]:
        """The fields for a line of metrics.jsonl."""
        values = self._asdict()
        del values["step"]
        return {TRAINING + name: float(f"{value:.6g}") for name, value in values.items()}


_SQUARED = ("margin_rms", "loss_change")
_OF_STEPS = ("loss", "loss_change")


def pooled(glances: Sequence[Glance]) -> Glance | None:
    """Several glances as one; None if they hold no pair."""
    pairs = sum(glance.pairs for glance in glances)
    if not pairs:
        return None
    steps = sum(glance.steps for glance in glances)

    def mean(name: str) -> float:
        if name == "margin_known":
            return _weighted([(g.margin_known, g.pairs * g.known) for g in glances])
        if name == "accuracy_alike":
            return _weighted([(g.accuracy_alike, g.pairs * g.alike) for g in glances])
        weights = [g.steps if name in _OF_STEPS else g.pairs for g in glances]
        power = 2 if name in _SQUARED else 1
        values = [getattr(g, name) ** power for g in glances]
        return float(_weighted(list(zip(values, weights, strict=True))) ** (1 / power))

    means = {name: mean(name) for name in Glance._fields[3:]}
    return Glance(step=glances[-1].step, steps=steps, pairs=pairs, **means)


def _weighted(values: Sequence[tuple[float, float]]) -> float:
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else 0.0


class Look(NamedTuple):
    """The results of a look: figures of the policy's and the reference's answers, and of scored pairs. None was not
    measured.
    """

    step: int
    answers: int
    repeated: float | None = None
    """Mean share of an answer's words inside n-grams that occurred earlier in it, 0 to 1."""
    repeated_reference: float | None = None
    looping: float | None = None
    """Share of answers that count as repetitive."""
    looping_reference: float | None = None
    distinct_2: float | None = None
    distinct_2_reference: float | None = None
    tokens: float | None = None
    """Mean tokens of the policy's answers."""
    tokens_reference: float | None = None
    length_ratio: float | None = None
    """Tokens of the policy's answers over those of the reference's."""
    finished: float | None = None
    """Share of answers that ended before the limit of tokens."""
    finished_reference: float | None = None
    self_similarity: float | None = None
    self_similarity_reference: float | None = None
    empty: float | None = None
    empty_reference: float | None = None
    refusals: float | None = None
    refusals_reference: float | None = None
    kl_per_token: float | None = None
    """KL(reference || policy) in nats per token, estimated on answers sampled from the reference at temperature 1."""
    kl_error: float | None = None
    """Standard error of `kl_per_token` over the answers."""
    pairs: int = 0
    """Pairs that were scored."""
    margin_held_out: float | None = None
    """Mean reward margin of held-out pairs, in nats times beta."""
    margin_error: float | None = None
    accuracy_held_out: float | None = None
    accuracy_alike: float | None = None
    """Accuracy on held-out pairs whose sides count as equally long."""
    alike: int = 0
    """Number of these pairs."""
    seconds: float = 0.0
    share_of_time: float | None = None
    """The guard's share of the time since the run began."""

    def to_metrics(self) -> dict[str, float]:
        values = {name: value for name, value in self._asdict().items() if value is not None and name != "step"}
        return {PREFIX + name: float(f"{value:.6g}") for name, value in values.items()}


class Verdicts(NamedTuple):
    """The win rate of the policy's answers in an evaluation with `eval_judge`, 0 to 1."""

    step: int
    prefix: str
    """Prefix of the metrics, which names the held-out set."""
    rate: float
    low: float
    """Lower end of the 95% interval."""
    high: float

    @classmethod
    def of(cls, step: int, metrics: Mapping[str, Any]) -> list[Verdicts]:
        """The win rates among the metrics of an evaluation, one for each held-out set."""
        found = []
        for name in metrics:
            if name.endswith("_win_rate"):
                values = [metrics.get(f"{name}{end}") for end in ("", "_low", "_high")]
                numbers = [float(value) for value in values if isinstance(value, int | float)]
                if len(numbers) == len(values):
                    found.append(cls(step, name.removesuffix("win_rate"), *numbers))
        return found


@dataclass
class History:
    """The facts and measurements of a run, which the rules read."""

    facts: Facts
    glances: list[Glance] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    verdicts: list[Verdicts] = field(default_factory=list)

    @property
    def step(self) -> int:
        return max([g.step for g in self.glances[-1:]] + [look.step for look in self.looks[-1:]] + [0])

    @property
    def look(self) -> Look | None:
        """The last look."""
        return self.looks[-1] if self.looks else None

    def alarm(self, name: str, **said: Any) -> Alarm:
        """An alarm of the present step; `said` are the other fields of `Alarm`."""
        return Alarm(step=self.step, name=name, **said)

    def last_pairs(self, pairs: float, *, until: int | None = None) -> Glance | None:
        """The last glances with at least this many pairs, pooled; None if there are fewer pairs.

        Args:
            until: the last step to use; None for no limit.
        """
        return self._last(pairs, lambda glance: glance.pairs, until)

    def last_steps(self, steps: float) -> Glance | None:
        """The last glances with at least this many steps, pooled; None if there are fewer steps."""
        return self._last(steps, lambda glance: glance.steps)

    def _last(self, amount: float, of: Callable[[Glance], float], until: int | None = None) -> Glance | None:
        chosen: list[Glance] = []
        for glance in reversed(self.glances):
            if until is None or glance.step <= until:
                chosen.insert(0, glance)
                if sum(map(of, chosen)) >= amount:
                    return pooled(chosen)
        return None


def history_of(facts: Facts, lines: Iterable[Mapping[str, Any]]) -> History:
    """The history in the lines of metrics.jsonl. Lines that the guard did not write are skipped."""
    history = History(facts)
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int):
            continue
        of_glance = {name: line.get(TRAINING + name) for name in Glance._fields[1:]}
        if all(isinstance(value, int | float) for value in of_glance.values()):
            history.glances.append(Glance(step=step, **of_glance))  # type: ignore[arg-type]
        if isinstance(line.get(PREFIX + "seconds"), int | float):
            history.looks.append(_look(step, line))
        history.verdicts += Verdicts.of(step, line)
    return history


def _look(step: int, line: Mapping[str, Any]) -> Look:
    whole = {"answers", "pairs", "alike"}
    values: dict[str, Any] = {}
    for name in Look._fields[1:]:
        value = line.get(PREFIX + name)
        if isinstance(value, int | float):
            values[name] = int(value) if name in whole else float(value)
    values.setdefault("answers", 0)
    return Look(step=step, **values)
