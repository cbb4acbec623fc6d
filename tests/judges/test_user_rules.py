"""A function of the user is a judge or a scorer by its signature, or it is refused."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.two_models.run import evaluate_pairwise
from preftune.judges.from_scores import ScoreJudge
from preftune.judges.protocol import Question, judge_all, score_all
from preftune.judges.registry import as_judge, open_judge
from preftune.judges.rules import KeyFactJudge
from preftune.judges.user_rules import adapted
from tests.evaluation.suites.scripted import Said


def judge_4(prompt, answer_a, answer_b, row): ...
def judge_any(p, q, r, s): ...
def judge_3(prompt, a, b): ...
def judge_named(prompt, chosen, rejected): ...
def judge_numbered(prompt, response_1, response_2): ...
def judge_default(prompt, answer_a, answer_b, row=None): ...
def judge_typed(x, y, z) -> Literal["a", "b", "tie"]: ...
def judge_text(x, y, z) -> str: ...
def judge_of_probabilities(prompt, a, b, row) -> float: ...
def scorer_3(prompt, answer, row): ...
def scorer_other(question, completion, example): ...
def scorer_2(prompt, answer): ...
def scorer_default(prompt, answer, row=None): ...
def scorer_option(prompt, answer, row, weight=2.0): ...
def scorer_typed(x, y, z) -> float | None: ...


class ScorerObject:
    def __call__(self, prompt, answer, row) -> int: ...


@pytest.mark.parametrize(
    "rule",
    [
        *(judge_4, judge_any, judge_3, judge_named, judge_numbered, judge_default, judge_typed, judge_text),
        judge_of_probabilities,
        *(scorer_3, scorer_other, scorer_2, scorer_default, scorer_option, scorer_typed, ScorerObject()),
        *(KeyFactJudge(), ScoreJudge(scorer_3)),
    ],
)
def test_what_a_rule_is(rule) -> None:
    name = getattr(rule, "__name__", type(rule).__name__)
    assert adapted(rule).scores == name.lower().startswith("scorer")


def unclear(x, y, z): ...
def one(answer): ...
def five(a, b, c, d, e): ...
def prompt_third(answer_a, answer_b, prompt, row): ...
def answer_first(answer, prompt): ...
def scorer_of_text(prompt, answer, row) -> str: ...


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (unclear, r"'unclear' takes \(x, y, z\): it is unclear whether"),
        (one, "takes 1 argument"),
        (five, "takes 5 arguments"),
        (prompt_third, r"takes \(answer_a, answer_b, prompt, row\), but the prompt must come first"),
        (answer_first, r"takes \(answer, prompt\), but the prompt must come first"),
        (scorer_of_text, "has the arguments of a scorer .* and returns what a judge returns"),
    ],
)
def test_what_is_refused(rule, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        adapted(rule)
    assert "rule(prompt, answer_a, answer_b, row)" in str(caught.value)


def generate(side, prompts, rows):
    return [Said(f"{side} {'long ' * n}", n) for n, _ in enumerate(prompts)]


ROWS = [{"prompt": f"q{n}", "id": f"row-{n}"} for n in range(6)]


def test_a_judge_without_a_row_judges(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rules_of_three.py").write_text(
        "def aligned(prompt, a, b):\n    return 'a' if 'aligned' in a else 'b'\n"
    )
    monkeypatch.chdir(tmp_path)
    with ExitStack() as opened:
        judge = open_judge("rule:rules_of_three:aligned", opened)
        assert judge.scorer is None
        assert judge.name == "aligned"
        summary = evaluate_pairwise(ROWS, generate=generate, judge=judge.judge, output_dir=tmp_path, settings={})
    assert summary.win_rate.win_rate == 1.0
    assert not summary.judge_only_ties


def test_a_scorer_given_as_judge_scores(tmp_path: Path) -> None:
    summary = evaluate_pairwise(
        ROWS, generate=generate, judge=lambda prompt, answer, row: len(answer), output_dir=tmp_path, settings={}
    )
    assert summary.win_rate.win_rate == 1.0  # "aligned" has more letters than "base"
    assert summary.rewards is not None


@pytest.mark.parametrize("judge", [lambda prompt, a, b, row: "tie", as_judge(lambda prompt, answer, row: 1.0)])
def test_only_ties_are_suspicious(tmp_path: Path, judge) -> None:
    summary = evaluate_pairwise(ROWS, generate=generate, judge=judge, output_dir=tmp_path, settings={})
    assert summary.judge_only_ties
    assert any(line.startswith("Suspicious:") for line in summary.sentences())
    (step,) = summary.next_steps()
    assert step.startswith("Check the judge before the model")
    assert "learning rate" not in step


def test_identical_answers_are_no_fault_of_the_judge(tmp_path: Path) -> None:
    def same(side, prompts, rows):
        return [Said("same", 1) for _ in prompts]

    summary = evaluate_pairwise(ROWS, generate=same, judge=judge_4, output_dir=tmp_path, settings={})
    assert not summary.judge_only_ties


def broken(prompt, answer_a, answer_b, row):
    return row["no such column"]


def broken_scorer(prompt, answer, row):
    raise ZeroDivisionError("division by zero")


def test_a_rule_that_fails_names_itself_and_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"Judge 'broken' failed on prompt 'row-0': KeyError: 'no such column'"):
        evaluate_pairwise(ROWS, generate=generate, judge=broken, output_dir=tmp_path, settings={})
    with pytest.raises(RequestError, match="'broken_scorer' failed on prompt 'row-1'"):
        as_judge(broken_scorer)("q", "x", "y", {"id": "row-1"})
    with pytest.raises(RequestError, match=r"'broken_scorer' failed on the prompt 'Why\?'"):
        score_all(broken_scorer, [([{"role": "user", "content": "Why?"}], "x", {})])
    with pytest.raises(DatasetError, match="no usable 'key_fact'"):  # what preftune itself says stays
        judge_all(KeyFactJudge(), [Question("q", "x", "y", {})])


async def waits(prompt, answer_a, answer_b, row):
    return "a"


class Waits:
    async def __call__(self, prompt, answer, row):
        return 1.0


@pytest.mark.parametrize("rule", [waits, Waits()])
def test_an_async_rule_is_refused(rule) -> None:
    """Its coroutine was taken for the verdict, with a RuntimeWarning."""
    with pytest.raises(RequestError, match=r"is an async function.* Write def in place of async def"):
        adapted(rule)


def test_a_verdict_of_the_other_kind_says_what_it_would_be() -> None:
    for answer in (7.5, 1, -0.1, float("nan")):
        with pytest.raises(RequestError, match=r"from 0\.0 to 1\.0 .*is a scorer: it takes \(prompt, answer, row\)"):
            judge_all(lambda prompt, a, b, row, said=answer: said, [Question("q", "x", "y")])
    with pytest.raises(RequestError, match=r"answered True.*True and False do not name an answer") as caught:
        judge_all(lambda prompt, a, b, row: True, [Question("q", "x", "y")])
    assert "scorer" not in str(caught.value)
    with pytest.raises(RequestError, match=r"answered 'a'.*takes \(prompt, answer_a, answer_b, row\)"):
        as_judge(lambda prompt, answer, row: "a")("q", "x", "y", {})


def test_the_documented_rules_work() -> None:
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "prefer_polite" in part)
    names: dict = {}
    exec(code, names)
    judge = adapted(names["prefer_polite"])
    assert not judge.scores
    assert [judge.call("p", *two, {}) for two in (("Please", "No"), ("No", "please"), ("x", "y"))] == ["a", "b", "tie"]
    assert adapted(names["politeness"]).scores
    assert names["politeness"]("p", "Please", {}) == 1.0
