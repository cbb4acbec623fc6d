"""`preftune score`: a training after it computes no reference score, and a stopped one continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.reference import AdapterOff, AsReceived
from preftune.reference.scores import ReferenceScores
from tests.cli.command import write_rows
from tiny import chat_rows

USUAL = ("--use_cpu", "--max_steps", 2, "--guard", "off", "--no_report")


@pytest.fixture
def request_words(tiny_model, tmp_path):
    pairs = write_rows(tmp_path / "pairs.jsonl", chat_rows(40))
    return ["--model", tiny_model, "--data", pairs, "--eval_fraction", 0.2]


@pytest.fixture
def forwards(monkeypatch):
    """Completions of every forward pass of a reference."""
    seen: list[int] = []
    for source in (AdapterOff, AsReceived):
        score = source.score

        def counting(self, model, batch, engine, score=score):
            seen.append(batch.completions)
            return score(self, model, batch, engine)

        monkeypatch.setattr(source, "score", counting)
    return seen


@pytest.mark.parametrize("name", ["dpo", "kto"])
@pytest.mark.parametrize("kind", [("--use_peft",), ()], ids=["lora", "full"])
def test_a_training_after_it_makes_no_reference_forward(preftune, request_words, forwards, tmp_path, name, kind):
    words = [*request_words, *kind, *USUAL, *(["--loss_type", "apo_zero_unpaired"] if name == "kto" else [])]
    found = preftune("score", name, *words)
    assert found.code == 0, found.err
    rows, each = (40, 2) if name == "dpo" else (80, 1)
    assert f"{rows} rows: 80 completions scored now" in found.out
    assert sum(forwards) >= rows * each  # those of the check of the first step come in addition
    forwards.clear()
    run = tmp_path / "run"
    found = preftune(name, *words, "--output_dir", run)
    assert found.code == 0, found.err
    assert forwards == []
    assert json.loads((run / "run.json").read_text())["reference_scores"]["computed"] == 0


def test_a_stopped_one_continues_and_leaves_nothing_but_scores(
    preftune, request_words, monkeypatch, tmp_path, forwards
):
    monkeypatch.chdir(tmp_path)
    words = [*request_words, "--use_peft", "--use_cpu", "--per_device_eval_batch_size", 4]
    score = ReferenceScores.score_groups
    done = 0

    def stopping(self, model, groups, device):
        nonlocal done
        if done == 5:
            raise KeyboardInterrupt
        done += 1
        return score(self, model, groups, device)

    with monkeypatch.context() as patched:
        patched.setattr(ReferenceScores, "score_groups", stopping)
        stopped = preftune("score", "dpo", *words)
    assert (stopped.code, stopped.message) == (
        130, "Stopped. The scores so far are kept; the same command continues from there.",
    )  # fmt: skip
    found = preftune("score", "dpo", *words)
    assert "60 completions scored now" not in found.out
    assert "40 rows: 40 completions scored now" in found.out, found.out
    again = preftune("score", *words)
    assert "40 rows: nothing to score" in again.out
    assert {path.name for path in Path().iterdir()} == {"pairs.jsonl"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft"], "preftune score does not cover sft"),
        (["dpo", "--loss_type", "simpo"], "needs no reference"),
        (["dpo", "--sync_ref_model"], "moves the reference"),
        (["dpo", "--reference_cache", "false"], "keeps no scores"),
        (["dpo", "--streaming", "--max_steps", "1"], "have no scores beforehand"),
    ],
)
def test_what_cannot_be_scored_beforehand_is_refused(preftune, tiny_model, pairs_file, words, message):
    name, *rest = words
    found = preftune("score", name, "--model", tiny_model, "--data", pairs_file, "--use_cpu", *rest)
    assert found.code == 2
    assert message in found.err


def test_scores_that_cannot_be_kept_are_an_error(preftune, request_words, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("PREFTUNE_CACHE", str(file))
    found = preftune("score", *request_words, "--use_peft", "--use_cpu")
    assert found.code == 1
    assert "could not be kept on the disk" in found.message


def test_the_baseline_of_kto_is_named(preftune, request_words):
    found = preftune("score", "kto", *request_words, "--use_peft", "--use_cpu")
    assert "the baseline of loss_type=kto is scored in each step" in found.err


def test_help(preftune):
    assert "preftune score [dpo|kto]" in preftune("score", "--help").out
