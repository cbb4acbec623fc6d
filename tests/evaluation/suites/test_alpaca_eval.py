from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.suites import run_suite
from preftune.judges.pairwise_llm import ChatJudge
from tests.evaluation.suites.scripted import ScriptedJudge, Speaker, contest, last

ROWS = [
    {"instruction": f"Say {i}.", "output": f"reference {i}", "generator": "old-model", "dataset": "selfinstruct"}
    for i in range(4)
]


def answer(side: str, prompt: Any) -> str:
    return f"{side} says {last(prompt)}"


class Preferring:
    """Prefers by the number in the instruction; reads which side it is shown."""

    cache_key = "preferring-1"
    name = "preferring"

    def __init__(self, order: dict[int, list[str]]) -> None:
        self.order = order
        self.asked = 0

    def __call__(self, prompt: Any, answer_a: str, answer_b: str, row: Any) -> str:
        self.asked += 1
        place = self.order[int(last(prompt)[4])]
        a, b = (next(i for i, name in enumerate(place) if name in text) for text in (answer_a, answer_b))
        return "tie" if a == b else "ab"[a > b]


# best first, for the instructions 0 to 3
ORDER = {
    0: ["aligned", "reference", "base"],
    1: ["aligned", "base", "reference"],
    2: ["base", "reference", "aligned"],
    3: ["reference", "aligned", "base"],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps(ROWS))
    return path


def test_rates_against_the_baseline_and_the_reference(data: Path, tmp_path: Path) -> None:
    result = run_suite("alpaca-eval", contest(tmp_path, generate=Speaker(answer), judge=Preferring(ORDER)), data=data)
    # aligned beats base on 0, 1, 3
    assert result.figures["headline"]["aligned"] == 0.75
    assert result.figures["win_rate"]["wins"] == 3
    # against the references: base wins on 1 and 2, aligned on 0 and 1
    against = next(one for one in result.figures["comparisons"] if "old-model" in one["name"])
    assert (against["base"], against["aligned"], against["difference"]) == (0.5, 0.5, 0.0)
    assert result.figures["length_controlled"] is None
    assert any("too few" in note for note in result.notes)
    assert json.loads((tmp_path / "eval" / "alpaca-eval" / "summary.json").read_text())["suite"] == "alpaca-eval"


def test_files_are_those_of_the_package(data: Path, tmp_path: Path) -> None:
    """alpaca_eval reads both output files with pandas and merges them on the instruction."""
    run_suite("alpaca-eval", contest(tmp_path, generate=Speaker(answer), judge=Preferring(ORDER)), data=data)
    folder = tmp_path / "eval" / "alpaca-eval"
    ours, theirs = (pandas.read_json(folder / name) for name in ("model_outputs.json", "baseline_outputs.json"))
    assert set(ours.columns) == {"instruction", "output", "generator", "dataset", "datasplit"}
    assert list(ours["generator"].unique()) == ["aligned-model"]
    merged = pandas.merge(theirs, ours, on=["instruction"], suffixes=("_1", "_2"))
    assert len(merged) == 4
    annotations = pandas.read_json(folder / "annotations.json")
    assert list(annotations["output_2"]) == list(merged["output_2"])
    assert list(annotations["preference"]) == [2.0, 2.0, 1.0, 2.0]
    # its generalised win rate: the mean preference minus one
    assert (annotations["preference"] - 1).mean() == 0.75
    assert set(annotations["generator_1"]) == {"base-model"}
    assert {"output_1", "annotator", "datasplit"} <= set(annotations.columns)


def test_a_tie_is_one_and_a_half_and_a_second_run_asks_nothing(data: Path, tmp_path: Path) -> None:
    first = Preferring(ORDER | {2: ["says Say", "reference"]})  # both models' answers alike
    run_suite("alpaca-eval", contest(tmp_path, generate=Speaker(answer), judge=first), data=data)
    annotations = json.loads((tmp_path / "eval" / "alpaca-eval" / "annotations.json").read_text())
    assert [one["preference"] for one in annotations] == [2.0, 2.0, 1.5, 2.0]
    again, speaker = Preferring(first.order), Speaker(answer)
    run_suite("alpaca-eval", contest(tmp_path, generate=speaker, judge=again), data=data)
    assert (again.asked, speaker.asked) == (0, [])


def test_length_is_controlled_where_there_is_enough(tmp_path: Path) -> None:
    """The longer answer always wins, and the aligned model's is longer: nothing is left at equal length."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Question {i}"}) + "\n" for i in range(120)))

    def long(side: str, prompt: Any) -> str:
        number = int(last(prompt).split()[-1])
        # more often longer, by amounts that vary
        extra = (number % 7) - 2
        return "word " * (10 + (extra if side == "aligned" else 0))

    def longer(prompt: Any, answer_a: str, answer_b: str, row: Any) -> str:
        return "tie" if len(answer_a) == len(answer_b) else "ab"[len(answer_b) > len(answer_a)]

    result = run_suite("alpaca-eval", contest(tmp_path, generate=Speaker(long), judge=longer), data=path)
    controlled, plain = result.comparisons[0], result.comparisons[1]
    assert controlled.name == "win rate at equal length"
    assert plain.aligned > 0.6
    assert abs(controlled.aligned - 0.5) < 0.15 < plain.aligned
    assert result.figures["letters"]["aligned"] > result.figures["letters"]["base"]


def test_the_hubs_own_file(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data the instructions alone; by the hub's name with the reference outputs of version 2."""
    asked = []

    def download(repo: str, file: str, **options: Any) -> str:
        asked.append((repo, file, options["repo_type"]))
        return str(data)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    bare = run_suite("alpaca-eval", contest(tmp_path / "a", generate=Speaker(answer), judge=Preferring(ORDER)))
    full = run_suite(
        "alpaca-eval",
        contest(tmp_path / "b", generate=Speaker(answer), judge=Preferring(ORDER)),
        data="tatsu-lab/alpaca_eval",
    )
    assert asked == [
        ("tatsu-lab/alpaca_eval", "alpaca_eval.json", "dataset"),
        ("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json", "dataset"),
    ]
    assert not any("against" in one.name for one in bare.comparisons)
    assert any("against old-model" in one.name for one in full.comparisons)


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(DatasetError, match=r"could not be fetched from the hub .*no route to host.*--suite_data"):
        run_suite("alpaca-eval", contest(tmp_path, generate=Speaker(answer), judge=Preferring(ORDER)))


def test_a_judge_is_needed_and_instructions(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="needs a judge that compares"):
        run_suite("alpaca-eval", contest(tmp_path, generate=Speaker(answer)))
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "?"}\n')
    with pytest.raises(DatasetError, match="has no 'instruction' or 'prompt'"):
        run_suite("alpaca-eval", contest(tmp_path, generate=Speaker(answer), judge=Preferring(ORDER)), data=path)


def test_outcomes_are_probabilities_where_the_judge_gives_them(data: Path, tmp_path: Path) -> None:
    """The judge gives the aligned answer 0.9 in the first place and 0.7 in the second."""

    def first_token(asked: str) -> dict[str, float]:
        first = asked.index("aligned says") < asked.index("base says") if "base says" in asked else True
        chance = 0.9 if first else 0.3
        return {"A": math.log(chance), "B": math.log(1 - chance)}

    instructions = json.loads(data.read_text())
    data.write_text(json.dumps([{k: v for k, v in row.items() if k != "output"} for row in instructions]))
    judge = ScriptedJudge(lambda asked: '{"better": "A"}', first_token=first_token)
    asked = contest(tmp_path, generate=Speaker(answer), judge=Preferring(ORDER), endpoint=judge)
    result = run_suite("alpaca-eval", asked, data=data)
    assert result.figures["win_rate"]["win_rate"] == pytest.approx(0.8)
    annotations = json.loads((tmp_path / "eval/alpaca-eval/annotations.json").read_text())
    assert [one["preference"] for one in annotations] == pytest.approx([1.8] * 4)
    assert any("judge's probabilities" in note for note in result.notes)
    plain = ScriptedJudge(lambda asked: "A")
    asked = contest(tmp_path / "plain", generate=Speaker(answer), judge=Preferring(ORDER), endpoint=plain)
    result = run_suite("alpaca-eval", asked, data=data)
    assert any("returned no log-probabilities" in note for note in result.notes)
    assert result.figures["win_rate"]["wins"] == 3
    assert len(plain.asked) == 1


def test_the_users_criteria_reach_the_judge_that_gives_probabilities(data: Path, tmp_path: Path) -> None:
    judge = ScriptedJudge(lambda asked: "A", first_token=lambda asked: {"A": math.log(0.6), "B": math.log(0.4)})
    asked = contest(tmp_path, generate=Speaker(answer), endpoint=judge)
    assert asked.asker is not None
    chat = ChatJudge(asked.asker, criteria="Better is what rhymes.")
    run_suite("alpaca-eval", replace(asked, judge=chat), data=data)
    assert judge.asked
    assert all("Better is what rhymes." in messages[0]["content"] for messages in judge.asked)
    assert all("Reply with one letter" in messages[0]["content"] for messages in judge.asked)
