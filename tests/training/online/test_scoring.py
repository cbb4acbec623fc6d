"""What rates an answer, by name and as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from preftune import GRPOConfig
from preftune.errors import RequestError
from preftune.generation.prompts import Prompt
from preftune.training.online.reward_functions import open_rewards
from preftune.training.online.rollout import Rollout
from preftune.training.online.scoring import MarkingScorer, Score, as_spec, combined, open_score, read_mark
from saved_reward import save_reward
from tiny import save_tiny


def rollout(text: str, *, prompt: str = "why?", **kept: Any) -> Rollout:
    return Rollout(Prompt("1", prompt, "k", {}, kept), (5, 6), (7, 2), text, True, 0)


def test_an_ensemble_is_its_mean_its_least_or_its_mean_less_the_deviation() -> None:
    members = [[1.0, 4.0, None], [3.0, 4.0, 1.0]]
    assert combined(members, "mean").scores == [2.0, 4.0, None]
    assert combined(members, "min").scores == [1.0, 4.0, None]
    assert combined(members, "mean-std").scores == [1.0, 4.0, None]
    assert combined(members, "mean").spread == [1.0, 0.0, None]
    assert combined(members[:1], "mean").spread == [None, None, None], "a single one cannot disagree with itself"


def test_rules_read_the_other_columns_of_the_row() -> None:
    def has_key(prompt: Any, answer: str, row: Any) -> float:
        return float(row["key"] in answer)

    scores = Score([has_key])([rollout("say yes", key="yes"), rollout("say no", key="yes")])
    assert scores.scores == [1.0, 0.0]
    with pytest.raises(RequestError, match="finite number"):
        Score([lambda prompt, answer, row: float("nan")])([rollout("x")])


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rules.py").write_text(
        "def short(prompt, answer, row):\n    return -len(answer)\n\ndef compare(prompt, a, b, row):\n    return 'a'\n"
    )
    assert as_spec("some/model") == "reward:some/model"
    assert as_spec("openai:m@http://x") == "openai:m@http://x"
    reward = save_reward(tmp_path / "reward", save_tiny(tmp_path / "base"))
    with ExitStack() as opened:
        assert open_score(["rule:my_rules:short"], opened)([rollout("four")]).scores == [-4.0]
        both = open_score([reward, "rule:my_rules:short"], opened, ensemble="min")
        found = both([rollout("four"), rollout("x")])
        assert found.scores == [-4.0, -1.0] or all(score is not None for score in found.scores)
        assert both.name.startswith("reward:")
        with pytest.raises(RequestError, match="compares two answers"):
            open_score(["rule:my_rules:compare"], opened)


class Marks:
    """An asker that answers from a list."""

    name = "openai:m@http://x"
    cache_key = "m"

    def __init__(self, replies: Sequence[Sequence[str]]) -> None:
        """
        Args:
            replies: to the questions of each call.
        """
        self._replies = list(replies)
        self.asked: list[Any] = []
        self.longest: list[int] = []

    def ask_all(self, questions: Sequence[Any], *, read: Any, max_tokens: int, **_: Any) -> list[Any]:
        self.asked += questions
        self.longest.append(max_tokens)
        return [read(reply) for reply in self._replies.pop(0)]


def test_a_chat_model_gives_marks() -> None:
    asker = Marks([["7", "Mark: 8.5", "none", "42"]])
    scorer = MarkingScorer(asker, criteria="Short is good.")  # type: ignore[arg-type]
    found = Score([scorer])([rollout(text) for text in ("a", "b", "c", "d")])
    assert found.scores == [7.0, 8.5, None, None]
    question = asker.asked[1][0]["content"]
    assert "Short is good." in question
    assert "why?" in question
    assert "[Answer]\nb" in question
    assert asker.longest == [16]


def test_a_judge_that_thinks_gets_room_for_it() -> None:
    """Within 16 tokens its reply has no answer."""
    asker = Marks([["7", "", "none", ""], ["9", "?"]])
    found = Score([MarkingScorer(asker, criteria="")])([rollout(text) for text in ("a", "b", "c", "d")])  # type: ignore[arg-type]
    assert found.scores == [7.0, 9.0, None, None]
    assert asker.longest == [16, 512]
    assert [question[0]["content"][-10:-8] for question in asker.asked[4:]] == ["\nb", "\nd"]


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        ("10", 10.0),
        ("I give it a 3.", 3.0),
        ("8/10", 8.0),
        ("8.5 / 10.", 8.5),
        ("7 out of 10", 7.0),
        ("10/10", 10.0),
        ("9/100", None),
        ("0", None),
        ("", None),
    ],
)
def test_marks_are_read(reply: str, mark: float | None) -> None:
    assert read_mark(reply) == mark


@pytest.mark.parametrize(
    ("spec", "answer", "expected"),
    [
        ("exact", "So 3 + 4 = 7.\nThe answer is 7", 1.0),
        ("exact", "The answer is 8", 0.0),
        ("key-fact", "it is seven, surely", 1.0),
        ("key-fact", "it is eight", 0.0),
        ("length:4", "one two three four", 0.0),
        ("length:4", "one two three four five six", -0.5),
        ("length:4", "word " * 40, -1.0),
        ("format:<a>.*</a>", "<a>7\n8</a>\n", 1.0),
        ("format:<a>.*</a>", "so: <a>7</a>", 0.0),
    ],
)
def test_rewards_that_ship(spec, answer, expected):
    row = {"answer": "7", "key_fact": ["seven"]}
    with ExitStack() as opened:
        assert open_score([spec], opened).of_items([("3 + 4?", answer, row)]).scores == [expected]


@pytest.mark.parametrize(("spec", "said"), [("length:soon", "give a number of words"), ("format:(", "not a regular")])
def test_a_rule_that_cannot_be_is_refused(spec, said):
    with ExitStack() as opened, pytest.raises(RequestError, match=said):
        open_score([spec], opened)


def test_a_reward_model_may_be_named_by_a_path(tmp_path: Path) -> None:
    folder = Path(save_reward(tmp_path / "rm", save_tiny(tmp_path / "base")))
    options: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    with ExitStack() as opened:
        given = open_rewards(folder, GRPOConfig(**options), opened)
        named = open_rewards(None, GRPOConfig(**options, reward_model=folder), opened)
        assert given([rollout("yes")]) == named([rollout("yes")])
