"""Answers are made once, and the KL is that of the naive path."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from preftune.comparison.measure import Ruler, Stored, answers_of, distance, mean_score
from preftune.generation.encode_prompts import encode_prompts
from preftune.generation.lazy_model import ModelSource
from preftune.generation.prompts import Prompt
from preftune.generation.protocol import Kept
from preftune.generation.settings import SamplingSettings
from preftune.training.online.rollout import Rollout
from tiny import save_tiny, tiny_model, tiny_tokenizer

ROWS = [{"id": str(number), "prompt": [{"role": "user", "content": f"{word}?"}]} for number, word in enumerate("abcd")]
GREEDY = SamplingSettings(max_new_tokens=6, temperature=0.0)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A start, and a policy that is near it."""
    start = Path(save_tiny(tmp_path / "start"))
    model = tiny_model()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "policy")
    tiny_tokenizer().save_pretrained(tmp_path / "policy")
    return start, tmp_path / "policy"


def sources(folders):
    return tuple(ModelSource(str(folder), dtype="float32") for folder in folders)


def test_answers_are_kept_and_not_made_again(folders, tmp_path, monkeypatch):
    start, _policy = sources(folders)
    file = tmp_path / "answers.jsonl"
    first = answers_of(start, ROWS, Ruler(GREEDY), file)
    assert len(file.read_text().splitlines()) == 4
    monkeypatch.setattr(ModelSource, "model", property(lambda self: pytest.fail("it was loaded again")))
    again = answers_of(ModelSource(str(folders[0]), dtype="float32"), ROWS, Ruler(GREEDY), file)
    assert [(a.text, a.tokens, a.finished) for a in again] == [(a.text, a.tokens, a.finished) for a in first]


def test_a_torn_line_and_other_weights_are_answered_anew(folders, tmp_path):
    start, policy = sources(folders)
    file = tmp_path / "answers.jsonl"
    first = answers_of(start, ROWS, Ruler(GREEDY), file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3][:20]]))
    assert [a.text for a in answers_of(start, ROWS, Ruler(GREEDY), file)] == [a.text for a in first]
    assert [a.text for a in answers_of(policy, ROWS, Ruler(GREEDY), file)] != [a.text for a in first]


def test_the_kl_is_that_of_the_naive_path_in_float64(folders, tmp_path):
    start, policy = sources(folders)
    found = distance(policy, start, ROWS, Ruler(GREEDY, samples=3), tmp_path / "kl.jsonl")
    record = json.loads((tmp_path / "kl.jsonl").read_text())
    assert len(record["answers"]) == len(found.log_ratios) == 12
    tokenizer = tiny_tokenizer()
    ends = {tokenizer.eos_token_id, 2}
    expected = []
    for number, answer in enumerate(record["answers"]):
        (ids,) = encode_prompts(tokenizer, [ROWS[number // 3]["prompt"]], None)
        response = answer["ids"]
        assert len(response) == answer["tokens"]
        assert not ends & set(response[:-1])
        expected.append(naive(policy, ids, response) - naive(start, ids, response))
    assert found.log_ratios == pytest.approx(expected, abs=1e-3)
    assert found.kl.mean == pytest.approx(sum(expected) / 12, abs=1e-3)
    assert found.gold is None


def naive(source: ModelSource, prompt, response) -> float:
    model = source.model.double()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    model.float()
    return math.fsum(float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(response))


def test_the_distance_to_itself_is_nothing_and_is_kept(folders, tmp_path, monkeypatch):
    start, _ = sources(folders)
    scores = Ruler(GREEDY, gold=lambda items: [float(len(text)) for _, text, _ in items])
    found = distance(start, start, ROWS, scores, tmp_path / "kl.jsonl")
    assert found.kl.mean == pytest.approx(0.0, abs=1e-6)
    monkeypatch.setattr(ModelSource, "model", property(lambda self: pytest.fail("it was loaded again")))
    again = distance(*sources((folders[0], folders[0])), ROWS, scores, tmp_path / "kl.jsonl")
    assert again == found
    assert found.gold is not None
    assert found.gold.mean > 0


def test_a_gold_reward_of_one_prompt_has_no_interval_and_is_left_out():
    items = [(row["prompt"], "x", row) for row in ROWS]
    names = [row["id"] for row in ROWS]
    assert mean_score(lambda _: [1.0, None, None, None], items, names) is None
    assert mean_score(lambda _: [1.0, 2.0, None, None], items, names).mean == 1.5


def test_stored_answers_are_found_by_their_row():
    class Said:
        def __init__(self, text):
            self.text, self.tokens, self.finished = text, 1, True

    stored = Stored(ROWS, [Said("s" + r["id"]) for r in ROWS], [Said("p" + r["id"]) for r in ROWS])
    asked = [ROWS[2], ROWS[0]]
    assert [one.text for one in stored("aligned", [], asked)] == ["p2", "p0"]
    assert [one.text for one in stored("base", [], asked)] == ["s2", "s0"]


def test_thoughts_are_judged_and_rated_only_when_that_is_asked_for(folders, tmp_path, monkeypatch):
    start, policy = sources(folders)

    def answer(self, prompts, rows, take, wanted):
        for number in range(len(prompts)):
            take(number, Kept("Lyon.", 2, True, "Paris?", 5))

    monkeypatch.setattr("preftune.comparison.measure.ModelAnswerer.answer", answer)
    monkeypatch.setattr(
        "preftune.comparison.measure._sampled",
        lambda source, rows, ruler: [rollout(row, number) for number, row in enumerate(rows)],
    )
    seen = []

    def gold(items):
        seen.append({text for _, text, _ in items})
        return [1.0 for _ in items]

    whole = "<think>\nParis?\n</think>\n\nLyon."
    for thoughts, text, tokens in ((False, "Lyon.", 2), (True, whole, 7)):
        ruler = Ruler(GREEDY, samples=1, gold=gold, thoughts=thoughts)
        said = answers_of(start, ROWS, ruler, tmp_path / "answers.jsonl")
        assert {(one.text, one.tokens) for one in said} == {(text, tokens)}
        distance(policy, start, ROWS, ruler, tmp_path / "kl.jsonl")
        assert seen.pop() == {text}


def rollout(row, number: int) -> Rollout:
    return Rollout(Prompt(row["id"], row["prompt"], ""), [5, 6], [7, 8], "Lyon.", True, number, thought="Paris?")
