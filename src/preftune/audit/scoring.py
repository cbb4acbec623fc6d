"""Log-probabilities of the pairs under a model, on the tokens of training, with the cache of reference scores."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from preftune.data.pairs.dataset import PairDataset
from preftune.data.tokens.groups import GroupDataset
from preftune.data.tokens.tokenize import tokenize_pairs
from preftune.errors import DatasetError
from preftune.logps import choose_engine, pack
from preftune.logps.batch import GroupLogps, PackedBatch
from preftune.logps.score_groups import ScoringBudget
from preftune.models import apply_precision, decide_precision, load_model, weights_dtype
from preftune.models.positions import check_token_ids
from preftune.reference import ExplicitModel, Numerics, ReferenceScores, ScoreStore
from preftune.reference.store import Scores
from preftune.storage.cache_folder import cache_folder
from preftune.types import TokenizedGroup

_PAIRS = 256
"""Pairs tokenised together."""


class Block(NamedTuple):
    """Pairs that are scored in one go."""

    pairs: int
    places: list[int]
    """Of those that have tokens, among all pairs that are scored."""
    groups: list[TokenizedGroup]


class PairReader(NamedTuple):
    """Tokenises pairs, with the limits of training."""

    tokenizer: Any
    max_length: int | None
    max_prompt_length: int | None

    def blocks(self, pairs: PairDataset, indices: NDArray[np.int64]) -> Iterator[Block]:
        """The pairs at these positions."""
        for start in range(0, len(indices), _PAIRS):
            part = indices[start : start + _PAIRS]
            numbered = list(self._groups(pairs, part, start))
            yield Block(len(part), [place for place, _ in numbered], [group for _, group in numbered])

    def _groups(
        self, pairs: PairDataset, indices: NDArray[np.int64], start: int
    ) -> Iterator[tuple[int, TokenizedGroup]]:
        """The groups of these pairs with their places. Pairs that cannot be trained have no group; the others are found
        by halving.
        """
        try:
            groups: GroupDataset | None = tokenize_pairs(
                pairs.select(indices),
                self.tokenizer,
                max_length=self.max_length,
                max_prompt_length=self.max_prompt_length,
            )[0]
        except DatasetError:
            groups = None
        if groups is not None and len(groups) == len(indices):
            for place in range(len(indices)):
                yield start + place, groups[place]
        elif len(indices) > 1:
            half = len(indices) // 2
            yield from self._groups(pairs, indices[:half], start)
            yield from self._groups(pairs, indices[half:], start + half)


class ScoreTable:
    """The rows of `Scorer.score`: NaN for pairs without tokens."""

    def __init__(self, pairs: int, bar: Any) -> None:
        self.found = np.full((pairs, 4), np.nan)
        self._bar = bar

    def add(self, block: Block, rows: Sequence[NDArray[np.float64]]) -> None:
        if rows:
            self.found[block.places] = rows
        self._bar.update(block.pairs)


@contextmanager
def table_of_scores(pairs: int) -> Iterator[ScoreTable]:
    """A table that is filled, with a progress bar."""
    from tqdm.auto import tqdm

    with tqdm(total=pairs, desc="Reference scores", unit="pair", disable=not sys.stderr.isatty()) as bar:
        yield ScoreTable(pairs, bar)


def sums(scores: GroupLogps, batch: PackedBatch) -> list[NDArray[np.float64]]:
    """Log-probabilities of both sides of each pair in nats, and their scored tokens: a row of `Scorer.score`."""
    return list(torch.stack(list(scores.sides(batch)), dim=1).double().cpu().numpy())


class ReferenceScorer:
    """Scores pairs under the model as received, frozen, on a GPU if there is one."""

    def __init__(
        self,
        name: str,
        reader: PairReader,
        *,
        load_in_4bit: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """Load the model.

        Args:
            name: a path or a hub id.
            reader: with the limits of training, so that the same tokens are scored.
        Raises: ModelError if the model cannot be found or loaded.
        """
        self.name, self.reader = name, reader
        self.device = _device()
        model = load_model(name, load_in_4bit=load_in_4bit, trust_remote_code=trust_remote_code)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        precision = decide_precision(model_dtype=weights_dtype(model), device=self.device)
        apply_precision(model, precision)
        if not load_in_4bit:
            model = model.to(self.device)  # type: ignore[arg-type]
        engine, _ = choose_engine(model, "auto")
        source = ExplicitModel(model, engine)
        numerics = Numerics.of(model, engine=engine.name, device=self.device, autocast=precision.autocast)
        store = ScoreStore(
            cache_folder() / "reference",
            fingerprint=source.fingerprint,
            numerics=numerics.digest(),
            note={"model": name, "reference": "the model as received (audit)", **numerics.facts()},
        )
        self.model = model
        self.autocast = precision.autocast
        self.scores = ReferenceScores(source, engine, store, autocast=self._autocast)
        self.budget = ScoringBudget(
            self.device.type, advice="Lower --max_length, add --load_in_4bit, or audit without --with_reference."
        )

    @property
    def computed(self) -> int:
        """Number of completions that were not in the cache."""
        return self.scores.misses

    def _autocast(self) -> AbstractContextManager[None]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def score(self, pairs: PairDataset, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The rows of `Scorer.score`.

        Raises: OutOfMemoryError: a single pair does not fit.
        """
        with table_of_scores(len(indices)) as table:
            for block in self.reader.blocks(pairs, indices):
                table.add(block, self.budget.score(block.groups, self._compute))
            return table.found

    def fresh(self, groups: Sequence[TokenizedGroup]) -> dict[bytes, Scores]:
        """Scores of groups by the addresses of their completions, computed now."""
        check_token_ids(self.model, int(pack(groups).input_ids.max()))
        return self.scores.score_groups(self.model, groups, self.device)

    def _compute(self, groups: Sequence[TokenizedGroup]) -> list[NDArray[np.float64]]:
        """The scores of groups, from the cache or computed."""
        batch = pack(groups)
        check_token_ids(self.model, int(batch.input_ids.max()))
        batch = batch.to(self.device)
        return sums(self.scores(self.model, batch), batch)


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
