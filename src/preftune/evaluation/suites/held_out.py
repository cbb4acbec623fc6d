"""Held-out preference pairs: how strongly and how often the trained model prefers the chosen answer, and its
calibration.

The margin of a pair is the aligned model's log-ratio of chosen to rejected minus the baseline's, in nats (Rafailov et
al. 2023, arXiv:2305.18290). Accuracy is the share of pairs with a margin above 0; an unchanged model has margin 0
everywhere, which counts half. With beta, sigmoid(beta * margin) is the probability that the model gives to the label,
and its calibration is measured: the Brier score, and the expected calibration error over bins of confidence (Naeini et
al. 2015; Guo et al. 2017, arXiv:1706.04599). Several files, named `in=a.jsonl out=b.jsonl`, tell whether what was
learnt holds outside of its domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.amounts import counted
from preftune.data.formats.apply import said_of
from preftune.data.pairs.open import read_pairs
from preftune.errors import DatasetError, RequestError
from preftune.evaluation.suites.asking import need_models
from preftune.evaluation.suites.result import Part, SuiteResult
from preftune.evaluation.two_models.advice import seen_sentence
from preftune.evaluation.two_models.pair_logps import Floats, Scores, above_zero, score_both
from preftune.progress import Counting
from preftune.statistics.calibration import calibration as confidence_and_accuracy
from preftune.statistics.intervals import MeanInterval, mean_interval, win_rate
from preftune.statistics.paired import Comparison, compare_means, compare_shares, compare_win_rate
from preftune.storage.jsonl import digest, write_lines
from preftune.storage.run_directory import run_facts
from preftune.types import PreferencePair

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import Contest

SUITE = "held-out"
_LOGISTIC = ("sigmoid", "robust")
"""Losses that are the log-loss of the probability sigmoid(beta * margin)."""


def run(
    contest: Contest,
    *,
    data: str | Path | Sequence[str] | None,
    limit: int | None,
    folder: Path,
    beta: float | None = None,
) -> SuiteResult:
    """Margins, accuracies and calibration on every file of pairs."""
    if beta is not None and not beta > 0:
        raise RequestError(
            f"--beta {beta:g}: beta must be above 0. Give the beta of the training run, or leave it out."
        )
    if limit is not None and limit < 1:
        raise RequestError(f"--limit {limit}: a suite needs at least one pair. Give 1 or more, or leave it out.")
    files = named_files(data)
    facts = run_facts(contest.aligned) or run_facts(Path(contest.aligned).parent)
    other_loss = _other_loss(facts)
    if other_loss is not None:
        beta = None
    elif beta is None:
        beta = _beta_of(_configuration(facts))
    domains: dict[str, Domain] = {}
    taken = of = 0
    models, memory, left = need_models(contest, SUITE), [], []
    for name, path in files.items():
        opened = read_pairs(path)
        left += [f"{name}: {line}" for line in said_of(opened.left)]
        some = (
            range(len(opened)) if limit is None else [i * len(opened) // limit for i in range(min(limit, len(opened)))]
        )
        pairs = list(opened.select(list(some)))
        taken, of = taken + len(pairs), of + len(opened)
        with Counting(f"{SUITE}: scoring", unit="pairs") as progress:
            base, aligned = score_both(
                models, pairs, settings=contest.settings, path=folder / "scores.jsonl", progress=progress
            )
        domains[name] = Domain.of(name, pairs, base, aligned)
        memory.append(seen_sentence(contest.seen([pair.prompt for pair in pairs]), len(pairs), f"pairs of {name}"))
    write_lines(folder / "pairs.jsonl", (record for domain in domains.values() for record in domain.records()))
    return SuiteResult(
        SUITE,
        comparisons=[one for domain in domains.values() for one in domain.comparisons(contest.confidence, beta)],
        notes=[*left, *filter(None, memory), *_notes(domains, beta, other_loss, contest.confidence)],
        part=Part(taken, of) if taken < of else None,
        details={
            "domains": {name: domain.to_dict(contest.confidence, beta) for name, domain in domains.items()},
            "beta": beta,
        },
    )


def named_files(data: str | Path | Sequence[str] | None) -> dict[str, str]:
    """The files by name: `["in=a.jsonl", "out=b.jsonl"]`, the same in one text with commas, or one path.

    Raises: RequestError for none, or a name twice.
    """
    if data is None:
        raise RequestError(
            "The suite held-out has no data of its own. Give preference pairs with --suite_data PATH, or several as "
            "--suite_data in=PATH out=PATH."
        )
    parts = [str(data)] if isinstance(data, str | Path) else [str(part) for part in data]
    parts = [part.strip() for text in parts for part in (text.split(",") if "=" in text else [text]) if part.strip()]
    files: dict[str, str] = {}
    for part in parts:
        name, equals, path = part.partition("=")
        if not equals:
            name, path = (Path(part).stem if len(parts) > 1 else "held-out"), part
        if name in files:
            raise RequestError(f"--suite_data names {name!r} twice. Give every file of pairs its own name.")
        files[name] = path
    return files


@dataclass(frozen=True, slots=True)
class Domain:
    """The scored pairs of one file."""

    name: str
    ids: Sequence[str]
    clusters: Sequence[str]
    """The prompt of each pair: several pairs of one prompt are no new evidence about others."""
    base: Scores
    aligned: Scores
    left_out: int

    @classmethod
    def of(cls, name: str, pairs: Sequence[PreferencePair], base: Scores, aligned: Scores) -> Domain:
        """Only pairs that both models can score. Raises: DatasetError without such pairs."""
        known = np.flatnonzero(base.known_N & aligned.known_N)
        if not len(known):
            raise DatasetError(
                f"None of the pairs of {name} can be scored: they are empty, or longer than the model's positions. "
                "Give other pairs with --suite_data."
            )
        kept = [pairs[int(i)] for i in known]
        return cls(
            name=name,
            ids=[str(pair.row) if pair.id is None else pair.id for pair in kept],
            clusters=[digest(pair.prompt) for pair in kept],
            base=base.at(known),
            aligned=aligned.at(known),
            left_out=len(pairs) - len(known),
        )

    @property
    def margin_N(self) -> Floats:
        """Nats, aligned minus baseline."""
        return (self.aligned.chosen_N - self.base.chosen_N) - (self.aligned.rejected_N - self.base.rejected_N)

    def chosen_change(self, confidence: float) -> MeanInterval:
        """How much likelier the chosen answers became, nats per token."""
        change_N = self.aligned.chosen_N / self.aligned.chosen_tokens_N - self.base.chosen_N / self.base.chosen_tokens_N
        return mean_interval(change_N, self.clusters, confidence=confidence)

    def comparisons(self, confidence: float, beta: float | None) -> list[Comparison]:
        """Accuracy of the margin against chance, each model's own preference, and with beta the Brier score."""
        zeros = np.zeros(len(self.ids))
        options: dict[str, Any] = {"clusters": self.clusters, "confidence": confidence}
        rate, more = win_rate(above_zero(self.margin_N), **options), {"better": "higher", **options}
        found = [
            compare_win_rate(f"accuracy of the margin, {self.name}", rate),
            compare_means(f"margin in nats, {self.name}", zeros, self.margin_N, unit="nats", **more),
        ]
        for words, per_token in (("own preference", False), ("own preference per token", True)):
            base, aligned = (scores.prefers(per_token=per_token) for scores in (self.base, self.aligned))
            found.append(compare_shares(f"{words}, {self.name}", base, aligned, **more))
        if beta is not None:
            squared, less = (1 - _sigmoid(beta * self.margin_N)) ** 2, {**options, "better": "lower"}
            words = f"Brier score, {self.name}"
            found.append(compare_means(words, zeros + 0.25, squared, unit="squared error", **less))
        return found

    def to_dict(self, confidence: float, beta: float | None) -> dict[str, Any]:
        margin = mean_interval(self.margin_N, self.clusters, confidence=confidence)
        return {
            "pairs": len(self.ids),
            "prompts": len(set(self.clusters)),
            "left_out": self.left_out,
            "margin": _interval(margin),
            "chosen_per_token": _interval(self.chosen_change(confidence)),
            "calibration": None if beta is None else calibration(beta * self.margin_N),
        }

    def records(self) -> list[dict[str, Any]]:
        return [
            {
                "id": self.ids[i],
                "domain": self.name,
                "margin": float(self.margin_N[i]),
                "base": {"chosen": float(self.base.chosen_N[i]), "rejected": float(self.base.rejected_N[i])},
                "aligned": {"chosen": float(self.aligned.chosen_N[i]), "rejected": float(self.aligned.rejected_N[i])},
                "tokens": {
                    "chosen": int(self.aligned.chosen_tokens_N[i]),
                    "rejected": int(self.aligned.rejected_tokens_N[i]),
                },
            }
            for i in range(len(self.ids))
        ]


def calibration(logit_N: Floats) -> dict[str, Any]:
    """How the probability given to the label compares with how often the label is right.

    Which side is called chosen is no information, so a pair with probability p counts as a statement made with
    confidence max(p, 1 - p) that is right when p is above one half (half right at exactly one half).

    Args:
        logit_N: of the labelled side's probability.
    Returns: `brier`, the mean of (1 - p)^2 (0.25 for always one half); `ece`, the mean distance between confidence and
        accuracy, weighted by the bins' sizes; and the bins that are not empty.
    """
    found = confidence_and_accuracy(logit_N.tolist())
    names = {"from": "low", "to": "high", "n": "pairs", "confidence": "confidence", "accuracy": "accuracy"}
    return {
        "brier": float(np.square(1 - _sigmoid(logit_N)).mean()),
        "ece": found.error,
        "mean_confidence": found.confidence,
        "accuracy": found.accuracy,
        "bins": [{name: getattr(one, field) for name, field in names.items()} for one in found.bins],
    }


def _interval(mean: MeanInterval) -> dict[str, float | None]:
    known = math.isfinite(mean.low)
    return {"mean": mean.mean, "ci_low": mean.low if known else None, "ci_high": mean.high if known else None}


def _sigmoid(value: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -value))


def _configuration(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    found = facts.get("configuration")
    return found if isinstance(found, dict) else {}


def _beta_of(configuration: Mapping[str, Any]) -> float | None:
    value = configuration.get("beta")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _other_loss(facts: Mapping[str, Any]) -> str | None:
    """The loss of the run, if it is one for which sigmoid(beta * margin) is not the model's probability."""
    configuration = _configuration(facts)
    named = configuration.get("loss_type")
    names = [str(name) for name in (named if isinstance(named, list) else [named]) if name is not None]
    preferences = [name for name in names if name not in ("sft", "gold")] or names
    for name in preferences:
        if facts.get("method") in ("cpo", "orpo", "tpo"):  # whose sigmoid has no reference
            return f"{name} of {facts['method']}"
        if name not in _LOGISTIC:
            return name
        for option, plain in (("f_divergence_type", "reverse_kl"), ("ld_alpha", None)):
            if configuration.get(option, plain) != plain:
                return f"{name} with {option}={configuration[option]}"
    return None


def _notes(domains: Mapping[str, Domain], beta: float | None, other_loss: str | None, confidence: float) -> list[str]:
    notes = []
    if other_loss is not None:
        notes.append(
            f"The model was trained with the loss {other_loss}, for which sigmoid(beta x margin) is not a probability: "
            "calibration was not measured."
        )
    elif beta is None:
        notes.append("No beta is known, so calibration was not measured: add --beta with the training run's.")
    for name, domain in domains.items():
        change = domain.chosen_change(confidence)
        if change.high < 0:
            notes.append(
                f"The chosen answers of {name} became less likely by {-change.mean:.3f} nats per token, as in nearly "
                "every DPO run; a fall by whole nats usually means broken text."
            )
        if beta is not None:
            found = calibration(beta * domain.margin_N)
            direction = "too sure" if found["mean_confidence"] > found["accuracy"] else "not too sure"
            notes.append(
                f"Calibration on {name}: mean confidence {found['mean_confidence']:.1%}, right in "
                f"{found['accuracy']:.1%} ({direction}; expected calibration error {found['ece']:.3f})."
            )
        if domain.left_out:
            notes.append(
                f"{counted(domain.left_out, 'pair')} of {name} cannot be scored (empty, or too long) and will be left "
                "out."
            )
    return notes
