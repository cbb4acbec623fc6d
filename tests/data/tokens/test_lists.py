"""Rated pairs as lists: whole, in order, whatever format or file they come from; and what does not make one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from preftune.data import GroupDataset, as_lists, load_pairs, tokenize_pairs
from preftune.data.conversion.convert import Input, convert_pairs
from preftune.data.conversion.filters import Filters
from preftune.data.pairs.mixture import mix_pairs
from preftune.data.tokens.encode import Encoder
from preftune.types import Example, Preference, TokenizedGroup
from tests.data.tiny_bpe import CHATML
from tiny import tiny_tokenizer

ANSWERS = ["good", "fair", "poor", "awful"]


def scored(scores: list[Any], **columns: Any) -> dict[str, Any]:
    return {"prompt": "why?", "responses": ANSWERS[: len(scores)], "scores": scores, **columns}


def lists_of(source: Any) -> tuple[list[TokenizedGroup], Any]:
    pairs = source if hasattr(source, "rated") else load_pairs(source)
    groups, _ = tokenize_pairs(pairs.rated(), tiny_tokenizer())
    lists, counts = as_lists(groups)
    return list(lists), counts


def texts(group: TokenizedGroup) -> list[str]:
    return [tiny_tokenizer().decode(list(ids), skip_special_tokens=True) for ids in group.completions]


def test_scores_make_one_list_from_the_best_to_the_worst():
    (group,), counts = lists_of([scored([2, 4.5, 1, 3])])
    assert texts(group) == ["fair", "awful", "good", "poor"]
    assert group.scores == (4.5, 3, 2, 1)
    assert group.pairs == (Preference(0, 3),)
    assert (group.id, counts.lengths, counts.of_two) == ("0+5", [4], 0)


@pytest.mark.parametrize(
    "row",
    [
        scored([2, 2, 1]),
        {"prompt": "why?", "answers": [{"answer": a, "rank": r} for a, r in zip(ANSWERS, (1, 1, 2), strict=False)]},
    ],
)
def test_completions_of_one_score_are_all_there(row):
    (group,), _ = lists_of([row])
    assert texts(group) == ["good", "fair", "poor"]
    assert group.scores[0] == group.scores[1] > group.scores[2]


def test_ranked_answers_have_their_places_for_scores():
    (group,), _ = lists_of([{"prompt": "why?", "ranked_responses": ANSWERS[:3]}])
    assert (texts(group), group.scores) == (ANSWERS[:3], (0.0, -1.0, -2.0))


def test_rows_of_one_prompt_are_one_list_also_from_several_rows():
    """HelpSteer2 has an answer per row."""
    rows = [
        {"prompt": f"what {i % 2}?", "response": f"answer {i}", "helpfulness": i % 5, "correctness": 1}
        for i in range(6)
    ]
    groups, counts = lists_of(rows)
    assert [len(group.completions) for group in groups] == [3, 3]
    assert counts.lengths == [3, 3]


def test_pairs_with_ratings_of_both_sides_make_lists_and_plain_pairs_stay_lists_of_two():
    rated = [
        {"prompt": "why?", "chosen": "good", "rejected": "poor", "score_chosen": 4.0, "score_rejected": 1.0},
        {"prompt": "why?", "chosen": "good", "rejected": "fair", "score_chosen": 5.0, "score_rejected": 2.0},
        {"prompt": "how?", "chosen": "good", "rejected": "fair", "score_chosen": 5.0, "score_rejected": 2.0},
        {"prompt": "how?", "chosen": "so", "rejected": "no", "score_chosen": None, "score_rejected": None},
    ]
    groups, counts = lists_of(rated)
    assert [texts(group) for group in groups] == [["good", "fair", "poor"], ["good", "fair"], ["so", "no"]]
    assert [group.scores for group in groups] == [(4.5, 2.0, 1.0), (5.0, 2.0), ()]
    assert (counts.lengths, counts.of_two, counts.rerated) == ([3], 2, 1)


def test_ratings_that_contradict_the_label_are_no_ratings():
    row = {"prompt": "why?", "chosen": "good", "rejected": "poor", "score_chosen": 1.0, "score_rejected": 4.0}
    (group,), _ = lists_of([row])
    assert (texts(group), group.scores) == (["good", "poor"], ())


def test_answers_that_are_rated_alike_on_average_are_left_out():
    sides = [("good", "poor"), ("poor", "good")]
    rows = [
        {"prompt": "why?", "chosen": a, "rejected": b, "score_chosen": 4.0, "score_rejected": 1.0} for a, b in sides
    ]
    groups, counts = lists_of(rows)
    assert (groups, counts.contradicting) == ([], 1)


def test_lists_survive_being_converted_and_mixed(tmp_path: Path):
    source, canonical = tmp_path / "scored.jsonl", tmp_path / "pairs.jsonl"
    rows = [scored([2, 4.5, 1, 3]), {**scored([1, 2, 3]), "prompt": "how?"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert_pairs([Input(str(source), load_pairs(source))], canonical, filters=Filters())
    expected, _ = lists_of(source)
    plain = load_pairs([{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    mixture = mix_pairs([load_pairs(canonical), plain], [None, None])
    for found in (lists_of(canonical)[0], lists_of(mixture)[0][:2]):
        assert [(g.completions, g.scores) for g in found] == [(g.completions, g.scores) for g in expected]


def test_weights_are_kept_and_doing_it_again_changes_nothing():
    groups, _ = tokenize_pairs(load_pairs([scored([1, 2, 3], weight=0.5)]).rated(), tiny_tokenizer())
    once, _ = as_lists(groups)
    assert once[0].pairs == (Preference(0, 2, 0.5),)
    again, _ = as_lists(once)
    assert again.fingerprint == once.fingerprint
    assert again[0].id == once[0].id


def test_pairs_that_are_not_asked_for_ratings_have_none():
    groups, _ = tokenize_pairs(load_pairs([scored([1, 2, 3])]), tiny_tokenizer())
    assert all(group.scores == () for group in groups)
    lists, counts = as_lists(groups)
    assert (len(lists), counts.of_two) == (3, 3)


def test_scores_are_kept_in_flat_arrays():
    rows = [
        TokenizedGroup([1], ([2], [3], [4]), (Preference(0, 2),), scores=(3.0, 2.0, 1.0)),
        TokenizedGroup([1], ([2], [3]), (Preference(0, 1),)),
        TokenizedGroup([1], ([5],), (), scores=(0.5,)),
    ]
    store = GroupDataset.from_groups(rows)
    assert [group.scores for group in store] == [(3.0, 2.0, 1.0), (), (0.5,)]
    assert [store.is_rated(index) for index in range(3)] == [True, False, False]
    without = GroupDataset.from_groups([TokenizedGroup([1], ([2], [3], [4]), (Preference(0, 2),)), *rows[1:]])
    assert without.fingerprint != store.fingerprint


def tokenizer_of_line_ends() -> PreTrainedTokenizerFast:
    """Two line ends are one token, as in most vocabularies."""
    marks, letters = ["<|im_start|>", "<|im_end|>"], sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*marks, *letters, "ĊĊ"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", additional_special_tokens=marks)
    tokenizer.chat_template = CHATML
    return tokenizer


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("assistant", "user")[n % 2], "content": content} for n, content in enumerate(contents)]


LINE_ENDS = {
    "text": ("why?\n", ("good", "\nfair", "poor", "\nawful")),
    "turns": ([{"role": "user", "content": "why?"}], tuple(map(turns, ("good", "\nfair", "poor", "\nawful")))),
    "several turns": (
        [{"role": "user", "content": "why?"}],
        (turns("good", "and?", "so"), turns("\nfair", "and?", "so"), turns("poor")),
    ),
}


@pytest.mark.parametrize("form", LINE_ENDS)
def test_answers_that_merge_with_the_prompt_do_not_make_two_lists_of_it(form):
    """A row of four answers of which one began with a line end was two lists, and the others were in both of them."""
    prompt, answers = LINE_ENDS[form]
    tokenizer, scores = tokenizer_of_line_ends(), [4.0, 3.0, 2.0, 1.0][: len(answers)]
    row = {"prompt": prompt, "responses": list(answers), "scores": scores}
    groups, _ = tokenize_pairs(load_pairs([row]).rated(), tokenizer)
    assert len({tuple(group.prompt_ids) for group in groups}) == 2
    (found,), _ = as_lists(groups)
    (together,) = Encoder(tokenizer).encode([Example(prompt, answers)])
    whole = together.group(Example(prompt, answers))
    assert (found.prompt_ids, found.completions) == (whole.prompt_ids, whole.completions)
    assert (found.scored, found.scores) == (whole.scored, tuple(scores))


def test_prompts_that_share_a_text_and_not_its_parting_stay_apart():
    rows = [
        {"prompt": "tell me", "responses": [" a story of a king", " none"], "scores": [2, 1]},
        {"prompt": "tell me a story", "responses": [" of a king", " of a cat"], "scores": [2, 1]},
    ]
    assert [len(group.completions) for group in lists_of(rows)[0]] == [2, 2]
