"""Margins of a real (tiny) model before training, and the cache that they share with training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preftune.audit import Setting, audit, open_data
from preftune.audit.checks.check import Scorer
from preftune.audit.scoring import PairReader, ReferenceScorer
from preftune.data import read_pairs, tokenize_pairs
from preftune.data.tokens.encode import Encoder
from preftune.logps import pack
from preftune.logps.batch import GroupLogps
from preftune.logps.naive import naive_logps
from preftune.models import load_model, load_tokenizer
from preftune.reference.inventory import list_stores
from preftune.storage.cache_folder import cache_folder
from tests.audit.made_up import clean_chats, clean_rows
from tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def scorer(model: str) -> ReferenceScorer:
    return ReferenceScorer(model, PairReader(load_tokenizer(model), 512, None))


def test_scores_are_those_of_the_oracle_and_come_from_the_cache_the_second_time(model: str) -> None:
    pairs = read_pairs(clean_chats(6))
    first = scorer(model)
    scores = first.score(pairs, np.arange(6))
    groups, _ = tokenize_pairs(pairs, load_tokenizer(model), max_length=512)
    batch = pack([groups[place] for place in range(6)])
    oracle = GroupLogps(naive_logps(load_model(model), batch), batch.owner_T, batch.completions).sides(batch)
    np.testing.assert_allclose(scores, np.stack([side.detach().numpy() for side in oracle], axis=1), rtol=1e-4)
    assert first.computed == 12
    again = scorer(model)
    np.testing.assert_array_equal(again.score(pairs, np.arange(6)), scores)
    assert again.computed == 0


def test_pairs_without_tokens_have_no_score(model: str) -> None:
    rows = clean_chats(5)
    rows[2]["prompt"][0]["content"] = "much too long " * 60
    scores = scorer(model).score(read_pairs(rows), np.arange(5))
    assert np.isnan(scores[2]).all()
    assert np.isfinite(scores[[0, 1, 3, 4]]).all()


def test_training_finds_what_the_audit_has_scored(model: str, tmp_path: Path) -> None:
    from preftune import DPOConfig, DPOTrainer

    pairs = read_pairs(clean_chats(4))
    scorer(model).score(pairs, np.arange(4))
    (before,) = list_stores(cache_folder() / "reference")
    config = DPOConfig(
        output_dir=str(tmp_path), max_length=512, max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    trainer = DPOTrainer(model=model, args=config, train_dataset=pairs, processing_class=load_tokenizer(model))
    trainer.train()
    (after,) = list_stores(cache_folder() / "reference")
    assert (after.path, after.completions) == (before.path, before.completions) == (before.path, 8)


class KnownScores(Scorer):
    """Scores that were made up: the chosen answer is likelier, but for one swapped pair and one without scores."""

    name = "made-up"
    computed = 0

    def score(self, pairs, indices):
        rng = np.random.default_rng(0)
        chosen, tokens = rng.normal(-20, 0.5, len(indices)), np.full(len(indices), 20.0)
        table = np.stack([chosen, chosen - rng.normal(2, 0.4, len(indices)), tokens, tokens], axis=1)
        table[7, :2] = -50.0, -20.0
        table[9] = np.nan
        return table


def test_the_most_surprising_label_is_found(model: str) -> None:
    encoder = Encoder(load_tokenizer(model))
    setting = Setting(open_data(clean_rows()), encoder=encoder, max_length=None, scorer=KnownScores())
    result = audit(setting)
    named = {finding.name: finding for finding in result.findings}
    assert (named["surprising_labels"].count, named["surprising_labels"].examples[0].row) == (1, 7)
    assert (named["unscored"].count, named["unscored"].examples[0].row) == (1, 9)
    figures = result.figures["reference"]
    assert figures["pairs"] == 59
    assert figures["margin"]["accuracy"] == pytest.approx(58 / 59)
    assert figures["most_surprising"][0] == {"row": 7, "margin": -30.0, "margin_per_token": -1.5}
