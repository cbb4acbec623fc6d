"""`preftune sample`: from prompts to samples, with a model on disk and with a server on the loopback."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from preftune.evaluation.labelling.sample import differences, read_samples
from tests.cli.command import write_rows
from tests.cli.endpoints import kill_when
from tests.generation.chat_server import refusal, serving

QUESTIONS = ["Hi?", "Why?", "Where to?"]


@pytest.fixture
def server():
    with serving(lambda body: f"answer {body['seed'] % 1000}") as chat:
        yield chat


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(QUESTIONS) + "\n")
    return str(path)


def test_a_model_on_disk(preftune, tiny_model: str, pairs_file: str, tmp_path: Path) -> None:
    words = [
        "sample",
        "--model",
        tiny_model,
        "--data",
        pairs_file,
        "-k",
        2,
        "--temperature",
        0.9,
        "--max_new_tokens",
        4,
    ]
    out = tmp_path / "samples.jsonl"
    first = preftune(*words, "-o", out)
    assert first.code == 0, first.err
    assert "8 distinct prompts" in first.err
    assert "(8 rows repeat another)" in first.err
    assert "16 completions of 8 prompts (2 each)" in first.out
    assert f"preftune label {out} --judge JUDGE" in first.out
    rows = read_samples(out)
    assert len(rows) == 16
    assert rows[0]["prompt"][0]["role"] == "user"
    again = preftune(*words, "-o", out)
    assert again.code == 0
    assert "0 of them new" in again.out
    other = preftune(*words, "-o", out, "--temperature", 0.5)
    assert other.code == 2
    assert "temperature was 0.9 and is 0.5" in other.message


def test_lines_become_turns_for_a_model_with_a_template(preftune, tiny_model: str, lines: str, tmp_path: Path) -> None:
    words = ["sample", "--model", tiny_model, "--data", lines, "-k", 1, "--max_new_tokens", 2]
    assert preftune(*words, "-o", tmp_path / "chat.jsonl").code == 0
    assert read_samples(tmp_path / "chat.jsonl")[0]["prompt"][0]["role"] == "user"
    assert preftune(*words, "-o", tmp_path / "text.jsonl", "--prompts_as", "text").code == 0
    assert {row["prompt"] for row in read_samples(tmp_path / "text.jsonl")} == set(QUESTIONS)


def test_an_endpoint(preftune, server, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "q.jsonl", [{"question": q, "fact": q[0]} for q in QUESTIONS])
    out = tmp_path / "s.jsonl"
    words = ["sample", "--model", server.spec(), "--data", data, "--columns", "prompt=question", "--keep", "fact"]
    result = preftune(*words, "-k", 2, "-o", out, "--price_in", 1, "--price_out", 1000, "--max_new_tokens", 50)
    assert result.code == 0, result.err
    assert "about to make 6 calls, with about 10 input and 300 output tokens, about 0.30" in result.err
    assert "used 6 calls, 60 input and 12 output tokens, 0.01 at the prices given" in result.err
    rows = read_samples(out)
    assert len(rows) == 6 == len(server.asked)
    assert {row["row"]["fact"] for row in rows} == {"H", "W"}
    assert "127.0.0.1" in (tmp_path / "s.jsonl.manifest.json").read_text()


def test_a_cap_is_reported_before_the_first_call(preftune, server, lines: str, tmp_path: Path) -> None:
    words = ["sample", "--model", server.spec(), "--data", lines, "-o", tmp_path / "s.jsonl", "-k", 4]
    result = preftune(*words, "--max_calls", 11)
    assert result.code == 2
    assert "takes 12 calls, but --max_calls is 11; no call was made" in result.message
    assert server.asked == []


def test_killed_and_resumed_nothing_that_came_is_asked_again(preftune, server, lines: str, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    words = ["sample", "--model", server.spec(), "--data", lines, "-o", str(out), "-k", "8", "--concurrency", "3"]
    server.pause = 0.05
    kill_when(lambda: len(server.answered) >= 9, words, server)
    there = read_samples(out)
    assert 0 < len(there) < 24
    server.asked.clear()
    result = preftune(*words)
    assert result.code == 0, result.err
    assert len(server.asked) == 24 - len(there)
    assert len(read_samples(out)) == 24
    assert all(json.loads(line) for line in out.read_text().splitlines())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-k", "0"], "-k 0: give at least 1"),
        (["--temperature", "0"], "--temperature 0 gives the same completion 4 times"),
        (["--limit", "0"], "--limit 0"),
        (["--top_p", "2"], "--top_p 2"),
        (["--temprature", "1"], "Did you mean --temperature"),
        (["--concurrency", "2"], "--concurrency has no effect unless --model is openai:NAME@BASE_URL"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--columns", "prompt"], "write canonical=yours"),
        (["-k", "many"], "invalid int value"),
    ],
)
def test_wrong_requests(preftune, tiny_model: str, lines: str, tmp_path: Path, words: list[str], says: str) -> None:
    if words[0] == "--columns":
        lines = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Hi?"}])
    result = preftune("sample", "--model", tiny_model, "--data", lines, "-o", tmp_path / "s.jsonl", *words)
    assert result.code == 2
    assert says in result.message
    assert result.message.startswith("preftune: ")
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dtype", "float32"], "--dtype has no effect unless --model is on this machine"),
        (["--prompts_as", "text"], "an endpoint takes conversations only"),
        (["--price_in", "1"], "belong together"),
        (["--timeout", "0"], "--timeout 0 must be above 0"),
        (["--api_key_env", "NOT_THERE"], "--api_key_env NOT_THERE"),
    ],
)
def test_wrong_requests_of_an_endpoint(preftune, server, lines, tmp_path: Path, words: list[str], says: str) -> None:
    result = preftune("sample", "--model", server.spec(), "--data", lines, "-o", tmp_path / "s.jsonl", *words)
    assert result.code == 2
    assert says in result.message
    assert server.asked == []


def test_missing_things_are_named(preftune, tiny_model: str, lines: str, server, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    missing = preftune("sample", "--model", tiny_model, "--data", tmp_path / "promts.txt", "-o", out)
    assert missing.code == 2
    assert "Did you mean" in missing.message
    model = preftune("sample", "--model", server.spec("tiny-juge"), "--data", lines, "-o", out)
    assert model.code == 2
    assert "Did you mean 'tiny-judge'" in model.message
    server.list_fault = refusal(401, "no key")
    closed = preftune("sample", "--model", server.spec(), "--data", lines, "-o", out)
    assert "refuses access (401: no key). Set the key in the environment variable OPENAI_API_KEY" in closed.message
    folder = preftune("sample", "--model", tiny_model, "--data", lines, "-o", tmp_path)
    assert "is a folder" in folder.message


@pytest.mark.parametrize(("command", "kept"), [("sample", "x.jsonl"), ("eval", "x/generations.jsonl")])
def test_a_stop_before_the_first_answer_promises_no_file(
    command: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that the completions were kept in a file that does not exist."""
    from preftune.cli.commands import eval as evaluation
    from preftune.cli.commands import sample as sampling

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    def stopped() -> str:
        asked = Namespace(output=str(tmp_path / "x.jsonl"), k=1, seed=0)
        sample, nothing = partial(sampling._sample, asked, cast(Any, None)), cast(Any, None)
        work = sample if command == "sample" else partial(evaluation._evaluated, asked, tmp_path / "x")
        with pytest.raises(KeyboardInterrupt) as caught:
            work(nothing)
        return str(caught.value)

    monkeypatch.setattr("preftune.evaluation.labelling.sample.sample", stop)
    monkeypatch.setattr(evaluation, "_evaluate", stop)
    assert "nothing is kept" in stopped()
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_text("{}\n")
    assert "so far are kept in" in stopped()


def test_a_setting_of_several_models_is_named_once() -> None:
    before, now = ({side: {"max_new_tokens": n} for side in ("base", "aligned", "gold")} for n in (8, 4))
    assert differences({**before, "seed": 0}, {**now, "seed": 1}) == [
        "max_new_tokens was 8 and is 4",
        "seed was 0 and is 1",
    ]
