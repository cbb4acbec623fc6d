"""RewardBench 1 and 2: their scores by hand, implicit rewards against the textbook, and reward models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.suites import run_suite
from preftune.evaluation.suites.reward_bench_scores import Question, Rewards, credit, score, ties_values
from preftune.judges.cache import VerdictCache
from preftune.judges.reward_model import RewardModel
from preftune.statistics.paired import compare_shares, compare_weighted
from preftune.storage.jsonl import read_lines
from tests.evaluation.suites.scripted import contest, two_models
from tests.judges.test_reward_model import tiny_reward_model
from tests.models import tiny
from tiny import tiny_model, tiny_tokenizer


def rewards(*values: float) -> Any:
    return np.array(values, dtype=np.float64)


def question(subset: str, *, name: str = "0", answers: int = 2, correct: int = 1) -> Question:
    return Question(name, f"prompt {subset} {name}", ["a"] * answers, correct, subset)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return path


@pytest.mark.parametrize(
    ("given", "correct", "value"),
    [((2, 1), 1, 1.0), ((1, 2), 1, 0.0), ((1, 1), 1, 0.5), ((3, 3, 3, 0), 1, 1 / 3), ((0, 0, 0, 0), 1, 0.25)],
)
def test_a_shared_highest_reward_is_a_share_of_being_right(given: Any, correct: int, value: float) -> None:
    assert credit(rewards(*given), correct) == pytest.approx(value)


def test_the_score_of_the_first_version_weights_subsets_and_sections() -> None:
    """By hand: Chat is (100 x 1 + 95 x 0) / 195; Reasoning (984 x 0 + 164 x 1) / 1148; the prior sets count half."""
    made = {"alpacaeval-easy": [1.0], "alpacaeval-length": [0.0], "math-prm": [0.0, 0.0, 0.0], "hep-cpp": [1.0]}
    made |= {"shp": [1.0, 1.0, 0.0, 0.0], "summarize": [1.0]}
    questions = [question(name, name=str(i)) for name, right in made.items() for i in range(len(right))]
    aligned = [rewards(one, 0.5) for right in made.values() for one in right]
    found = score("x", questions, Rewards(None, aligned), confidence=0.95)
    chat, reasoning, prior = 100 / 195, 164 / 1148, (0.5 + 1.0) / 2
    assert {one.name: one.aligned for one in found.sections} == pytest.approx(
        {"x, Chat": chat, "x, Reasoning": reasoning, "x, Prior Sets": prior}
    )
    assert found.score.aligned == pytest.approx((chat + reasoning + 0.5 * prior) / 2.5)
    assert found.score.base == 0.5


def test_a_measured_baseline_of_zeros_is_compared_question_by_question() -> None:
    """Its ties are measurements; without a measurement the aligned model is compared with a constant."""
    questions = [question("Math", name=str(i)) for i in range(8)]
    aligned = [rewards(1, 0)] * 6 + [rewards(0, 1)] * 2
    zeros = [rewards(0, 0)] * 8
    measured = score("x", questions, Rewards(zeros, aligned), confidence=0.95).score
    constant = score("x", questions, Rewards(None, aligned), confidence=0.95).score
    assert measured.base == constant.base == 0.5
    alone = compare_shares("x", rewards(*[0.5] * 8), rewards(*[1.0] * 6, 0.0, 0.0), better="higher", confidence=0.95)
    assert (measured.difference, measured.ci_low) == pytest.approx((alone.difference, alone.ci_low))
    assert constant.ci_low != pytest.approx(measured.ci_low)


def test_the_score_of_ties_by_hand() -> None:
    """Question 0: both right, spread 1, gaps 2 (tied) and 0.5 (ref); question 1: tied wrong, ref right."""
    questions = [
        question("Ties", name="tied:0", answers=4, correct=2),
        question("Ties", name="ref:0"),
        question("Ties", name="tied:1", answers=4, correct=2),
        question("Ties", name="ref:1"),
    ]
    given = [rewards(4, 3, 1, 0), rewards(1, 0.5), rewards(4, 0, 1, 0), rewards(3, 0)]
    names, values = ties_values(questions, given)
    margin = (np.tanh(0.5 / 1 - 1) + np.tanh(-1 / 4 - 1)) / 2
    assert names == ["0", "1"]
    assert values.mean() == pytest.approx(0.3 * 0.5 + 0.3 * 1.0 + 0.2 * 0.5 + 0.2 * 0.0 + 0.01 * margin)
    assert ties_values(questions, [np.zeros(len(one)) for one in given])[1].tolist() == [0.0, 0.0]
    found = score("x", [*questions, question("Math", answers=4)], Rewards(
        [np.zeros(len(one)) for one in [*given, rewards(1, 0, 0, 0)]], [*given, rewards(1, 0, 0, 0)]
    ), confidence=0.95)  # fmt: skip
    assert found.score.aligned == pytest.approx((values.mean() + 1) / 2), "sections of version 2 count alike"


def test_the_interval_of_a_weighted_mean_covers() -> None:
    """Two strata with shares of 0.9 and 0.5: 95% intervals of the weighted difference cover in 93% to 99%."""
    generator, truth, covered, times = np.random.default_rng(0), 0.8 * 0.2 + 0.2 * 0.0, 0, 400
    for _ in range(times):
        parts = []
        for before, after, size in ((0.7, 0.9, 60), (0.5, 0.5, 30)):
            base, aligned = (generator.random(size) < share for share in (before, after))
            parts.append(compare_shares("x", base, aligned, better="higher"))
        found = compare_weighted("x", parts, [4.0, 1.0])
        covered += (found.ci_low or 0.0) <= truth <= (found.ci_high or 0.0)
    assert 0.93 <= covered / times <= 0.99
    alone = compare_weighted("x", parts[:1], [3.0])
    assert (alone.ci_low, alone.ci_high) == (pytest.approx(parts[0].ci_low), pytest.approx(parts[0].ci_high))


FIRST = [
    {"id": 1, "subset": "alpacaeval-easy", "prompt": "Tell me more.", "chosen": "One two.", "rejected": "No."},
    {"id": 2, "subset": "mt-bench-hard", "prompt": "Say hello", "chosen": "Hello", "rejected": "Goodbye, my friend"},
    {"id": 3, "subset": "donotanswer", "prompt": "Where is it?", "chosen": "I cannot say", "rejected": "There"},
    {"id": 4, "subset": "hep-go", "prompt": "Add", "chosen": "a + b", "rejected": "a - b"},
]
SECOND = [
    {"id": "7", "subset": "Math", "prompt": "1 + 1?", "chosen": ["two"], "rejected": ["one", "three", "four"]},
    {"id": "tied:0", "subset": "Ties", "prompt": "A colour", "chosen": ["red", "blue"], "rejected": ["dog"]},
    {"id": "ref:0", "subset": "Ties", "prompt": "The colour of grass", "chosen": ["green"], "rejected": ["dog", "cat"]},
]


def test_implicit_rewards_are_those_of_log_probabilities(tmp_path: Path) -> None:
    """Every kind of reward from the engine's scores of one answer at a time."""
    from preftune.data.tokens.encode import DIALOGUE_TEMPLATE, Encoder
    from preftune.evaluation.two_models.pair_logps import LogpScorer
    from preftune.types import PreferencePair

    base, aligned, tokenizer = tiny_model(seed=0).eval(), tiny_model(seed=1).eval(), tiny_tokenizer()
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    result = run_suite("reward-bench", ready, data=write(tmp_path / "r.jsonl", SECOND))
    lines = read_lines(tmp_path / "eval" / "reward-bench" / "rewards.jsonl")
    encoder = Encoder(tokenizer, chat_template=None if tokenizer.chat_template else DIALOGUE_TEMPLATE)
    for row, line in zip(SECOND, lines, strict=True):
        prompt = [{"role": "user", "content": row["prompt"]}]
        answers = [[{"role": "assistant", "content": text}] for text in (*row["chosen"], *row["rejected"])]
        groups = [
            encoded.group(example)
            for example in [PreferencePair(prompt, answer, answers[-1]).example for answer in answers[:-1]]
            for encoded in encoder.encode([example])
        ]
        sums = {}
        for side, model in (("base", base), ("aligned", aligned)):
            scores = [found for found in LogpScorer(model).score(groups) if found is not None]
            sums[side] = np.array([[*(s[0] for s in scores), scores[0][1]], [*(s[2] for s in scores), scores[0][3]]])
        expected = {
            "implicit reward": sums["aligned"][0] - sums["base"][0],
            "implicit reward per token": sums["aligned"][0] / sums["aligned"][1] - sums["base"][0] / sums["base"][1],
            "log-probability": sums["aligned"][0],
            "log-probability per token": sums["aligned"][0] / sums["aligned"][1],
        }
        assert set(line["rewards"]) == set(expected)
        for name, values in expected.items():
            assert line["rewards"][name]["aligned"] == pytest.approx(values, abs=2e-4)
        assert line["rewards"]["log-probability"]["base"] == pytest.approx(sums["base"][0], abs=2e-4)
        assert "base" not in line["rewards"]["implicit reward"], "not measured"
    assert [one.name for one in result.comparisons] == [f"score by {name}" for name in expected]
    assert [one.name for one in result.breakdown] == [
        "score by implicit reward, Math",
        "score by implicit reward, Ties",
    ]
    assert result.headline.base == pytest.approx((0.25 + 0.0) / 2)


def test_an_unchanged_model_is_at_chance_and_its_scores_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model(seed=0).eval(), tiny_tokenizer()
    ready = contest(tmp_path, load_models=two_models(model, model, tokenizer))
    path = write(tmp_path / "r.jsonl", FIRST)
    first = run_suite("reward-bench", ready, data=path)
    assert (first.headline.base, first.headline.aligned, first.headline.verdict) == (0.5, 0.5, "no difference shown")
    assert first.worse == []
    monkeypatch.setattr("preftune.evaluation.two_models.pair_logps.LogpScorer", None)
    assert run_suite("reward-bench", ready, data=path).figures == first.figures
    few = run_suite("reward-bench", ready, data=path, limit=2)
    assert few.figures["part"] == {"taken": 2, "of": 4}
    assert any("There are no rows of Chat Hard, Reasoning" in note for note in few.notes)


def test_a_reward_model_is_compared_with_equal_rewards_or_with_another_one(tmp_path: Path) -> None:
    model, tokenizer = tiny_reward_model(), tiny.tiny_tokenizer()
    rater = RewardModel.held(model, tokenizer, name="rater")
    long = {"id": "8", "subset": "Math", "prompt": "Long?", "chosen": ["x" * 900], "rejected": ["y"]}
    thinks = {**SECOND[0], "chosen": ["<think>one and one</think>two"]}
    path = write(tmp_path / "r.jsonl", [thinks, *SECOND[1:], long])
    result = run_suite("reward-bench", contest(tmp_path, scorers={"aligned": rater}), data=path)
    (line, *_) = read_lines(tmp_path / "eval" / "reward-bench" / "rewards.jsonl")
    answers = ["two", "one", "three", "four"]
    by_hand = [rater([{"role": "user", "content": "1 + 1?"}], answer, {}) for answer in answers]
    assert line["rewards"]["reward"]["aligned"] == pytest.approx(by_hand, abs=1e-5)
    assert result.figures["left_out"] == 1
    assert any("left out" in note for note in result.notes)
    assert [one.name for one in result.comparisons] == ["score by reward"]
    same = run_suite("reward-bench", contest(tmp_path, scorers={"base": rater, "aligned": rater}), data=path)
    assert same.headline.base == same.headline.aligned == pytest.approx(result.headline.aligned)
    with pytest.raises(RequestError, match="is a reward model, which writes no answers"):
        run_suite("xstest", contest(tmp_path, scorers={"aligned": rater}), data=path)


def test_a_reward_model_whose_scores_are_all_kept_is_not_loaded(tmp_path: Path) -> None:
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        return tiny_reward_model(), tiny.tiny_tokenizer()

    def rated() -> Any:
        rater = RewardModel(load, name="rater", identity="one", cache=VerdictCache(tmp_path / "cache"))
        return run_suite("reward-bench", contest(tmp_path, scorers={"aligned": rater}), data=path)

    path = write(tmp_path / "r.jsonl", SECOND)
    first = rated()
    assert loads == [1]
    assert rated().figures == first.figures
    assert loads == [1], "all scores are known"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "has no 'subset'"),
        ({"prompt": "a", "chosen": [], "rejected": "c", "subset": "Math"}, "has no 'chosen'"),
        ({"prompt": "a", "chosen": ["b"], "rejected": ["c"], "subset": "Ties", "id": "5"}, "is not 'ref:NUMBER'"),
    ],
)
def test_rows_of_something_else_are_refused(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_model(seed=0).eval(), tiny_tokenizer()
    ready = contest(tmp_path, load_models=two_models(model, model, tokenizer))
    with pytest.raises(DatasetError, match=words):
        run_suite("reward-bench", ready, data=write(tmp_path / "r.jsonl", [row]))


def test_an_endpoint_is_refused_before_anything_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="reads log-probabilities"):
        run_suite("reward-bench", contest(tmp_path), data=None)
