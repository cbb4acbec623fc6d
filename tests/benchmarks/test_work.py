"""The count of useful work, by hand and against preftune's own counter; and what padding adds."""

from __future__ import annotations

import pytest
import torch
from shapes import PairTokens
from work import PASSES, ModelSize, padded_flops, useful_flops

from preftune.logps import pack
from preftune.training.step.metrics import WorkCounter
from preftune.types import Preference, TokenizedGroup
from tiny import save_tiny, tiny_model

SIZE = ModelSize(trunk=1000, head=50, layers=2, width=8)
PAIR = PairTokens(prompt=5, chosen=3, rejected=2)
SEEN = 5 * 6 / 2 + (3 * 5 + 3 * 4 / 2) + (2 * 5 + 2 * 3 / 2)  # 15 + 21 + 13


@pytest.mark.parametrize(("tuning", "k"), [("lora", 2), ("full", 3)])
@pytest.mark.parametrize("reference", [0, 1])
def test_useful_flops_by_hand(tuning, k, reference):
    products = 2 * (k + reference) * (1000 * (5 + 5) + 50 * 5)
    attention = 4 * (3 + reference) * 2 * 8 * SEEN
    assert PASSES[tuning] == k
    assert useful_flops(SIZE, [PAIR], passes=k, reference=reference) == products + attention
    assert useful_flops(SIZE, [PAIR, PAIR], passes=k, reference=reference) == 2 * (products + attention)


def test_padded_flops_by_hand():
    """Two pairs, longest sequence 5 + 3 = 8: four rows of 8; the head scores 7 positions of each, or completions."""
    step = [PAIR, PairTokens(2, 1, 1)]
    attention = 4 * 4 * 2 * 8 * 4 * (8 * 9 / 2)
    everywhere = padded_flops(SIZE, [step], passes=2, reference=1, head_everywhere=True)
    assert everywhere == 2 * 3 * (1000 * 32 + 50 * 28) + attention
    only_completions = padded_flops(SIZE, [step], passes=2, reference=1, head_everywhere=False)
    assert only_completions == 2 * 3 * (1000 * 32 + 50 * 7) + attention


def test_padding_is_to_the_longest_of_each_step():
    short = PairTokens(2, 1, 1)
    together = padded_flops(SIZE, [[PAIR, short]], passes=2, reference=1, head_everywhere=True)
    apart = padded_flops(SIZE, [[PAIR], [short]], passes=2, reference=1, head_everywhere=True)
    assert apart < together


def test_without_padding_the_ratio_is_that_of_the_tokens():
    """(2 P + C + R) / (P + C + R), where the trunk is everything and completions are equally long."""
    size, pair = ModelSize(trunk=10**9, head=1, layers=1, width=1), PairTokens(200, 100, 100)
    ratio = padded_flops(size, [[pair]], passes=2, reference=1, head_everywhere=False) / useful_flops(
        size, [pair], passes=2, reference=1
    )
    assert ratio == pytest.approx(600 / 400, rel=1e-3)


def group(prompt: int, *completions: int) -> TokenizedGroup:
    return TokenizedGroup([3] * prompt, tuple([4] * c for c in completions), (Preference(0, 1),))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_same_as_preftunes_counter(full, tied, tmp_path):
    """Which leaves attention out."""
    name = save_tiny(tmp_path, tie_word_embeddings=tied)
    size = ModelSize.of(name)
    without_attention = ModelSize(size.trunk, size.head, layers=0, width=0)
    counter = WorkCounter(tiny_model(tie_word_embeddings=tied), trains_everything=full)
    batch = pack([group(5, 3, 2), group(7, 1, 4)])
    counter.add(batch, reference_groups=2)
    pairs = [PairTokens(5, 3, 2), PairTokens(7, 1, 4)]
    k = PASSES["full" if full else "lora"]
    assert counter.flops == useful_flops(without_attention, pairs, passes=k, reference=1)
    assert counter.useful_flops(batch) == useful_flops(without_attention, pairs, passes=k, reference=0)


def test_attention_counts_the_pairs_that_the_layout_lets_see_each_other(tmp_path):
    """Counted in the mask that the engine's layout stands for."""
    size = ModelSize.of(save_tiny(tmp_path))
    config = tiny_model().config
    assert (size.layers, size.width) == (config.num_hidden_layers, config.hidden_size)
    prompt, first, second = 5, 3, 2
    row = torch.tensor([0] * prompt + [1] * first + [2] * second)
    index = torch.arange(len(row))
    mask = (index[:, None] >= index[None]) & ((row[None] == 0) | (row[:, None] == row[None]))
    only_attention = ModelSize(0, 0, layers=1, width=1)
    flops = useful_flops(only_attention, [PairTokens(prompt, first, second)], passes=2, reference=0)
    assert flops == 4 * 3 * int(mask.sum())
