"""Judgements between won and lost: probabilities, shares of votes, log-probabilities of two letters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from preftune.evaluation.labelling.scoring import ByComparison
from preftune.evaluation.two_models.run import evaluate_pairwise
from preftune.evaluation.two_models.types import JudgedRow
from preftune.generation.endpoint.client import Endpoint, EndpointName
from preftune.generation.lazy_model import ModelSource
from preftune.judges.cache import VerdictCache
from preftune.judges.llm_client import EndpointAsker, LocalAsker, read_logprobs, with_logprobs
from preftune.judges.probability_judge import ProbabilityJudge, read_choice
from preftune.judges.protocol import Question, both_orders, decided, swapped_verdict
from preftune.statistics.intervals import win_rate
from preftune.statistics.length_control import length_controlled
from preftune.storage.jsonl import read_lines, write_lines
from tests.evaluation.suites.scripted import Said
from tests.generation.chat_server import ChatServer, Fault, completion, refusal, serving
from tests.tiny import tiny_model, tiny_tokenizer


def test_two_orders_are_averaged_and_words_must_agree() -> None:
    assert both_orders(0.9, 0.3) == pytest.approx(0.8)
    assert both_orders("a", "b") == 1.0
    assert both_orders("a", "a") == 0.5
    assert both_orders("a", "tie") == 0.5  # in words: no agreement
    assert both_orders("a", 0.5) == 0.75
    assert [decided(v) for v in (0.51, 0.5, 0.0, "tie", None)] == ["a", "tie", "b", "tie", None]
    assert swapped_verdict(0.75) == 0.25


def generate(side: str, prompts: list[Any], rows: list[Any]) -> list[Said]:
    return [Said(f"{side} {prompt}", 2) for prompt in prompts]


ROWS = [{"id": str(n), "prompt": f"q{n}"} for n in range(8)]


def evaluate(folder: Path, judge: Any) -> Any:
    return evaluate_pairwise(ROWS, generate=generate, judge=judge, output_dir=folder, settings={"v": 1})


def test_the_win_rate_is_the_mean_of_probabilities(tmp_path: Path) -> None:
    """Votes of three: the aligned model has two of three on even prompts, one of three on odd ones but one."""

    def votes(prompt: str, answer_a: str, answer_b: str, row: dict[str, Any]) -> np.float64:
        n = int(prompt[1:])
        aligned = 0.0 if n == 7 else (2 if n % 2 == 0 else 1) / 3
        return np.float64(aligned if answer_a.startswith("aligned") else 1 - aligned)

    summary = evaluate(tmp_path, votes)
    rate = summary.win_rate
    assert rate.win_rate == pytest.approx((4 * 2 / 3 + 3 / 3 + 0) / 8)
    assert (rate.wins, rate.ties, rate.losses) == (4, 0, 4)
    lines = read_lines(tmp_path / "verdicts.jsonl")
    assert [line["outcome"] for line in lines[:2]] == ["win", "loss"]
    assert lines[0]["value"] == pytest.approx(2 / 3)
    assert lines[0]["base_first"] == pytest.approx(1 / 3)
    assert summary.position_bias.disagreed == 0


def test_graded_verdicts_are_kept_and_earlier_lines_are_read(tmp_path: Path) -> None:
    asked: list[str] = []

    class Judge:
        cache_key = "graded-1"
        symmetric = True

        def __call__(self, prompt: str, answer_a: str, answer_b: str, row: dict[str, Any]) -> float:
            asked.append(prompt)
            return 0.25

    assert evaluate(tmp_path, Judge()).win_rate.win_rate == 0.75
    assert len(asked) == 8
    assert evaluate(tmp_path, Judge()).win_rate.win_rate == 0.75
    assert len(asked) == 8
    path = tmp_path / "verdicts.jsonl"
    lines = read_lines(path)
    earlier = [{k: v for k, v in line.items() if k != "value"} | {"base_first": "b"} for line in lines]
    write_lines(path, earlier)
    assert evaluate(tmp_path, Judge()).win_rate.win_rate == 1.0  # outcome "win", in words only
    assert len(asked) == 8
    write_lines(path, [{**lines[0], "value": 7.0}, *lines[1:]])  # a torn value is asked for again
    assert evaluate(tmp_path, Judge()).win_rate.win_rate == 0.75
    assert len(asked) == 9
    assert JudgedRow.from_dict({"id": "x", "outcome": "loss", "base_first": "a", "aligned_first": None}).value == 0.0


def test_probabilities_narrow_the_interval_and_the_length_control_takes_them() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.normal(40, 100, 400)
    chance = 1 / (1 + np.exp(-(0.3 + 0.8 * np.tanh(lengths / lengths.std()))))
    words = (rng.random(400) < chance).astype(float)
    graded, plain = win_rate(chance), win_rate(words)
    assert graded.ci_high - graded.ci_low < 0.5 * (plain.ci_high - plain.ci_low)
    exact = length_controlled(chance, lengths)
    assert exact.win_rate == pytest.approx(1 / (1 + math.exp(-0.3)), abs=0.01)
    assert exact.ci_high - exact.ci_low < 0.6 * ((noisy := length_controlled(words, lengths)).ci_high - noisy.ci_low)


def test_labelling_takes_probabilities() -> None:
    from preftune.evaluation.labelling.label import LabelCounts
    from preftune.evaluation.labelling.scoring import Group

    def judge(prompt: str, answer_a: str, answer_b: str, row: Any) -> float:
        return 0.8 if answer_a < answer_b else 0.4  # a little for the second place

    group = Group(id="1", prompt="q", answers=("x", "y"), judged=("x", "y"), samples=(0, 1), row={}, carried={})
    (rated,) = ByComparison(judge).rate([group], LabelCounts(), None)
    assert rated.comparisons == {(0, 1): pytest.approx(0.7)}
    assert rated.scores == pytest.approx([0.7, 0.3])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda body: "A") as server:
        yield server


Open: TypeAlias = Callable[[ChatServer], ProbabilityJudge]


@pytest.fixture
def judge_at(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as opened:
        yield lambda server: ProbabilityJudge(
            EndpointAsker(
                opened.enter_context(Endpoint(EndpointName.parse(server.spec()))),
                opened.enter_context(closing(VerdictCache(tmp_path))),
            )
        )


def with_alternatives(**probabilities: float) -> Fault:
    reply = json.loads(completion("A"))
    listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in probabilities.items()]
    content = [{**listed[0], "top_logprobs": listed}]
    reply["choices"][0] |= {"logprobs": {"content": content}, "finish_reason": "length"}
    return Fault(200, json.dumps(reply))


def test_an_endpoint_gives_probabilities(server: ChatServer, judge_at: Open) -> None:
    server.check = lambda body: with_alternatives(A=0.6, B=0.2, The=0.1)
    judge = judge_at(server)
    assert judge.judge_all([Question("q", "x", "y")]) == [pytest.approx(0.75)]
    assert (server.asked[0]["logprobs"], server.asked[0]["top_logprobs"], server.asked[0]["max_tokens"]) == (True, 5, 1)
    assert judge_at(server).gives_probabilities(Question("q", "x", "y"))
    assert len(server.asked) == 1  # kept on disk
    server.check = lambda body: with_alternatives(The=0.9)
    assert judge.judge_all([Question("other", "x", "y")]) == [None]


def test_an_endpoint_that_refuses_log_probabilities(server: ChatServer, judge_at: Open, caplog: Any) -> None:
    server.check = lambda body: refusal(400, "top_logprobs is not supported") if "top_logprobs" in body else None
    judge = judge_at(server)
    assert judge.judge_all([Question("q", "x", "y")]) == ["a"]
    assert not judge.gives_probabilities(Question("q", "x", "y"))
    assert [sorted({"logprobs", "top_logprobs"} & set(body)) for body in server.asked] == [
        ["logprobs", "top_logprobs"],
        [],
    ]
    assert "does not return log-probabilities" in caplog.text


def test_reading_a_choice() -> None:
    assert read_choice(with_logprobs({" A": math.log(0.3), "a": math.log(0.3), "B": math.log(0.2)})) == pytest.approx(
        0.75
    )
    assert read_choice("B.") == "b"
    assert read_choice("Both are fine") is None
    assert read_choice(with_logprobs({"The": -0.1})) is None
    assert read_choice('{"logprobs": 3}') is None


def test_a_model_on_this_machine_gives_probabilities(tmp_path: Path) -> None:
    """The log-probabilities of the first token are those of the model, and known ones need no model."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with closing(VerdictCache(tmp_path)) as cache:
        asker = LocalAsker(ModelSource.held(model, tokenizer, name="tiny"), cache)
        question = [{"role": "user", "content": "Which one?"}]
        (found,) = asker.ask_all([question], read=read_logprobs, kind="k", max_tokens=1, logprobs=True)
        ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.inference_mode():
            exact = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), dim=-1)
        assert found is not None
        best = int(exact.argmax())
        assert found[tokenizer.decode([best])] == pytest.approx(float(exact[best]), abs=1e-4)
        assert sum(math.exp(value) for value in found.values()) <= 1 + 1e-6
        gone = ModelSource.held(tiny_model(), tiny_tokenizer(), name="tiny")
        gone._model = None
        again = LocalAsker(gone, cache).ask_all([question], read=read_logprobs, kind="k", max_tokens=1, logprobs=True)
        assert again == [found]
