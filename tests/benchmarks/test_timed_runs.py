"""The measured run of either library, here in this process and on a tiny model: what is timed, counted and checked."""

from __future__ import annotations

import json
from typing import Any

import children
import pytest
import timed_run
import vs_trl
from children import ChildError
from shapes import SHAPES, PairTokens, conversation_rows, token_lengths
from work import ModelSize, padded_flops, useful_flops

from tiny import save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("case")
    rows = conversation_rows(SHAPES["hh"], tiny_tokenizer(), 4)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lengths = token_lengths(rows, tiny_tokenizer())
    return {"model": save_tiny(folder / "model"), "rows": str(folder / "rows.jsonl"), "lengths": lengths}


def run(library: str, case: dict[str, Any], monkeypatch, *words: str) -> dict[str, Any]:
    fixed = ["timed_run.py", library, "--model", case["model"], "--rows", case["rows"], "--pairs", "2", "--steps", "2"]
    monkeypatch.setattr("sys.argv", [*fixed, *words])
    return timed_run.run(timed_run.arguments())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("words", [(), ("--tuning", "full"), ("--checkpointing", "default")])
def test_both_libraries_do_the_same_work(case, words, monkeypatch):
    runs = {library: run(library, case, monkeypatch, *words) for library in ("trl", "preftune")}
    tokens = {"prompt": sum(p for p, _, _ in case["lengths"]), "completion": sum(c + r for _, c, r in case["lengths"])}
    for result in runs.values():
        assert result["tokens"] == tokens
        assert len(result["losses"]) == len(result["step_seconds"]) == 2
        assert result["losses"][0] != result["losses"][1]  # it learned
        assert sum(result["step_seconds"]) + result["reference_pass_seconds"] <= result["seconds"]
        assert 0 < result["before_training_gb"] <= result["peak_gb"]
        assert result["matrix_gflops"] > 0
    assert runs["trl"]["losses"] == pytest.approx(runs["preftune"]["losses"], abs=1e-4)


def test_a_first_run_computes_the_reference_and_a_second_one_knows_it(case, monkeypatch):
    first, second = (run("preftune", case, monkeypatch) for _ in range(2))
    assert (first["preftune"]["reference_groups_scored"], second["preftune"]["reference_groups_scored"]) == (4, 0)
    assert (first["preftune"]["cache_hits"], second["preftune"]["cache_hits"]) == (0, 8)
    assert first["losses"] == pytest.approx(second["losses"], abs=1e-5)


def test_the_pass_before_full_fine_tuning_is_timed(case, monkeypatch):
    """It is work that TRL does within its steps."""
    first, second = (run("preftune", case, monkeypatch, "--tuning", "full") for _ in range(2))
    assert first["preftune"]["reference_groups_scored"] == 4
    assert first["reference_pass_seconds"] > 0
    assert second["reference_pass_seconds"] == 0


def test_trls_second_run_has_its_reference_scores_beforehand(case, monkeypatch):
    live, known = (run("trl", case, monkeypatch, *words) for words in ((), ("--known-reference",)))
    assert known["losses"] == pytest.approx(live["losses"], abs=1e-5)


def test_groups_of_one_prompt(case, monkeypatch, tmp_path):
    from shapes import rated_rows

    rows = tmp_path / "rated.jsonl"
    rated = rated_rows(SHAPES["hh"], tiny_tokenizer(), 2)
    rows.write_text("".join(json.dumps(row) + "\n" for row in rated), encoding="utf-8")
    case = {**case, "rows": str(rows)}
    plain = run("preftune", case, monkeypatch, "--pairs", "6")
    grouped = run("preftune", case, monkeypatch, "--pairs", "1", "--group-by-prompt")
    assert grouped["losses"] == pytest.approx(plain["losses"], abs=1e-4)
    assert plain["tokens"]["prompt"] == 6 * grouped["tokens"]["prompt"]
    assert plain["tokens"]["completion"] == 3 * grouped["tokens"]["completion"]  # 12 instead of 4 completions


def test_the_yardstick_is_held_between_steps_and_its_time_is_left_out(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(timed_run.time, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(timed_run, "rate_now", lambda dtype: 7.0)
    clock = timed_run.Clock("cpu", "float32")
    for _ in range(3):
        clock.on_step_begin(None, None, None)
        clock.on_step_end(None, None, None)
    assert clock.rates == [7.0] * 3
    assert [end - begin for begin, end in clock.steps] == [1.0] * 3
    assert clock.between_seconds == 2.0  # before the second and the third step
    gpu = timed_run.Clock("cuda", "float32")
    gpu._now = lambda: 0.0
    gpu.on_step_begin(None, None, None)
    assert gpu.rates == []


LENGTHS = [PairTokens(5, 3, 2), PairTokens(7, 1, 4)]


def child(library: str, *, seconds: float, losses: list[float], scored: int = 2, tokens: int = 12) -> dict[str, Any]:
    made = {"seconds": seconds, "setup_seconds": 1.0, "peak_gb": 4.0 if library == "trl" else 1.0, "losses": losses}
    made |= {"tokens": {"prompt": tokens, "completion": 10}, "threads": 1}
    return made | ({"preftune": {"reference_groups_scored": scored}} if library == "preftune" else {})


def test_a_run_over_other_tokens_or_with_a_filled_cache_is_no_result(monkeypatch, tmp_path):
    def said(library: str, **made: Any) -> Any:
        monkeypatch.setattr(vs_trl, "timed_run", lambda *_, **__: child(library, seconds=1, losses=[0.7], **made))
        return vs_trl.one_run(library, tmp_path, LENGTHS, {})

    assert said("trl")["seconds"] == said("preftune")["seconds"] == 1
    with pytest.raises(ChildError, match="tokens"):
        said("trl", tokens=13)
    with pytest.raises(ChildError, match="scored 0 of 2"):
        said("preftune", scored=0)


def test_medians_ratios_and_shares():
    size = ModelSize(trunk=1000, head=50, layers=2, width=8)
    runs = {
        "trl": [child("trl", seconds=s, losses=[0.69, 0.60]) for s in (9, 10, 30)],
        "preftune": [child("preftune", seconds=s, losses=[0.69, 0.6004]) for s in (2, 1, 2)],
    }
    case = {"tuning": "lora", "device": "cpu", "dtype": "float32", "trl": "batch"}
    result = vs_trl.evaluate(case, runs, {}, LENGTHS, 2, size, matrix_gflops=1e-3)
    useful = useful_flops(size, LENGTHS, passes=2, reference=1)
    allowed = padded_flops(size, [LENGTHS], passes=2, reference=1, head_everywhere=True) / useful
    assert result["trl"]["seconds_per_pair"] == 5
    expected = {"time": 5.0, "memory": 0.25, "allowed": allowed, "reached_of_allowed": 5 / allowed}
    assert result["ratio"] == pytest.approx(expected)
    assert result["trl"]["useful_gflops"] == pytest.approx(useful / 10 / 1e9)
    assert result["preftune"]["share_of_matrix_rate"] == pytest.approx(useful / 2 / 1e6)
    assert result["largest_loss_difference"] == pytest.approx(4e-4)
    assert result["same_work"]
    for made, rate in zip(runs["preftune"], (4e-3, 2e-3, 1e-3), strict=True):
        made["matrix_gflops"] = rate
    shares = vs_trl.evaluate(case, runs, {}, LENGTHS, 2, size, matrix_gflops=1e-3)
    assert shares["preftune"]["share_of_matrix_rate"] == pytest.approx(useful / 2 / 2e6)
    assert shares["trl"]["share_of_matrix_rate"] == result["trl"]["share_of_matrix_rate"]
    assert result["known_reference"] is None
    assert result["tokens"] == {"mean_prompt": 6, "mean_completion": 2.5}


def test_other_losses_are_not_the_same_work():
    size = ModelSize(trunk=1000, head=50, layers=2, width=8)
    case = {"tuning": "lora", "device": "cpu", "dtype": "float32", "trl": "batch"}
    runs = {
        "trl": [child("trl", seconds=1, losses=[0.69, 0.60])],
        "preftune": [child("preftune", seconds=1, losses=[0.69, 0.602])],
    }
    assert not vs_trl.evaluate(case, runs, {}, LENGTHS, 2, size, matrix_gflops=1.0)["same_work"]


def test_losses_that_are_no_numbers_are_no_result(monkeypatch, tmp_path):
    monkeypatch.setattr(children, "json_of", lambda *_: {"losses": [0.69, float("nan")]})
    with pytest.raises(ChildError, match="nan"):
        children.timed_run("trl", cache=tmp_path)


def test_all_cases_have_files_and_commands_of_their_own():
    options = vs_trl.arguments(["--all", "--warm"])
    cases = list(vs_trl.cases(options))
    assert len(cases) == len({vs_trl.name_of(case) for case in cases}) == 6 * len(SHAPES)
    for case in cases:
        again = vs_trl.arguments(vs_trl.command_of(case, options).split()[2:])
        assert list(vs_trl.cases(again)) == [case]
        assert (again.steps, again.repeats) == (options.steps, options.repeats)
    assert sum(case["warm"] for case in cases) == 2 * len(SHAPES)


@pytest.mark.parametrize("words", ["--steps 0", "--checkpointing --trl defaults", "--all --shape hh"])
def test_what_cannot_be_measured_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        vs_trl.arguments(words.split())
    assert "error:" in capsys.readouterr().err


@pytest.mark.sample(0)
def test_a_run_is_a_process_of_its_own(case, tmp_path):
    options = {"model": case["model"], "rows": case["rows"], "pairs": 2, "steps": 1}
    result = children.timed_run("preftune", cache=tmp_path / "cache", **options)
    assert result["preftune"]["reference_groups_scored"] == 2
    assert (tmp_path / "cache").is_dir()


def test_a_child_that_fails_is_quoted():
    with pytest.raises(ChildError, match=r"(?s)matrix_rate.py --dtype float8 .*exit 2.*invalid choice: 'float8'"):
        children.matrix_rate("float8", "cpu")


@pytest.fixture
def in_this_process(monkeypatch):
    """What children would do, without the seconds that each needs to begin."""

    def json_of(script: str, words: list[str], environment: dict[str, str]) -> dict[str, Any]:
        if script == "matrix_rate.py":
            return {"dtype": "float32", "best": 10.0, "gflops": {}}
        monkeypatch.setattr("sys.argv", [script, *words])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return timed_run.run(timed_run.arguments())

    monkeypatch.setattr(children, "json_of", json_of)


@pytest.mark.sample(0)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_whole_benchmark_on_a_tiny_model(tmp_path, monkeypatch, capsys, in_this_process):
    """Also the other two benchmarks, whose goals a tiny model need not reach."""
    import grouping
    import reference_memory

    model = save_tiny(tmp_path / "model")
    shared = ["--model", model, "--out", str(tmp_path / "results"), "--steps", "2", "--repeats", "1"]
    for module, words, allowed in (
        (vs_trl, ["--shape", "hh", "--warm"], {0}),
        (grouping, ["--shape", "hh"], {0}),
        (reference_memory, ["--shape", "hh"], {0, 1}),
    ):
        monkeypatch.setattr("sys.argv", [module.__name__, *shared, *words])
        assert module.main() in allowed
    assert "ratio reached / ratio the formula allows times padding" in capsys.readouterr().out
    from performance_page import load, render

    results = load(tmp_path / "results")
    assert [r["file"] for r in results] == [
        "grouping-lora.json",
        "reference_memory.json",
        "vs_trl-hh-lora-float32.json",
    ]
    assert str(tmp_path) not in json.dumps(results)
    page = render(results)
    assert page.count("| HH |") >= 4
    assert page == render(load(tmp_path / "results"))
