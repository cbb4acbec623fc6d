from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preftune.errors import DatasetError, RequestError
from preftune.judges.cache import VerdictCache, verdict_key
from preftune.judges.protocol import Question, checked, finite_score, judge_all, judge_name, naming_failures
from preftune.judges.registry import RememberedRule, load_judge
from preftune.judges.rules import KeyFactJudge, LengthJudge, shorter_answer
from preftune.judges.text_matching import contains_fact, is_correct, key_facts
from preftune.training.online.reward_rules import rule_reward

length_only_judge = LengthJudge()


@pytest.mark.parametrize(
    ("answer", "fact", "found"),
    [
        ("It is Paris.", "paris", True),
        ("PARIS!", "Paris", True),
        ("Parisian food", "Paris", False),
        ("comparisons", "Paris", False),
        ("the answer is 3.", "3", True),
        ("the answer is 13", "3", False),
        ("the answer is 3.5", "3", False),
        ("the answer is 0.3", "3", False),
        ("the answer is -3", "3", False),
        ("-3", "3", False),
        ("-3", "-3", True),
        ("x=-3", "3", False),
        ("**-3**", "3", False),
        ("Pa\u00adris", "Paris", True),
        ("5-3 is 2", "3", True),
        ("3, 4 and 5", "3", True),
        ("about 1,000 metres", "1000", True),
        ("about 1000 metres", "1,000", True),
        ("1,0001", "1000", False),
        ("H\u2082O", "H2O", True),
        ("it\u2019s a dog", "it's", True),
        ("C++ is", "c++", True),
        ("New\u00a0 York", "new york", True),
        ("twenty\u2013one", "twenty-one", True),
        ("S\u00e3o Paulo", "Sa\u0303o Paulo", True),
        ("stra\u00dfe", "STRASSE", True),
        ("anything", "  ", False),
        ("", "x", False),
        ("a.b", "a*b", False),
    ],
)
def test_facts_are_found_as_whole_words(answer: str, fact: str, found: bool) -> None:
    assert contains_fact(answer, fact) is found


def test_ten_percent_and_two_words_are_a_real_distance() -> None:
    assert shorter_answer("one two", "one two three four") == "a"
    assert shorter_answer("one two three four", "one two") == "b"
    assert shorter_answer("one two three", "one two") == "tie"  # one word
    assert shorter_answer("w " * 30, "w " * 28) == "tie"  # 7%
    assert shorter_answer("w " * 30, "w " * 27) == "b"  # 10%


ROW = {"key_fact": ["Paris", "the French capital"]}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("Paris, of course, as everyone well knows.", "Lyon", "a"),
        ("no", "the French capital", "b"),
        ("Paris", "The answer to that is Paris", "a"),
        ("Paris is it", "It is Paris", "tie"),
        ("Lyon", "It might well be Lyon or Nice", "tie"),
    ],
)
def test_correct_first_then_brief(a: str, b: str, expected: str) -> None:
    judge = KeyFactJudge()
    assert judge("?", a, b, ROW) == expected
    assert judge("?", b, a, ROW) == {"a": "b", "b": "a", "tie": "tie"}[expected]


QUESTION = "Is the capital of Italy Rome or Milan?"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Is the capital of Italy  Rome or Milan?", False),
        ("You ask: \u201cIs the capital of italy Rome or Milan?\u201d I do not know.", False),
        ("Is the capital of Italy Rome or Milan? It is Rome.", True),
        ("Rome", True),
        ("The capital of Italy is Rome.", True),
    ],
)
def test_a_prompt_that_is_repeated_is_no_answer(answer: str, right: bool) -> None:
    """The fact stands in the prompt, where it may well be the right answer."""
    turns = [{"role": "user", "content": QUESTION}]
    for prompt in (QUESTION, turns):
        row = {"key_fact": "Rome"}
        assert KeyFactJudge()(prompt, answer, "No idea at all.", row) == ("a" if right else "tie")
        assert is_correct(answer, {**row, "prompt": prompt}) is right
        reward = rule_reward("key-fact")
        assert reward is not None
        assert reward(prompt, answer, row) == right


@pytest.mark.parametrize("row", [{}, {"key_fact": []}, {"key_fact": [" "]}, {"key_fact": 3}, {"key_fact": ["a", 1]}])
def test_a_row_without_key_facts_is_an_error(row: dict) -> None:
    with pytest.raises(DatasetError, match="key_fact"):
        key_facts(row)


def test_a_single_key_fact_may_be_a_string() -> None:
    assert key_facts({"key_fact": "Paris"}) == ["Paris"]


def test_length_judges() -> None:
    assert length_only_judge("?", "wrong", "long and right as well", {}) == "a"
    longer = LengthJudge(prefer="longer")
    assert longer("?", "wrong", "long and right as well", {}) == "b"
    assert longer("?", "same", "same", {}) == "tie"
    with pytest.raises(RequestError, match="shorter"):
        LengthJudge(prefer="better")  # type: ignore[arg-type]


def test_judges_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules_for_a_test.py").write_text(
        "def first(prompt, a, b, row): return 'a'\nclass Made:\n    name = 'made'\n    __call__ = staticmethod(first)\n"
        "number = 3\n"
    )
    (tmp_path / "broken_rules_for_a_test.py").write_text("import surely_not_installed\n")
    (tmp_path / "unwritten_rules_for_a_test.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_judge("key-fact"), KeyFactJudge)
    assert judge_name(load_judge("shorter")) == "shorter wins"
    assert judge_name(load_judge("longer")) == "longer wins"
    first = load_judge("rule:my_rules_for_a_test:first")
    assert first("?", "x", "y", {}) == "a"
    assert judge_name(first) == "first"
    assert judge_name(load_judge("rule:my_rules_for_a_test:Made")) == "made"
    assert str(tmp_path) not in __import__("sys").path
    with pytest.raises(RequestError, match=r"no 'second' \(it has: first, Made\)"):
        load_judge("rule:my_rules_for_a_test:second")
    with pytest.raises(RequestError, match="is not a function"):
        load_judge("rule:my_rules_for_a_test:number")
    with pytest.raises(RequestError, match="no Python module 'nowhere_at_all'"):
        load_judge("rule:nowhere_at_all:f")
    for name, error in (("broken", "ModuleNotFoundError: .*surely_not_installed"), ("unwritten", "SyntaxError: ")):
        with pytest.raises(RequestError, match=f"importing '{name}_rules_for_a_test' ended in {error}"):
            load_judge(f"rule:{name}_rules_for_a_test:f")
    with pytest.raises(RequestError, match="rule:module:function"):
        load_judge("gpt")


def test_a_rule_that_ends_the_program_is_an_error(tmp_path: Path, monkeypatch) -> None:
    """The command ended with its code, 0 too, without a word and without its output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exits_when_imported.py").write_text("raise SystemExit(0)", encoding="utf-8")
    with pytest.raises(RequestError, match="importing 'exits_when_imported' ended in SystemExit"):
        load_judge("rule:exits_when_imported:f")
    failed = pytest.raises(RequestError, match=r"Judge .* failed on the prompt 'Why\?': SystemExit")
    with failed, naming_failures(length_only_judge, "Why?", {}):
        raise SystemExit(0)


def test_a_judge_must_answer_a_b_or_tie() -> None:
    assert checked("tie", length_only_judge) == "tie"
    with pytest.raises(RequestError, match="answered 'A'"):
        checked("A", length_only_judge)
    with pytest.raises(RequestError, match="answered None"):
        checked(None, length_only_judge)


def test_numbers_of_numpy_and_torch_are_scores(tmp_path: Path) -> None:
    for number in (np.float32(0.5), np.int64(2), np.bool_(True), torch.tensor(0.5)):
        assert finite_score(number, length_only_judge) == float(number)
    for odd in (np.float32("nan"), np.array([1.0, 2.0]), "0.5", 1e300, 10**400):  # rewards are float32
        with pytest.raises(RequestError, match="a scorer answers a finite number"):
            finite_score(odd, length_only_judge)

    class Rule:
        cache_key = "half"
        name = "half"

        def __call__(self, prompt, answer, row):
            return np.float32(0.5)

    with closing(VerdictCache(tmp_path)) as cache:
        rule = RememberedRule(Rule(), cache)
        assert rule("p", "a", {}) == rule("p", "a", {}) == 0.5


def test_what_is_no_verdict_is_not_remembered(tmp_path: Path) -> None:
    class Rule:
        cache_key = name = "words"
        answer: Any = "A"

        def __call__(self, prompt, answer_a, answer_b, row):
            return self.answer

    asked = Rule()
    with closing(VerdictCache(tmp_path)) as cache:
        rule = RememberedRule(asked, cache)
        for _ in range(2):
            with pytest.raises(RequestError, match="answered 'A'; a judge answers"):
                rule("p", "x", "y", {})
        assert len(cache) == 0
        cache.put({verdict_key("rule", "words", "p", "x", "y", {}): "A"}, judge="words")  # by an earlier version
        asked.answer = "a"
        assert rule("p", "x", "y", {}) == "a"
        asked.answer = "b"
        assert rule("p", "x", "y", {}) == "a"


def test_verdicts_of_a_judge_of_many_are_checked_too() -> None:
    class Rule:
        name = "many"

        def judge_all(self, questions, *, again=False, progress=None):
            return [None, "A"]

    with pytest.raises(RequestError, match="answered 'A'; a judge answers"):
        judge_all(Rule(), [Question("p", "x", "y")] * 2)
