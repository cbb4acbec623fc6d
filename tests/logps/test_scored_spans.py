"""Completions of which only some tokens are scored: the engines, against the whole scores and against the oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models_zoo import random_model
from preftune.logps import make_engine, naive_logps, pack
from preftune.logps.batch import GroupLogps
from preftune.types import Preference, TokenizedGroup

from .groups import random_groups

ENGINES = ("packed", "separate", "naive")


def test_a_row_by_hand():
    group = TokenizedGroup(
        [10, 11],
        ([20, 21, 22, 23, 24], [30, 31], [40, 41]),
        (Preference(0, 1),),
        scored=(((0, 2), (4, 5)), ((1, 2),), ()),
    )
    batch, whole = pack([group]), pack([replace(group, scored=())])
    assert torch.equal(batch.input_ids, whole.input_ids)
    assert torch.equal(batch.position_ids, whole.position_ids)
    assert batch.layout.segments == whole.layout.segments
    assert batch.target_T.tolist() == [20, 21, 24, 31, 40, 41]
    assert batch.predict_T.tolist() == [1, 2, 5, 7, 1, 9]
    assert batch.owner_T.tolist() == [0, 0, 0, 1, 2, 2]
    assert group.scored_lengths == [3, 1, 2]
    assert (group.tokens, batch.completions, batch.pairs) == (11, 3, 1)


@st.composite
def partly_scored(draw) -> tuple[list[TokenizedGroup], list[TokenizedGroup]]:
    """Groups with spans, and the same groups scored whole."""
    sizes = draw(
        st.lists(
            st.tuples(st.integers(1, 8), st.lists(st.integers(1, 7), min_size=1, max_size=3)), min_size=1, max_size=3
        )
    )
    whole = random_groups(sizes)
    return [replace(g, scored=tuple(draw(spans_of(len(c))) for c in g.completions)) for g in whole], whole


@st.composite
def spans_of(draw, length: int) -> tuple[tuple[int, int], ...]:
    edges = sorted(draw(st.sets(st.integers(0, length), min_size=2)))
    return tuple(zip(edges[::2], edges[1::2], strict=False))


def positions(groups: list[TokenizedGroup]) -> list[int]:
    """Where the scored tokens stand among all tokens of all completions."""
    found, at = [], 0
    for group in groups:
        for index, completion in enumerate(group.completions):
            found += [at + token for begin, end in group.spans(index) for token in range(begin, end)]
            at += len(completion)
    return found


@pytest.fixture(scope="module")
def engines():
    made = []
    for name in ENGINES:
        model = random_model("llama", dtype=torch.float64)
        made.append((make_engine(model, name), model))
    return made


@settings(deadline=None, max_examples=25)
@given(partly_scored())
def test_scoring_some_tokens_is_the_whole_scores_indexed(engines, groups):
    some, whole = groups
    at = torch.tensor(positions(some))
    with torch.no_grad():
        for engine, model in engines:
            full, part = engine(model, pack(whole)), engine(model, pack(some))
            torch.testing.assert_close(part.token_logps_T, full.token_logps_T[at], rtol=1e-12, atol=1e-12)
            assert torch.equal(part.owner_T, full.owner_T[at])
            lengths = [length for group in some for length in group.scored_lengths]
            assert part.length_K.tolist() == lengths


SCORED = ((((0, 1),), ((2, 5), (7, 9))), (((3, 7),), ()), (((0, 2), (4, 8)), (), ((1, 3), (4, 5))))
SIZES = ((4, (3, 9)), (12, (7, 2)), (6, (8, 1, 5)))


def by_the_definition(model, groups: list[TokenizedGroup]) -> torch.Tensor:
    """Each scored token by itself: log p(token | all tokens before it), from a forward over exactly those."""
    scores = []
    for group in groups:
        for index, completion in enumerate(group.completions):
            for begin, end in group.spans(index):
                for at in range(begin, end):
                    context = torch.tensor([[*group.prompt_ids, *completion[:at]]])
                    scores.append(model(input_ids=context).logits[0, -1].log_softmax(-1)[completion[at]])
    return torch.stack(scores)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_values_and_gradients_are_those_of_the_definition(name, architecture):
    groups = [replace(g, scored=s) for g, s in zip(random_groups(SIZES), SCORED, strict=True)]
    results = []
    for score in ("definition", name):
        model = random_model(architecture, dtype=torch.float64)
        if score == "definition":
            model.set_attn_implementation("eager")
            scores = by_the_definition(model, groups)
        else:
            scores = make_engine(model, name)(model, pack(groups)).token_logps_T
        (scores * torch.linspace(-1, 2, len(scores), dtype=torch.float64)).sum().backward()
        results.append((scores.detach(), {key: p.grad for key, p in model.named_parameters()}))
    (expected, expected_grads), (scored, grads) = results
    # llama's norms and rotary are float32 in a float64 model, hence 1e-5
    torch.testing.assert_close(scored, expected, rtol=1e-5, atol=2e-5)
    for key, expected_grad in expected_grads.items():
        scale = expected_grad.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(grads[key] / scale, expected_grad / scale, rtol=1e-4, atol=1e-4, msg=key)


def test_context_changes_the_scores_after_it_and_is_not_scored_itself():
    """Another turn of the user is another condition of the next answer; its own tokens appear nowhere in the scores."""
    model = random_model("llama", dtype=torch.float64)
    (group,) = random_groups(((4, (8, 8)),))
    same = TokenizedGroup(group.prompt_ids, (group.completions[0],) * 2, (), scored=(((0, 3), (5, 8)),) * 2)
    other = list(group.completions[0])
    other[3] = (other[3] + 1) % 128
    changed = replace(same, completions=(same.completions[0], other))
    with torch.no_grad():
        first, second = naive_logps(model, pack([changed])).chunk(2)
    torch.testing.assert_close(first[:3], second[:3], rtol=1e-12, atol=1e-12)
    assert (first[3:] != second[3:]).all()


def test_sides_have_the_sums_and_lengths_of_what_is_scored():
    group = TokenizedGroup([1], ([2, 3, 4], [5, 6]), (Preference(0, 1),), scored=(((0, 1), (2, 3)), ((1, 2),)))
    batch = pack([group])
    logps = GroupLogps(torch.tensor([-1.0, -2.0, -4.0]), batch.owner_T, batch.completions)
    sides = logps.sides(batch)
    assert (sides.chosen_N.tolist(), sides.rejected_N.tolist()) == ([-3.0], [-4.0])
    assert (sides.chosen_length_N.tolist(), sides.rejected_length_N.tolist()) == ([2.0], [1.0])
