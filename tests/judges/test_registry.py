from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from preftune.errors import RequestError
from preftune.judges.from_scores import ScoreJudge
from preftune.judges.llm_client import EndpointAsker, LocalAsker
from preftune.judges.protocol import Question, judge_all
from preftune.judges.registry import JudgeOptions, judge_kind, open_judge
from tests.judges.test_reward_model import saved
from tests.tiny import save_tiny

ABC = [Question("Hi?", "a", "bb"), Question("Hi?", "bb", "a"), Question("Hi?", "a", "a ")]


def test_every_form_becomes_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_rules.py").write_text(
        "def long(prompt, answer, row):\n    return len(answer.strip())\n\n"
        "def tidy(prompt, a, b, row):\n    return 'tie'\n"
    )
    monkeypatch.chdir(tmp_path)
    with ExitStack() as opened:
        kinds = {
            name: open_judge(spec, opened)
            for name, spec in {
                "exact": "exact",
                "shorter": "shorter",
                "scores": "rule:some_rules:long",
                "compares": "rule:some_rules:tidy",
                "reward": f"reward:{saved(tmp_path / 'rm')}",
                "local": f"local:{save_tiny(tmp_path / 'lm')}",
                "openai": "openai:m@http://127.0.0.1:9/v1",
            }.items()
        }
        assert judge_all(kinds["scores"].judge, ABC) == ["b", "a", "tie"]
        assert judge_all(kinds["compares"].judge, ABC) == ["tie"] * 3
        rewarded = judge_all(kinds["reward"].judge, ABC)
        assert [rewarded[0], rewarded[1]] in (["a", "b"], ["b", "a"], ["tie", "tie"])
        assert isinstance(kinds["reward"].judge, ScoreJudge)
        assert isinstance(kinds["local"].asker, LocalAsker)
        assert isinstance(kinds["openai"].asker, EndpointAsker)
        assert kinds["openai"].endpoint is not None
        assert {name: one.scorer is not None for name, one in kinds.items()} == {
            **dict.fromkeys(kinds, False),
            "scores": True,
            "reward": True,
        }


def test_scores_that_are_close_are_a_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"a": 1.0, "b": 1.2, "c": None}
    judge = ScoreJudge(lambda prompt, answer, row: scores[answer], tie_within=0.3)
    asked = [Question("p", "a", "b"), Question("p", "a", "c")]
    assert judge_all(judge, asked) == ["tie", None]
    assert judge_all(ScoreJudge(lambda p, a, r: scores[a], tie_within=0.1), asked) == ["b", None]
    with pytest.raises(RequestError, match="--tie_within -1"):
        ScoreJudge(lambda p, a, r: 0.0, tie_within=-1)


def test_a_rule_with_a_cache_key_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_rules.py").write_text(
        "calls = []\n\nclass Slow:\n    cache_key = 'slow-1'\n    symmetric = True\n\n"
        "    def __call__(self, prompt, a, b, row):\n        calls.append(1)\n        return 'a'\n"
    )
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with ExitStack() as opened:
            judge = open_judge("rule:slow_rules:Slow", opened, JudgeOptions())
            assert judge.judge.symmetric
            assert judge_all(judge.judge, ABC) == ["a"] * 3
    assert len(sys.modules["slow_rules"].calls) == 3


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("exakt", "Did you mean 'exact'?"),
        ("key_fact", "Did you mean 'key-fact'?"),
        ("openai_:m@http://h/v1", "Did you mean 'openai:m@http://h/v1'?"),
        ("rewrad:some/model", "Did you mean 'reward:some/model'?"),
        ("gpt-4", "There is no judge 'gpt-4'. Give openai:MODEL@BASE_URL"),
        ("local", "--judge local does not name a model"),
        ("rule:", "--judge rule: does not name a function"),
    ],
)
def test_typos(spec: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        judge_kind(spec)
    assert says in str(caught.value)


def test_naming_a_judge_loads_nothing() -> None:
    code = "import sys; from preftune.judges.registry import judge_kind; judge_kind('local:m')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
