"""Every ingredient of an answer, of a score and of a reward is part of its key: changed once, it is made anew."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from preftune.evaluation.suites.asking import answer_side
from preftune.evaluation.two_models.answers import SHAPING, answer_rows
from preftune.evaluation.two_models.context import PairOfModels
from preftune.evaluation.two_models.pair_logps import score_both
from preftune.judges.cache import VerdictCache
from preftune.judges.reward_model import RewardModel
from preftune.training.online.scoring import row_of
from preftune.types import PreferencePair
from tests.evaluation.suites.scripted import Said, contest
from tests.judges.test_reward_model import tiny_reward_model
from tests.models.tiny import tiny_tokenizer as reward_tokenizer
from tiny import tiny_model, tiny_tokenizer

ROW = {
    "id": "a",
    "prompt": "What now?",
    "tools": [{"name": "weather"}],
    "chat_template_kwargs": {"think": False},
    "sampling": {"temperature": 0.5},
    "given": "This.",
    "key_fact": "rain",
}
CHANGED = {
    "prompt": "What then?",
    "tools": [{"name": "search"}],
    "chat_template_kwargs": {"think": True},
    "sampling": {"temperature": 0.7},
    "given": "That.",
}
_TEMPLATE = "{% if think %}THINK {% endif %}{% if tools %}{{ tools | tojson }}{% endif %}"


class Generator:
    def __init__(self) -> None:
        self.rows: list[dict] = []

    def __call__(self, side, prompts, rows):
        self.rows += rows
        return [Said(f"{side} used {(row.get('tools') or [{}])[0].get('name')}", 3) for row in rows]


@pytest.mark.parametrize("name", [*CHANGED, "settings"])
def test_answers_of_an_evaluation(tmp_path: Path, name: str) -> None:
    generate, path = Generator(), tmp_path / "generations.jsonl"
    answer_rows([ROW], generate=generate, path=path, settings={"model": 1})
    answer_rows([ROW], generate=generate, path=path, settings={"model": 1})
    assert len(generate.rows) == 2
    row = ROW if name == "settings" else {**ROW, name: CHANGED[name]}
    (answered,) = answer_rows([row], generate=generate, path=path, settings={"model": 2 if name == "settings" else 1})
    assert len(generate.rows) == 4
    assert answered.aligned == ("aligned used search" if name == "tools" else "aligned used weather")


def test_a_generator_sees_only_what_is_in_the_key(tmp_path: Path) -> None:
    assert {"prompt", *SHAPING} == set(CHANGED)
    generate, path = Generator(), tmp_path / "generations.jsonl"
    answer_rows([ROW], generate=generate, path=path, settings={})
    assert set(generate.rows[0]) == {"id", *SHAPING}
    answer_rows([{**ROW, "id": "b", "key_fact": "sun"}], generate=generate, path=path, settings={})
    assert len(generate.rows) == 2  # what a judge reads shapes no answer


def test_two_rows_that_differ_in_tools_alone_never_swap_answers(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    rows = [ROW, {**ROW, "id": "b", "tools": CHANGED["tools"]}]
    answer_rows(rows, generate=Generator(), path=path, settings={})
    (only,) = answer_rows(rows[1:], generate=Generator(), path=path, settings={})
    assert only.base == "base used search"


@pytest.mark.parametrize("name", [*CHANGED, "side"])
def test_answers_of_a_suite(tmp_path: Path, name: str) -> None:
    generate = Generator()
    ready = contest(tmp_path, generate=generate)
    row = ROW if name == "side" else {**ROW, name: CHANGED[name]}
    for side, asked in (("base", ROW), ("base", ROW), ("aligned" if name == "side" else "base", row)):
        answer_side(ready, side, [asked["prompt"]], [asked], path=tmp_path / "answers.jsonl")
    assert len(generate.rows) == 2


def _pair(answer: str = "yes", **more) -> PreferencePair:
    said = [[{"role": "assistant", "content": text}] for text in (answer, "no")]
    return PreferencePair([{"role": "user", "content": "q"}], *said, **more)


def test_scores_of_held_out_pairs(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = _TEMPLATE + tokenizer.chat_template
    model = tiny_model(seed=0)
    models = PairOfModels(model, tokenizer, lambda: nullcontext(model), tokenizer)
    pairs = [
        _pair(),
        _pair(chat_template_kwargs={"think": True}),
        _pair(tools=[{"name": "t"}]),
        _pair("yes!"),
    ]

    def scores(pairs, path, settings=None):
        return score_both(models, pairs, settings=settings or {}, path=path)[1].chosen_N.tolist()

    alone = [scores([pair], tmp_path / f"{n}.jsonl")[0] for n, pair in enumerate(pairs)]
    together = scores(pairs, tmp_path / "all.jsonl")
    assert together == pytest.approx(alone, abs=1e-4)
    assert len({round(score, 3) for score in alone}) == len(pairs)
    before = (tmp_path / "all.jsonl").read_bytes()
    assert scores(pairs, tmp_path / "all.jsonl") == together
    assert (tmp_path / "all.jsonl").read_bytes() == before
    tokenizer.chat_template += " "  # the same texts, other ids
    assert scores(pairs, tmp_path / "all.jsonl")[0] == pytest.approx(
        scores(pairs[:1], tmp_path / "template.jsonl")[0], abs=1e-4
    )
    scores(pairs, tmp_path / "all.jsonl", {"model": 2})
    assert len((tmp_path / "all.jsonl").read_bytes().splitlines()) == 3 * 2 * len(pairs)


def test_rewards_are_of_the_prompt_with_its_tools(tmp_path: Path) -> None:
    tokenizer = reward_tokenizer()
    tokenizer.chat_template = _TEMPLATE + tokenizer.chat_template
    scorer = RewardModel.held(tiny_reward_model(), tokenizer, name="reward", cache=VerdictCache(tmp_path))
    prompt = [{"role": "user", "content": "q"}]
    rows = [{}, {"tools": [{"name": "t"}]}, {"chat_template_kwargs": {"think": True}}]
    scores = scorer.score_all([(prompt, "a", row) for row in rows])
    assert len({round(score, 4) for score in scores}) == 3
    for form in ("conversations", "plain"):  # as `preftune reward` trains them
        own = RewardModel.held(tiny_reward_model(), tokenizer, name="reward", form=form)
        scores = own.score_all([(prompt, "a", row) for row in rows])
        assert len({round(score, 4) for score in scores}) == (3 if form == "conversations" else 1)


def test_fresh_answers_are_scored_with_the_tools_of_their_prompt() -> None:
    from preftune.generation.prompts import load_prompts

    (prompt,) = load_prompts([{"prompt": "What?", "tools": [{"name": "t"}]}]).prompts
    assert row_of(prompt)["tools"] == [{"type": "function", "function": {"name": "t"}}]
