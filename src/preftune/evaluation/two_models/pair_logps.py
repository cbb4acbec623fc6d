"""Log-probabilities of preference pairs under an aligned model and its baseline, by the engine that training uses.

Kept on disk pair by pair, under an address of models and texts, so that a run that was killed goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.generation.finite_check import check_finite
from preftune.generation.protocol import Side
from preftune.models.positions import check_token_ids, limit_of
from preftune.storage.jsonl import append_lines, digest, read_lines
from preftune.types import PreferencePair, TokenizedGroup

if TYPE_CHECKING:
    from torch import Tensor

    from preftune.evaluation.two_models.context import PairOfModels
    from preftune.logps.batch import GroupLogps, PackedBatch

Floats: TypeAlias = NDArray[np.float64]
Progress: TypeAlias = Callable[[int, int], None]

_PAIRS = 64
"""Pairs tokenised together, and written together."""


class Scores(NamedTuple):
    """One model's scores of N pairs, NaN for a pair that it cannot score."""

    chosen_N: Floats
    """Log-probability of the chosen answer, nats."""
    rejected_N: Floats
    chosen_tokens_N: Floats
    rejected_tokens_N: Floats

    @property
    def known_N(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.chosen_N)

    def at(self, rows: Sequence[int] | NDArray[np.intp]) -> Scores:
        """Of these pairs only."""
        return Scores(*(column[rows] for column in self))

    def prefers(self, *, per_token: bool = False) -> list[float]:
        """1 where the chosen answer scores higher, 0.5 where both score the same, 0 otherwise."""
        if per_token:
            return above_zero(self.chosen_N / self.chosen_tokens_N - self.rejected_N / self.rejected_tokens_N)
        return above_zero(self.chosen_N - self.rejected_N)


def above_zero(difference_N: Floats) -> list[float]:
    """1 for a value above 0, 0.5 for 0, 0 below."""
    return [float(value) for value in (np.sign(difference_N) + 1) / 2]


def score_both(
    models: PairOfModels,
    pairs: Sequence[PreferencePair],
    *,
    settings: Mapping[str, Any],
    path: Path,
    progress: Progress | None = None,
) -> tuple[Scores, Scores]:
    """Scores of all pairs under the baseline and under the aligned model.

    Conversations for a tokeniser without a chat template are written as plain "Human: ... Assistant: ..." dialogue.

    Args:
        settings: what identifies both models; a score is found again only under the same.
        path: JSON lines, appended to.
        progress: called with pairs scored and pairs in all, over both models.
    Raises: OutOfMemoryError when a single pair does not fit; ModelError when a model gives NaN.
    """
    groups: dict[Side, list[TokenizedGroup | None]] = {"aligned": list(_groups(models.tokenizer, pairs))}
    same = models.base_tokenizer is models.tokenizer
    groups["base"] = groups["aligned"] if same else list(_groups(models.base_tokenizer, pairs))
    keys: dict[Side, list[str]] = {
        side: [_key(side, group, settings) for group in groups[side]] for side in ("base", "aligned")
    }

    def scorer(side: Side, model: Any, tokenizer: Any) -> Callable[[Sequence[int]], list[Any]]:
        score = LogpScorer(model).score
        return lambda at: score([groups[side][i] for i in at])

    known = {_NOT_SCORED: None, **read_values(path, "scores", whole=_whole)}
    values_of_both(models, keys, known, scorer, path=path, name="scores", at_once=_PAIRS, progress=progress)
    return _table(keys["base"], known), _table(keys["aligned"], known)


def read_values(path: Path, name: str, *, whole: Callable[[Any], bool] = lambda value: True) -> dict[str, Any]:
    """The values of this name in a file of `values_of_both`, by key."""
    records = [record for record in read_lines(path) if record.keys() >= {"key", name}]
    return {record["key"]: record[name] for record in records if whole(record[name])}


def values_of_both(
    models: PairOfModels,
    keys: Mapping[Side, Sequence[str]],
    known: dict[str, Any],
    scorer: Callable[[Side, Any, Any], Callable[[Sequence[int]], list[Any]]],
    *,
    path: Path,
    name: str,
    at_once: int,
    progress: Progress | None,
) -> None:
    """Adds to `known` what is missing of both sides, and appends it to `path` under `name`.

    Args:
        scorer: of a side, its model and tokenizer: gives the values of the keys with these numbers.
        at_once: keys between two writes.
    """

    def report_progress() -> None:
        if progress is not None:
            progress(sum(key in known for side in keys.values() for key in side), sum(map(len, keys.values())))

    report_progress()
    for side, of_side in keys.items():
        # one pair may stand several times in the data; it is scored once
        missing = list({key: i for i, key in enumerate(of_side) if key not in known}.items())
        if not missing:
            continue
        with models.on(side) as (model, tokenizer):
            values = scorer(side, model, tokenizer)
            for start in range(0, len(missing), at_once):
                part = missing[start : start + at_once]
                found = dict(zip([key for key, _ in part], values([i for _, i in part]), strict=True))
                append_lines(path, ({"key": key, name: value} for key, value in found.items()), sealed=True)
                known |= found
                report_progress()


def _table(keys: Sequence[str], known: Mapping[str, Sequence[float] | None]) -> Scores:
    nothing = [float("nan")] * 4
    rows = np.array([known[key] or nothing for key in keys], dtype=np.float64).reshape(len(keys), 4)
    return Scores(*rows.T)


def _whole(scores: Any) -> bool:
    """Not the NaN that earlier versions kept of a broken model."""
    return scores is None or (isinstance(scores, list) and all(math.isfinite(score) for score in scores))


_NOT_SCORED = ""
"""The key of a pair without token ids."""


def _groups(tokenizer: Any, pairs: Sequence[PreferencePair]) -> Iterator[TokenizedGroup | None]:
    """The token ids of every pair; None for one that the tokeniser or its template does not take."""
    from preftune.data.tokens.encode import DIALOGUE_TEMPLATE, Encoder

    encoder = Encoder(tokenizer, chat_template=None if tokenizer.chat_template else DIALOGUE_TEMPLATE)
    for start in range(0, len(pairs), _PAIRS):
        examples = [pair.example for pair in pairs[start : start + _PAIRS]]
        for example, encoded in zip(examples, encoder.encode(examples), strict=True):
            yield encoded.group(example) if encoded.reason is None else None


def _key(side: Side, group: TokenizedGroup | None, settings: Mapping[str, Any]) -> str:
    """The address of a pair's scores: its token ids, whatever they were made from, and the model."""
    from preftune.reference.fingerprint import NUMERICS_VERSION

    if group is None:
        return _NOT_SCORED
    ids = [list(group.prompt_ids), *map(list, group.completions)]
    return digest([side, ids, group.scored, NUMERICS_VERSION, settings])


_ADVICE = "Leave such pairs out, or load the model in 4 bits with --load_in_4bit."


class LogpScorer:
    """One model, on the device where it is."""

    def __init__(self, model: Any, *, advice: str = _ADVICE) -> None:
        """
        Args:
            advice: what to do where a single group does not fit into memory.
        """
        import torch

        from preftune.logps import choose_engine
        from preftune.logps.score_groups import ScoringBudget
        from preftune.models.precision import mixed_dtype

        self.model = model
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.engine, _ = choose_engine(model, "auto")
        self.dtype = mixed_dtype(model)
        self.longest = limit_of(model)
        self.budget = ScoringBudget(self.device.type, advice=advice)

    def score(self, given: Sequence[TokenizedGroup | None]) -> list[list[float] | None]:
        """Per pair: log-probabilities of chosen and rejected, tokens of each; None for one beyond the positions."""
        groups = {i: group for i, group in enumerate(given) if group is not None and self._fits(group)}
        rows = dict(zip(groups, self.budget.score(list(groups.values()), self._compute), strict=True))
        return [rows.get(i) for i in range(len(given))]

    def _fits(self, group: TokenizedGroup) -> bool:
        return self.longest is None or len(group.prompt_ids) + max(map(len, group.completions)) <= self.longest

    def _compute(self, groups: Sequence[TokenizedGroup]) -> list[list[float]]:
        import torch

        return self.read(groups, lambda found, batch: torch.stack(list(found.sides(batch)), dim=1)).tolist()

    def read(self, groups: Sequence[TokenizedGroup], part: Callable[[GroupLogps, PackedBatch], Tensor]) -> Tensor:
        """A part of these groups' log-probabilities, in float64 on the CPU. Raises: ModelError for NaN."""
        import torch

        from preftune.logps import pack
        from preftune.reference import inference

        batch = pack(groups)
        check_token_ids(self.model, int(batch.input_ids.max()))
        batch = batch.to(self.device)
        with inference(self.model), torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            scores = part(self.engine(self.model, batch), batch).cpu().double()  # MPS has no float64
        check_finite(scores, self.model)
        return scores
