"""A run directory is read however broken it is, and says in words what is not there."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from preftune.errors import RequestError
from preftune.report.markdown import markdown_report
from preftune.report.png import pictures
from preftune.report.reading.run_files import Answers, Run, different_names, read_run
from preftune.report.run.curves import lines_of, thinned
from preftune.report.run.headline import asked, cautions, example, headline, judged_unlike, missing_files, next_steps
from preftune.report.run.page import run_page
from preftune.report.run.settings import install
from preftune.report.write import write_report
from preftune.storage.untrusted_json import number, prompt_text
from tests.report.made_up_run import verdicts, write, write_lines, write_run

WHOLE = ["run.json", "metrics.jsonl", "audit.json", "samples.jsonl", "guard.jsonl", "eval/summary.json",
         "eval/generations.jsonl", "eval/verdicts.jsonl", "eval/xstest/summary.json"]  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a-run")


@pytest.fixture
def one_curve(run_folder: Path) -> Path:
    """A run whose page has one curve: the charts are nearly all of a page's time."""
    write_lines(run_folder / "metrics.jsonl", [{"step": step, "loss": 1 / step} for step in range(1, 4)])
    return run_folder


def test_a_whole_run(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert run.name == "a-run"
    assert run.missing == {}
    assert len(run.answers) == 24
    assert [answer.outcome for answer in run.answers[:4]] == ["win", "tie", "loss", "win"]
    assert run.answers[0].category == "ordinary"
    assert run.answers[0].prompt == "Question number 0 about zebras?"
    assert list(run.suites) == ["xstest"]


@pytest.mark.parametrize("file", WHOLE)
def test_every_file_may_be_missing(one_curve: Path, file: str) -> None:
    (one_curve / file).unlink()
    run = read_run(one_curve)
    assert file.endswith("xstest/summary.json") or run.missing == {file: "is missing"}
    page = run_page([run])
    assert ("run.json is missing" in page) == (file == "run.json")
    assert markdown_report([run])


@pytest.mark.sample(18)
@pytest.mark.parametrize("file", WHOLE)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'{"win_rate": 0.5', b"[1, 2]", b"null", b"[" * 20_000])
def test_every_file_may_be_torn_or_foreign(one_curve: Path, file: str, content: bytes) -> None:
    (one_curve / file).write_bytes(content)
    run = read_run(one_curve)
    empty_lines = file.endswith(".jsonl") and not content
    assert (file in run.missing) != empty_lines
    assert ("Not everything could be read" in run_page([run])) != empty_lines


def test_a_torn_last_line_is_reported_and_the_others_are_kept(run_folder: Path) -> None:
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 82, "lo')
    run = read_run(run_folder)
    assert len(run.metrics) == 48
    assert list(missing_files([run])) == ["metrics.jsonl has 1 incomplete or damaged line, left out on this page."]


def test_values_of_any_kind_in_any_place(run_folder: Path) -> None:
    """Every value of every file replaced by something else, many times over: there is always a page."""
    rng = random.Random(0)
    strange = [None, True, -1, 1e400, "text", [], {}, [None], {"a": {}}, float("nan"), 10**400]

    def broken(value: object, depth: int = 0) -> object:
        if rng.random() < 0.12:
            return rng.choice(strange)
        if isinstance(value, dict):
            return {key: broken(inner, depth + 1) for key, inner in value.items()}
        return [broken(inner, depth + 1) for inner in value] if isinstance(value, list) else value

    originals = {file: (run_folder / file).read_text() for file in WHOLE}
    for _ in range(6):
        for file, text in originals.items():
            if file.endswith(".jsonl"):
                write_lines(run_folder / file, [broken(json.loads(line)) for line in text.splitlines()[:30]])
            else:
                write(run_folder / file, broken(json.loads(text)))
        run = read_run(run_folder)
        assert "</html>" in run_page([run])
        assert markdown_report([run]).startswith("### ")


def test_verdicts_find_their_answers_by_id_when_their_order_differs(run_folder: Path) -> None:
    write_lines(run_folder / "eval/verdicts.jsonl", reversed(verdicts(24)))
    assert [answer.outcome for answer in read_run(run_folder).answers[:4]] == ["win", "tie", "loss", "win"]


def test_without_an_evaluation_the_last_samples_of_the_guard_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for file in ("summary.json", "generations.jsonl", "verdicts.jsonl"):
        (folder / "eval" / file).unlink()
    run = read_run(folder)
    shown = example(run)
    assert shown is not None
    assert shown[0] == "One of 4 samples at step 40"
    assert "at 40" in shown[1].after
    assert headline(run).word == "Trained:"
    assert "preftune eval --model" in run_page([run])


def test_an_evaluation_alone_is_a_report_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run") / "eval"
    run = read_run(folder)
    assert len(run.answers) == 24
    assert headline(run).word == "Better:"


@pytest.mark.parametrize(("rate", "word"), [(0.65, "Better:"), (0.3, "Worse:"), (0.52, "Undecided:")])
def test_the_headline_says_what_the_verdict_says(tmp_path: Path, rate: float, word: str) -> None:
    lines = headline(read_run(write_run(tmp_path / "run", rate=rate)))
    assert lines.word == word
    assert f"{rate:.1%}" in lines.rest
    assert f"95% interval {rate - 0.09:.1%} to {rate + 0.09:.1%}" in lines.interval


def test_the_example_is_of_the_outcome_that_decided_and_of_middle_length(tmp_path: Path) -> None:
    caption, answer = example(read_run(write_run(tmp_path / "better"))) or ("", None)
    assert caption == "One of 12 wins"
    assert answer is not None
    assert answer.outcome == "win"
    caption, _ = example(read_run(write_run(tmp_path / "worse", rate=0.3))) or ("", None)
    assert caption == "One of 6 losses"


def test_what_is_no_run_is_refused_with_runs_near_it(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/good")
    for place in (tmp_path / "runs", tmp_path / "runs/typo"):
        with pytest.raises(RequestError, match=r"Runs near it: .*good"):
            read_run(place)
    with pytest.raises(RequestError, match="is a file"):
        read_run(tmp_path / "runs/good/run.json")


def test_names_distinguish_runs() -> None:
    assert different_names(["/a/x/run", "/a/y/run"]) == ["x/run", "y/run"]
    assert different_names(["/a/one", "/a/two"]) == ["one", "two"]
    assert different_names(["/a/one", "/a/one"]) == ["one (1)", "one (2)"]


def test_thinned_curves_keep_every_spike_and_the_end() -> None:
    points: list[tuple[int, float | None]] = [(step, 1.0) for step in range(10_000)]
    points[3333], points[7777], points[5000] = (3333, 99.0), (7777, -99.0), (5000, None)
    kept = thinned(points, 300)
    assert len(kept) <= 301
    assert {(3333, 99.0), (7777, -99.0), points[0], points[-1]} <= set(kept)
    assert kept == sorted(kept, key=lambda point: point[0])


def test_curves_of_several_held_out_sets_and_of_the_guard(run_folder: Path) -> None:
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 80, "eval_hard_loss": 0.5, "eval_hard_rewards/margins": 1.5}\n')
    lines = lines_of([read_run(run_folder)])
    assert {line.series for line in lines["loss"]} == {"training", "held out", "held out: hard"}
    assert {line.series for line in lines["repetition"]} == {"model", "reference"}
    assert {"kl", "memory", "speed", "learning-rate", "logps", "accuracy", "margin"} <= set(lines)


def test_numbers_and_prompts_of_any_kind() -> None:
    assert [number(value) for value in (1, 2.5, True, "3", float("nan"), 10**400, None)] == [1, 2.5, *[None] * 5]
    assert prompt_text([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]) == "system: S\n\nuser: U"
    assert prompt_text([{"role": "user", "content": [{"type": "text", "text": "part"}]}]) == "part"
    assert prompt_text(None) == ""


def test_one_loss_is_called_a_loss(tmp_path: Path) -> None:
    answer = Answers("1", "prompt", "before", "after", outcome="loss")
    summary = {"win_rate": 0.2, "ci_low": 0.1, "ci_high": 0.3, "verdict": "worse"}
    found = example(Run("r", tmp_path, summary=summary, answers=[answer]))
    assert found is not None
    assert found[0] == "The only loss with another answer"


@pytest.mark.parametrize(
    ("baseline", "label", "against"),
    [
        ("base", "before", "the model before training"),
        ("someone/a-model", "before", "someone/a-model"),
        ("dataset", "chosen in the data", "the chosen answers of the data"),
        ("/models/other", "other", "other"),
    ],
)
def test_only_the_model_before_training_is_called_before(
    tmp_path: Path, baseline: str, label: str, against: str
) -> None:
    run = read_run(write_run(tmp_path / "run"))
    run = replace(run, summary={**run.summary, "baseline_name": baseline})
    assert run.before == label
    assert headline(run).interval.endswith(f"against {against}.")
    assert f"<b><bdi>{label}</bdi>" in run_page([run])
    assert f"| | {label} | after |" in markdown_report([run])


def test_win_rates_of_different_judges_are_not_ranked_in_silence(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)) for name in ("a", "b")]
    assert judged_unlike(runs) == ""
    other = replace(runs[1], summary={**runs[1].summary, "judge": "somebody else"})
    assert "different judges" in judged_unlike([runs[0], other])
    assert "different judges" in run_page([runs[0], other])


def test_the_next_step_of_a_run_that_is_not_judged_names_a_judge(tmp_path: Path) -> None:
    (step,) = next_steps(Run("r", tmp_path, facts={"outcome": "finished"}))
    assert "--judge" in step


def test_packages_are_pinned_as_an_index_has_them(tmp_path: Path) -> None:
    facts = {"versions": {"python": "3.11.7", "torch": "2.13.0+cpu"}}
    assert install(Run("r", tmp_path, facts=facts)) == "pip install torch==2.13.0  # Python 3.11.7"


def test_an_evaluation_of_an_earlier_model_is_no_verdict_about_this_one(run_folder: Path) -> None:
    """Trained again into the same folder, without evaluating again."""
    facts = json.loads((run_folder / "run.json").read_text())
    started = (run_folder / "eval/summary.json").stat().st_mtime + 60
    write(run_folder / "run.json", {**facts, "timings": {"started": started, "seconds": 5.0}})
    run = read_run(run_folder)
    assert headline(run).rate is None
    assert run.answers == []
    assert run.suites == {}
    text = " ".join(missing_files([run]))
    assert "eval/summary.json is older than this training" in text
    assert "eval/xstest/summary.json is older" in text
    os.utime(run_folder / "eval/summary.json", (started + 1, started + 1))
    assert headline(read_run(run_folder)).rate is not None
    os.utime(run_folder / "eval/summary.json", (0, 0))  # unpacked without its time
    assert headline(read_run(run_folder)).rate is not None


def test_the_time_of_a_resumed_run_is_that_since_the_resume(run_folder: Path) -> None:
    facts = json.loads((run_folder / "run.json").read_text())
    write(run_folder / "run.json", {**facts, "resumed_from_step": 40})
    assert asked(read_run(run_folder)).endswith("80 steps (those after step 40, where it was resumed, in 1 min 23 s).")


@pytest.mark.sample(0)
def test_many_runs_and_long_answers_stay_within_three_megabytes_and_one_comment(tmp_path: Path) -> None:
    runs = []
    for number_ in range(16):
        folder = write_run(tmp_path / f"a-rather-long-name-of-a-run-{number_}", rows=60, steps=400)
        write_lines(folder / "guard.jsonl", [{"step": 1, "name": "x", "seen": "words " * 80, "cause": "c"}] * 60)
        rows = [
            {"id": str(i), "prompt": f"{i}", "base": "<&> " * 900, "aligned": "\u4e2d\u6587 " * 600} for i in range(60)
        ]
        write_lines(folder / "eval/generations.jsonl", rows)
        runs.append(read_run(folder))
    assert len(run_page(runs).encode()) < 3e6
    assert len(markdown_report(runs)) < 65_536


def test_an_advantage_that_is_gone_at_equal_length_stands_beside_the_verdict(run_folder: Path) -> None:
    file = run_folder / "eval/summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    for low, shown in ((0.4, True), (0.52, False)):
        controlled = {"ci_low": low, "win_rate": 0.5, "ci_high": 0.6, "sentence": "At equal length it wins less."}
        write(file, {**summary, "ci_low": 0.54, "length_controlled": controlled})
        assert ("At equal length it wins less." in cautions(read_run(run_folder))) is shown


def test_what_a_failed_rule_says_is_no_second_caution(run_folder: Path) -> None:
    """The figures behind a failed rule are cautions of their own only where their rule holds."""
    file = run_folder / "eval/summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    ability = {"name": "accuracy, arc", "base": 0.5, "unit": "share", "better": "higher", "difference": -0.04}
    suite = {"suite": "general", "headline": {"name": "accuracy, arc"}, "worse": ["Accuracy on arc fell."]}
    write(run_folder / "eval/general/summary.json", suite)
    facts, repeats = summary["key_fact_rate"], summary["degeneration"]["figures"]["repeats"]
    worse = {
        "key_fact_rate": {**facts, "difference": {**facts["difference"], "rate": -0.1}},
        "degeneration": {**summary["degeneration"], "figures": {"repeats": {**repeats, "difference": 0.19}}},
        "abilities": {"compared": [ability]},
    }
    own = {
        "key_fact_rate": ("It is less correct.", "Fewer answers are correct"),
        "degeneration": ("It repeats itself in 20% of its answers.", "The answers degenerate"),
        "abilities": ("Accuracy on arc fell.", "General abilities fell"),
    }
    fine = {**summary, "key_fact_rate": {}}
    for name, value in worse.items():
        write(file, fine)
        before = cautions(read_run(run_folder))
        write(file, {**fine, name: value})
        after = cautions(read_run(run_folder))
        figure, rule = own[name]
        assert (figure in before, any(line.startswith(rule) for line in before)) == (True, False)
        assert (figure in after, any(line.startswith(rule) for line in after)) == (False, True)
        assert len(after) == len(before)


def test_a_guard_that_only_read_figures_is_reported(run_folder: Path) -> None:
    (run_folder / "guard.jsonl").unlink()
    facts = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    for guard, words in (
        ({"on": True, "checks": 0}, "read the training figures"),
        ({"on": True, "checks": 2}, "2 times"),
    ):
        write(run_folder / "run.json", {**facts, "guard": guard})
        assert words in run_page([read_run(run_folder)])


def test_a_sample_that_only_the_policy_was_asked_for_has_no_before(tmp_path: Path) -> None:
    """As a run on fresh answers writes it: an empty answer of the reference would be a claim."""
    from preftune.report.run.answers import entry_of

    (tmp_path / "run.json").write_text('{"method": "ppo", "data": {"train": {"prompts": 8}}}')
    line = '{"step": 4, "id": "1", "prompt": "why?", "reference": null, "policy": "so"}'
    (tmp_path / "samples.jsonl").write_text(line + "\n")
    (answer,) = read_run(tmp_path).shown_answers()
    assert answer.before is None
    assert [side.text for side in entry_of(answer).sides] == ["so"]


def test_figures_of_ppo_are_charted(tmp_path: Path) -> None:
    from preftune.report.run.curves import lines_of
    from preftune.report.run.headline import asked

    figures = {
        "objective/scores": 1.0, "objective/rlhf_reward": 0.9, "objective/kl": 2.0, "policy/entropy_avg": 1.5,
        "completions/mean_length": 20.0, "completions/eos_share": 0.5, "policy/clipfrac_avg": 0.1,
        "val/clipfrac_avg": 0.2, "val/var_explained": 0.3,
    }  # fmt: skip
    (tmp_path / "run.json").write_text('{"method": "ppo", "data": {"train": {"prompts": 8}}}')
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 4, "loss": 0.1, **figures}) + "\n")
    run = read_run(tmp_path)
    drawn = lines_of([run])
    assert {"score", "answer-kl", "entropy", "answer-length", "ended", "clipped", "value"} <= set(drawn)
    assert [line.points[0][1] for line in drawn["score"]] == [1.0, 0.9]
    assert "on its answers to 8 prompts" in asked(run)


def test_what_is_no_package_is_in_no_line_to_copy(tmp_path: Path) -> None:
    versions = {
        "python": "3.11\ntouch /tmp/x",
        "torch": "2.13.0",
        "x; touch /tmp/x #": "1",
        "peft": "1 && touch /tmp/x",
    }
    assert install(Run("r", tmp_path, facts={"versions": versions})) == "pip install torch==2.13.0"


@pytest.mark.sample(2)
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x00", "\ud800"])
def test_a_mark_that_ends_a_line_of_a_program_spoils_no_chart(mark: str, one_curve: Path) -> None:
    folder = one_curve
    lines = (folder / "guard.jsonl").read_text(encoding="utf-8").splitlines()
    alarm = {**json.loads(lines[0]), "name": f"a{mark}b", "seen": f"c{mark}d"}
    (folder / "guard.jsonl").write_text(json.dumps(alarm) + "\n", encoding="utf-8")
    summary = json.loads((folder / "eval" / "summary.json").read_text(encoding="utf-8"))
    (folder / "eval" / "summary.json").write_text(
        json.dumps({**summary, "baseline_name": f"e{mark}f"}), encoding="utf-8"
    )
    run = read_run(folder, name=f"r{mark}n")
    drawn = dict(pictures([run]))
    assert drawn["alarms"].startswith(b"\x89PNG")
    page = run_page([run])
    charts = page.partition('id="charts">')[2].partition("</script>")[0]
    assert mark not in charts
    assert json.dumps(mark)[1:-1] not in charts


def test_what_a_killed_report_left_is_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    old, new = folder / ".report.html-0123abcd", folder / ".report.html-4567abcd"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    write_report([folder])
    assert not old.exists()
    assert new.exists(), "it may be written at this moment"
