"""Reference scores of a batch: right, in the batch's order, and computed only where nobody knows them yet."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from logps.groups import random_groups
from models_zoo import random_model
from preftune.logps import make_engine, naive_logps, pack
from preftune.reference import ReferenceScores, ScoreStore, fingerprint
from preftune.types import Preference, TokenizedGroup


class CountingSource:
    """The model itself; remembers which groups it was asked for."""

    description = "for the test"

    def __init__(self, model, *, live: bool = True) -> None:
        self.fingerprint = fingerprint(model, adapters=True)
        self.live = live
        self.asked: list[list[str]] = []

    def score(self, model, batch, engine):
        self.asked.append([group.id for group in batch.groups])
        with torch.no_grad():
            return engine(model, batch).token_logps_T


@pytest.fixture
def model():
    return random_model()


def scores_of(model, folder: Path | None, *, live: bool = True) -> ReferenceScores:
    source = CountingSource(model, live=live)
    store = None if folder is None else ScoreStore(folder, fingerprint=source.fingerprint, numerics="cpu")
    return ReferenceScores(source, make_engine(model, "packed"), store, autocast=nullcontext)


def assert_right(answer, model, batch) -> None:
    with torch.no_grad():
        torch.testing.assert_close(answer.token_logps_T, naive_logps(model, batch), rtol=1e-5, atol=1e-5)
    assert answer.token_logps_T.dtype == torch.float32
    assert torch.equal(answer.owner_T, batch.owner_T)


K3 = ((4, (3, 5, 2)), (9, (6, 2, 4)), (2, (1, 7, 3)))


def test_values_are_the_naive_ones_in_the_batchs_order_first_computed_and_then_from_the_cache(model, tmp_path):
    groups = random_groups(K3)
    reference = scores_of(model, tmp_path)
    assert_right(reference(model, pack(groups)), model, pack(groups))
    shuffled = pack([groups[2], groups[0], groups[1]])
    assert_right(reference(model, shuffled), model, shuffled)
    again = scores_of(model, tmp_path)
    assert_right(again(model, shuffled), model, shuffled)
    assert reference.source.asked == [["0", "1", "2"]]
    assert again.source.asked == []


def test_the_order_is_right_when_some_groups_are_known_and_some_are_not(model, tmp_path):
    groups = random_groups(K3)
    reference = scores_of(model, tmp_path)
    reference(model, pack([groups[1]]))
    assert_right(reference(model, pack(groups)), model, pack(groups))
    assert reference.source.asked == [["1"], ["0", "2"]]
    assert (reference.hits, reference.misses) == (3, 9)


def test_a_group_with_one_new_completion_is_scored_and_the_others_are_not(model, tmp_path):
    groups = random_groups()
    reference = scores_of(model, tmp_path)
    reference(model, pack(groups))
    first = groups[0]
    grown = TokenizedGroup(first.prompt_ids, (*first.completions, [7, 8, 9]), first.pairs, id="grown")
    batch = pack([groups[1], grown])
    reference.hits = reference.misses = 0
    assert_right(reference(model, batch), model, batch)
    assert reference.source.asked[1:] == [["grown"]]
    assert (reference.hits, reference.misses) == (4, 1)


def test_the_same_group_twice_in_a_batch_is_scored_once(model, tmp_path):
    (group,) = random_groups(((4, (3, 5)),))
    twin = TokenizedGroup(group.prompt_ids, group.completions[::-1], (Preference(1, 0),), id="twin")
    batch = pack([group, twin, group])
    for folder in (tmp_path, None):
        reference = scores_of(model, folder)
        assert_right(reference(model, batch), model, batch)
        assert reference.source.asked == [["0"]]
        assert [g.id for g in scores_of(model, None).missing(batch.groups)] == ["0"]


@pytest.mark.parametrize("cut", ["completion", "prompt"])
def test_other_tokens_after_truncation_or_another_template_are_misses_not_stale_hits(model, tmp_path, cut):
    (group,) = random_groups(((6, (5, 4)),))
    reference = scores_of(model, tmp_path)
    reference(model, pack([group]))
    prompt, (chosen, rejected) = group.prompt_ids, group.completions
    changed = (
        TokenizedGroup(prompt, (chosen[:-1], rejected[:-1]), group.pairs)
        if cut == "completion"
        else TokenizedGroup(prompt[1:], (chosen, rejected), group.pairs)
    )
    assert_right(reference(model, pack([changed])), model, pack([changed]))
    assert (reference.hits, reference.misses) == (0, 4)


def test_without_a_store_a_live_source_scores_again_and_one_that_cannot_is_remembered(model):
    batch = pack(random_groups())
    live, once = scores_of(model, None, live=True), scores_of(model, None, live=False)
    for reference in (live, once):
        for _ in range(2):
            assert_right(reference(model, batch), model, batch)
    assert len(live.source.asked) == 2
    assert len(once.source.asked) == 1


def test_a_store_that_fails_under_way_loses_no_score_of_a_source_that_cannot_score_again(model, tmp_path):
    groups = random_groups()
    reference = scores_of(model, tmp_path, live=False)
    reference(model, pack(groups[:1]))
    reference.store._connection.execute("PRAGMA query_only = 1")  # as on a disk that is full
    reference(model, pack(groups))
    assert not reference.store.usable
    assert_right(reference(model, pack(groups)), model, pack(groups))
    assert reference.source.asked == [["0"], ["1", "2"]]


def test_missing_names_the_groups_that_would_have_to_be_scored(model, tmp_path):
    groups = random_groups()
    reference = scores_of(model, tmp_path)
    reference(model, pack(groups[:1]))
    assert [group.id for group in reference.missing(groups)] == ["1", "2"]
    assert (reference.hits, reference.misses) == (0, 2)  # looking is not counted


def test_what_is_scored_is_part_of_a_completions_address(model, tmp_path):
    """The same tokens, scored whole and in parts: neither is taken for the other, and both are kept."""
    (whole,) = random_groups(((4, (5, 3)),))
    part = replace(whole, id="part", scored=(((0, 2), (3, 5)), ((2, 3),)))
    reference = scores_of(model, tmp_path)
    for batch in (pack([whole]), pack([part]), pack([part, whole])):
        assert_right(reference(model, batch), model, batch)
    assert reference.source.asked == [["0"], ["part"]]
    again = scores_of(model, tmp_path)
    batch = pack([whole, part, whole])
    assert_right(again(model, batch), model, batch)
    assert again.source.asked == []
    assert again.known(batch).token_logps_T.shape == batch.target_T.shape
