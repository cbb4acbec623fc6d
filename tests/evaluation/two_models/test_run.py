from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.two_models.answers import answer_rows
from preftune.evaluation.two_models.run import evaluate_pairwise, value_of
from preftune.evaluation.two_models.types import outcome_word
from preftune.judges.rules import KeyFactJudge
from preftune.report.reading.run_files import read_run
from preftune.storage.jsonl import append_lines, read_lines, write_lines


class Said(NamedTuple):
    text: str
    tokens: int
    finished: bool = True


class Speaker:
    """Answers `base: <prompt>` with ten tokens, `<prompt>` with five, and counts."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[tuple[str, object]] = []
        self.fail_after = fail_after

    def __call__(self, side, prompts, rows):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += [(side, p) for p in prompts]
        return [Said(f"well then, base: {p}", 10) if side == "base" else Said(f"{p}", 5) for p in prompts]


ROWS = [{"prompt": f"fact{i}", "key_fact": [f"fact{i}"], "id": f"row-{i}"} for i in range(6)]


def test_three_files_and_a_true_summary(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    summary = evaluate_pairwise(
        ROWS,
        generate=Speaker(),
        judge=KeyFactJudge(),
        output_dir=tmp_path / "eval",
        settings={"model": "m"},
        progress=lambda *step: seen.append(step),
    )
    written = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary.to_dict()))
    assert (written["wins"], written["ties"], written["losses"], written["n"]) == (6, 0, 0, 6)
    assert (written["win_rate"], written["verdict"], written["judge"]) == (1.0, "shorter, not better", "key-fact")
    assert written["ci_low"] > 0.5
    assert written["mean_tokens"] == {"base": 10, "aligned": 5}
    assert written["key_fact_rate"]["base"]["rate"] == 1.0
    assert written["finished"] == {"base": 1.0, "aligned": 1.0}
    assert written["correctness_verdict"] == "only shorter"
    assert written["order_disagreements"] is None
    answers = read_lines(tmp_path / "eval" / "generations.jsonl")
    assert answers[0] == {
        "id": "row-0",
        "prompt": "fact0",
        "base": "well then, base: fact0",
        "aligned": "fact0",
        "tokens": {"base": 10, "aligned": 5},
        "finished": {"base": True, "aligned": True},
        "key": answers[0]["key"],
        "category": None,
    }
    verdicts = read_lines(tmp_path / "eval" / "verdicts.jsonl")
    assert [v["outcome"] for v in verdicts] == ["win"] * 6
    assert seen[-1] == ("judge", 6, 6)
    assert ("generate", 12, 12) in seen
    assert summary.verdict.sentence in " ".join(summary.sentences())
    assert not list((tmp_path / "eval").glob(".*"))


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    first = Speaker(fail_after=8)
    arguments = {"judge": KeyFactJudge(), "output_dir": tmp_path, "settings": {"model": "m"}, "chunk": 2}
    with pytest.raises(KeyboardInterrupt):
        evaluate_pairwise(ROWS, generate=first, **arguments)
    with open(tmp_path / "generations.jsonl", "a") as file:
        file.write('{"id": "torn", "prom')
    second = Speaker()
    evaluate_pairwise(ROWS, generate=second, **arguments)
    assert second.asked == [("aligned", "fact2"), ("aligned", "fact3"), ("aligned", "fact4"), ("aligned", "fact5")]
    assert not (tmp_path / "generations.partial.jsonl").exists()
    assert [r["id"] for r in read_lines(tmp_path / "generations.jsonl")] == [r["id"] for r in ROWS]
    third = Speaker()
    evaluate_pairwise(ROWS, generate=third, **arguments)
    assert third.asked == []
    other = Speaker()
    evaluate_pairwise(ROWS, generate=other, **{**arguments, "settings": {"model": "another"}})
    assert len(other.asked) == 12


class Failing:
    """A judge that keeps its outcomes, and fails at the fourth question."""

    cache_key, symmetric, name = "failing", True, "failing"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, prompt, answer_a, answer_b, row):
        self.asked += 1
        if self.asked == 4:
            raise RuntimeError("no more")
        return "a"


def test_a_judge_that_fails_leaves_the_earlier_verdict_on_the_same_answers(tmp_path: Path) -> None:
    arguments = {"generate": Speaker(), "output_dir": tmp_path, "settings": {"model": "m"}}
    evaluate_pairwise(ROWS, judge=KeyFactJudge(), **arguments)
    files = {name: (tmp_path / name).read_bytes() for name in ("summary.json", "verdicts.jsonl", "generations.jsonl")}
    with pytest.raises(Exception, match="no more"):
        evaluate_pairwise(ROWS, judge=Failing(), **arguments)
    assert files == {name: (tmp_path / name).read_bytes() for name in files}
    again = Failing()
    again.asked = 10
    evaluate_pairwise(ROWS, judge=again, **arguments)
    assert again.asked == 13, "three of six outcomes are known"
    assert not (tmp_path / "verdicts.partial.jsonl").exists()


def test_no_verdict_is_left_on_other_answers(tmp_path: Path) -> None:
    arguments = {"generate": Speaker(), "output_dir": tmp_path}
    evaluate_pairwise(ROWS, judge=KeyFactJudge(), settings={"model": "m"}, **arguments)
    with pytest.raises(Exception, match="no more"):
        evaluate_pairwise(ROWS, judge=Failing(), settings={"model": "another"}, **arguments)
    assert not (tmp_path / "summary.json").exists()
    run = read_run(tmp_path)
    assert not run.summary
    assert {answers.outcome for answers in run.answers} == {""}


def test_equal_prompts_are_answered_each_and_count_as_one_cluster(tmp_path: Path) -> None:
    rows = [{"prompt": "fact", "key_fact": "fact"}] * 3 + [{"prompt": "else", "key_fact": "else"}]
    speaker = Speaker()
    summary = evaluate_pairwise(rows, generate=speaker, judge=KeyFactJudge(), output_dir=tmp_path, settings={})
    assert len(speaker.asked) == 8
    assert (summary.win_rate.n, summary.win_rate.prompts) == (4, 2)
    assert [r["id"] for r in read_lines(tmp_path / "generations.jsonl")] == ["0", "1", "2", "3"]


def test_both_orders_must_agree(tmp_path: Path) -> None:
    orders = {
        ("b", "a"): "win",
        ("a", "b"): "loss",
        ("a", "a"): "tie",
        ("b", "b"): "tie",
        ("b", "tie"): "tie",
        ("tie", "tie"): "tie",
        ("b", None): "win",
        ("a", None): "loss",
    }
    for (base_first, aligned_first), outcome in orders.items():
        assert outcome_word(value_of(base_first, aligned_first)) == outcome

    def always_first(prompt, answer_a, answer_b, row):
        return "a"

    summary = evaluate_pairwise(ROWS, generate=Speaker(), judge=always_first, output_dir=tmp_path, settings={})
    assert summary.win_rate.ties == 6
    assert summary.order_disagreements == 6
    assert "contradicted itself on 6 of 6" in " ".join(summary.sentences())


def test_mostly_unreadable_verdicts_make_nothing_better(tmp_path: Path) -> None:
    class Stammering:
        """Prefers the aligned answer where it says anything: to one prompt in eight."""

        symmetric = True

        def judge_all(self, questions, *, again=False, progress=None):
            return ["b" if int(question.row["id"]) % 8 == 0 else None for question in questions]

    rows = [{"id": str(number), "prompt": f"Q{number}?", "category": "all"} for number in range(160)]
    arguments = {"generate": Speaker(), "output_dir": tmp_path, "settings": {}}
    summary = evaluate_pairwise(rows, judge=Stammering(), **arguments)
    assert (summary.win_rate.wins, summary.unjudged, summary.verdict.name) == (20, 140, "undecided")
    assert summary.categories["all"].unread == 140
    assert summary.length_controlled is None or summary.length_controlled.n == 20
    assert any("no readable verdict" in step for step in summary.next_steps())


def test_equal_answers_are_a_tie_that_no_one_is_asked_about(tmp_path: Path) -> None:
    def never(prompt, answer_a, answer_b, row):
        raise AssertionError

    summary = evaluate_pairwise(
        [{"prompt": "p"}],
        generate=lambda side, prompts, rows: [Said("same", 1, finished=False)],
        judge=never,
        output_dir=tmp_path,
        settings={},
    )
    assert summary.win_rate.ties == 1
    assert summary.correctness.name == "not measured"
    assert "Only 0% of the aligned model's answers ended by themselves" in " ".join(summary.sentences())


class Paid:
    """A judge whose verdicts may be kept, which counts what it is asked. It prefers the answer that begins with "well";
    if it is symmetric, the second one.
    """

    cache_key = "paid-v1"

    def __init__(self, *, symmetric: bool = True) -> None:
        self.symmetric, self.calls = symmetric, 0

    def __call__(self, prompt: object, answer_a: str, answer_b: str, row: object) -> str:
        self.calls += 1
        return "b" if self.symmetric or answer_a.startswith("well") else "a"


def test_judgements_are_kept_only_for_a_judge_that_names_its_version(tmp_path: Path) -> None:
    paid = Paid()

    for _ in range(2):
        evaluate_pairwise(ROWS, generate=Speaker(), judge=paid, output_dir=tmp_path, settings={})
    assert paid.calls == 6
    paid.cache_key = "paid-v2"
    evaluate_pairwise(ROWS, generate=Speaker(), judge=paid, output_dir=tmp_path, settings={})
    assert paid.calls == 12


def test_a_rule_that_reads_the_row_is_asked_anew_when_the_row_changes(tmp_path: Path) -> None:
    class Reads:
        cache_key = "reads-v1"
        symmetric = True

        def __call__(self, prompt, answer_a, answer_b, row):
            return row["better"]

    for better, wins in (("b", 6), ("a", 0)):
        rows = [{**row, "better": better} for row in ROWS]
        found = evaluate_pairwise(rows, generate=Speaker(), judge=Reads(), output_dir=tmp_path, settings={})
        assert found.win_rate.wins == wins


def test_files_of_another_version_are_taken_up_or_left_alone(tmp_path: Path) -> None:
    paid = Paid()

    def evaluate() -> int:
        asked = paid.calls
        found = evaluate_pairwise(ROWS, generate=Speaker(), judge=paid, output_dir=tmp_path, settings={})
        assert found.win_rate.wins == 6
        return paid.calls - asked

    evaluate()
    verdicts = read_lines(tmp_path / "verdicts.jsonl")
    for line in verdicts:
        del line["unjudged"]
    verdicts[0]["of_a_later_version"] = 1
    verdicts[1]["outcome"] = "maybe"
    del verdicts[2]["outcome"]
    verdicts[3]["base_first"] = ["a"]
    write_lines(tmp_path / "verdicts.jsonl", verdicts)
    assert evaluate() == 3
    answers = read_lines(tmp_path / "generations.jsonl")
    answers[0]["base"], answers[1]["tokens"]["aligned"] = None, "many"
    write_lines(tmp_path / "generations.jsonl", answers)
    assert evaluate() == 0


def damage(path: Path, *changes: tuple[str, str]) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    for place, (before, after) in enumerate(changes):
        assert before in lines[place]
        lines[place] = lines[place].replace(before, after)
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("sealed", [True, False])
def test_damaged_lines_are_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, sealed: bool) -> None:
    paid = Paid(symmetric=False)
    verdicts, answers = tmp_path / "verdicts.jsonl", tmp_path / "generations.jsonl"

    def evaluate() -> tuple[int, int]:
        asked, speaker = paid.calls, Speaker()
        found = evaluate_pairwise(ROWS, generate=speaker, judge=paid, output_dir=tmp_path, settings={})
        assert found.win_rate.wins == 6
        for path in [] if sealed else [verdicts, answers]:  # as earlier versions wrote them
            write_lines(path, read_lines(path))
        return len(speaker.asked), paid.calls - asked

    evaluate()
    assert evaluate() == (0, 0)
    damage(
        verdicts,
        ('"value": 1.0', '"value": 0.0'),
        ('"outcome": "win"', '"outcome": "loss"'),
        ('"base_first": "b"', '"base_first": "a"'),
        ('"unjudged": false', '"unjudged": "no"'),
        ('"unjudged": false', '"unjudged": true'),
    )
    assert evaluate() == (0, 10)
    assert caplog.text.count(f"{verdicts} holds 5 damaged lines") == 1
    damage(answers, ('"base": 10', '"base": -5'), ('"aligned": 5', f'"aligned": 1{"0" * 30}'))
    assert evaluate() == ((4, 0) if sealed else (2, 0))
    if sealed:
        damage(answers, ("base: fact0", "base: fact9"), ('"base": "well then, base: fact1", "aligned"', '"base"'))
        assert evaluate() == (4, 0)
        assert caplog.text.count(f"{answers} holds 2 damaged lines") == 1


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no rows"):
        answer_rows([], generate=Speaker(), path=tmp_path / "g.jsonl", settings={})
    with pytest.raises(DatasetError, match=r"Row 1 has no 'prompt'.*'question'"):
        answer_rows([ROWS[0], {"question": "?"}], generate=Speaker(), path=tmp_path / "g.jsonl", settings={})
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="Nothing can be written to"):
        evaluate_pairwise(ROWS, generate=Speaker(), judge=KeyFactJudge(), output_dir=tmp_path / "file", settings={})


def test_lines_survive_odd_text_and_torn_ends(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    odd = [{"text": "line\u2028separator \u0085 \ud83d lone \U0001f600\nnew"}]
    write_lines(path, odd)
    assert read_lines(path) == odd
    with open(path, "a") as file:
        file.write('{"torn": ')
    append_lines(path, [{"after": 1}])
    assert read_lines(path) == [*odd, {"after": 1}]


def test_everything_but_generation_imports_without_torch() -> None:
    modules = "statistics.intervals judges.rules evaluation.two_models.run storage.jsonl generation.generate".split()
    code = "import sys; " + "".join(f"import preftune.{m}; " for m in modules)
    subprocess.run(
        [sys.executable, "-c", code + "import preftune.models; assert 'torch' not in sys.modules"], check=True
    )
