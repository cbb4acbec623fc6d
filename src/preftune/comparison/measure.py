"""Measurements of a policy: its answers, which are stored on disk, and its KL divergence to the start.

The KL is estimated on answers that the policy samples at temperature 1, without top-p or top-k: the mean over answers
of log policy minus log start, summed over their tokens (k1, unbiased; Schulman, "Approximating KL divergence", 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from preftune.evaluation.two_models.pair_logps import LogpScorer
from preftune.generation.answer_store import AnswerStore, Record
from preftune.generation.backends import ModelAnswerer, template_of
from preftune.generation.encode_prompts import encode_prompts
from preftune.generation.lazy_model import ModelSource
from preftune.generation.prompts import Prompt
from preftune.generation.protocol import Answer, Kept, Side
from preftune.generation.settings import SamplingSettings
from preftune.generation.thoughts import Spoken
from preftune.statistics.intervals import MeanInterval, mean_interval
from preftune.storage.jsonl import append_lines, digest, read_lines
from preftune.training.online.rollout import Rollout, TransformersSampler
from preftune.types import Text, TokenizedGroup

Row = Mapping[str, Any]
Score = Callable[[Sequence[tuple[Text, str, Row]]], Sequence[float | None]]
"""Rates answers, given as prompt, text and row; None for an answer that it cannot rate."""


@dataclass(frozen=True, slots=True)
class Ruler:
    """The settings with which all policies are measured."""

    sampling: SamplingSettings
    """Settings of the judged answers."""
    samples: int = 2
    """Answers to each prompt at temperature 1, for the KL."""
    batch_size: int = 16
    seed: int = 0
    gold: Score | None = None
    """The gold reward, which no method trains on; None without one."""
    thoughts: bool = False
    """Whether the text that a thinking model writes before its answer is judged and rated as part of the answer."""


class Distance(NamedTuple):
    """A policy's KL to the start, and the gold reward of its samples."""

    kl: MeanInterval
    """Mean in nats per answer; the interval is clustered by prompt."""
    gold: MeanInterval | None
    tokens: float
    """Mean tokens of the sampled answers."""
    log_ratios: Sequence[float]
    """Log policy minus log start of every sampled answer, in nats."""

    def to_dict(self) -> dict[str, Any]:
        return {"kl": self.kl._asdict(), "gold": self.gold and self.gold._asdict(), "tokens": round(self.tokens, 2)}


def answers_of(source: ModelSource, rows: Sequence[Row], ruler: Ruler, file: Path) -> list[Answer]:
    """The model's answers to the rows' prompts. Answers in `file` are read from it, and new ones are added to it."""
    keys = [digest([source.identity, asdict(ruler.sampling), ruler.seed, row]) for row in rows]
    store, prompts = AnswerStore(file), [row["prompt"] for row in rows]
    model = ModelAnswerer(source, ruler.sampling, batch_size=ruler.batch_size, seed=ruler.seed)

    def record(number: int, answer: Answer) -> Record:
        return {"key": keys[number], "prompt": prompts[number], **Kept.of(answer)._asdict()}

    store.complete(keys, partial(model.answer, prompts, rows), record=record)
    return [one.whole if ruler.thoughts else one for one in (Kept.read(store.known[key]) for key in keys)]


class Stored:
    """Existing answers, as the two sides of `evaluate_pairwise`."""

    def __init__(self, rows: Sequence[Row], base: Sequence[Answer], aligned: Sequence[Answer]) -> None:
        self._answers: dict[Side, dict[str, Answer]] = {
            "base": {row["id"]: answer for row, answer in zip(rows, base, strict=True)},
            "aligned": {row["id"]: answer for row, answer in zip(rows, aligned, strict=True)},
        }

    def __call__(self, side: Side, prompts: Sequence[Text], rows: Sequence[Row]) -> list[Answer]:
        return [self._answers[side][row["id"]] for row in rows]


def distance(policy: ModelSource, start: ModelSource, rows: Sequence[Row], ruler: Ruler, file: Path) -> Distance:
    """Sample the policy and measure its KL to the start, unless `file` holds the samples for the same weights and
    prompts. One model is in memory at a time.
    """
    key = digest([policy.identity, start.identity, ruler.samples, ruler.sampling.max_new_tokens, ruler.seed, rows])
    known = next((record for record in read_lines(file) if record.get("key") == key), None)
    if known is None:
        rollouts = _sampled(policy, rows, ruler)
        logps = _logps(policy, rollouts)
        policy.release()
        begun = _logps(start, rollouts)
        start.release()
        known = {
            "key": key,
            "answers": [
                {
                    "text": one.text,
                    "thought": one.thought,
                    "tokens": len(one.response_ids),
                    "ids": list(one.response_ids),
                    "policy": now,
                    "start": then,
                }
                for one, now, then in zip(rollouts, logps, begun, strict=True)
            ],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        append_lines(file, [known], sealed=True)
    answers = known["answers"]
    asked = [row for row in rows for _ in range(ruler.samples)]
    clusters = [row["id"] for row in asked]
    log_ratios = [answer["policy"] - answer["start"] for answer in answers]
    said = [Spoken(one["text"], one.get("thought", "") if ruler.thoughts else "").whole for one in answers]
    items = [(row["prompt"], text, row) for row, text in zip(asked, said, strict=True)]
    return Distance(
        mean_interval(log_ratios, clusters),
        mean_score(ruler.gold, items, clusters),
        sum(answer["tokens"] for answer in answers) / len(answers),
        log_ratios,
    )


def mean_score(
    score: Score | None, items: Sequence[tuple[Text, str, Row]], clusters: Sequence[str]
) -> MeanInterval | None:
    """The mean score of the rated answers, with an interval clustered by prompt; None without a `score`, or if answers
    to fewer than two prompts could be rated.
    """
    if score is None:
        return None
    rated = [(value, name) for value, name in zip(score(items), clusters, strict=True) if value is not None]
    if len({name for _, name in rated}) < 2:
        return None
    return mean_interval([value for value, _ in rated], [name for _, name in rated])


def _sampled(source: ModelSource, rows: Sequence[Row], ruler: Ruler) -> list[Rollout]:
    """`samples` answers to each prompt, in the order of the prompts."""
    tokenizer = source.tokenizer
    token_ids = encode_prompts(tokenizer, [row["prompt"] for row in rows], [template_of(row) for row in rows])
    prompts = [Prompt(str(row["id"]), row["prompt"], "") for row in rows]
    sampler = TransformersSampler(
        tokenizer,
        max_new_tokens=ruler.sampling.max_new_tokens,
        temperature=1.0,
        batch_size=ruler.batch_size,
        seed=ruler.seed,
        autocast="auto",
    )
    asked = [number for number in range(len(rows)) for _ in range(ruler.samples)]
    return sampler(source.model, [prompts[n] for n in asked], [token_ids[n] for n in asked], first=0)


def _logps(source: ModelSource, rollouts: Sequence[Rollout]) -> list[float]:
    """The log-probability of every answer, in nats."""
    scorer = LogpScorer(source.model, advice="Lower --max_new_tokens, or compare on a larger device.")

    def score(groups: Sequence[TokenizedGroup]) -> list[float]:
        sums: list[float] = scorer.read(groups, lambda found, batch: found.sum_K).tolist()
        return sums

    return scorer.budget.score([one.group for one in rollouts], score)
