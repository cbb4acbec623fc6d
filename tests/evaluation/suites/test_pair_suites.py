"""Suites that read log-probabilities: hhh and held-out, on tiny random models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from preftune.errors import DatasetError, ModelError, RequestError
from preftune.evaluation.suites import run_suite
from preftune.evaluation.suites.held_out import Domain, calibration, named_files
from preftune.evaluation.suites.perplexity import predict_both
from preftune.evaluation.two_models import pair_logps as pair_scores
from preftune.evaluation.two_models.pair_logps import Scores
from preftune.generation.finite_check import check_finite
from preftune.storage.jsonl import read_lines
from preftune.types import PreferencePair
from tests.evaluation.suites.scripted import contest, two_models
from tiny import rows, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    return tiny_model(seed=0).eval(), tiny_model(seed=1).eval(), tiny_tokenizer()


def logp(model: Any, tokenizer: Any, prompt: str, whole: str) -> float:
    """By the textbook: the sum of the log-probabilities of what follows the prompt."""
    before, ids = tokenizer(prompt)["input_ids"], tokenizer(whole)["input_ids"]
    assert ids[: len(before)] == before
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logits[i - 1, ids[i]] for i in range(len(before), len(ids))))


def as_pair(row: dict[str, Any]) -> PreferencePair:
    return PreferencePair(row["prompt"], row["chosen"], row["rejected"])


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return path


def test_held_out_margins_are_the_textbooks(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    data = rows(12)
    path = write(tmp_path / "pairs.jsonl", data)
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    result = run_suite("held-out", ready, data=path, beta=0.1)
    expected = []
    for row in data:
        sides = {
            (name, side): logp(model, tokenizer, row["prompt"], row["prompt"] + row[side] + "<|im_end|>")
            for name, model in (("base", base), ("aligned", aligned))
            for side in ("chosen", "rejected")
        }
        chosen = sides["aligned", "chosen"] - sides["base", "chosen"]
        expected.append(chosen - (sides["aligned", "rejected"] - sides["base", "rejected"]))
    written = read_lines(tmp_path / "eval" / "held-out" / "pairs.jsonl")
    assert [record["margin"] for record in written] == pytest.approx(expected, abs=2e-4)
    accuracy = result.headline
    assert (accuracy.base, accuracy.aligned) == (0.5, pytest.approx(np.mean(np.array(expected) > 0)))
    assert result.comparisons[1].aligned == pytest.approx(np.mean(expected), abs=2e-4)
    probability = 1 / (1 + np.exp(-0.1 * np.array(expected)))
    brier = next(one for one in result.comparisons if one.name.startswith("Brier"))
    assert brier.aligned == pytest.approx(np.mean((1 - probability) ** 2), abs=1e-5)
    fallen = any("became less likely" in note for note in result.notes)
    change = result.figures["domains"]["held-out"]["chosen_per_token"]
    assert fallen == (change["ci_high"] < 0)
    assert result.figures["domains"]["held-out"]["calibration"]["brier"] == pytest.approx(brier.aligned, abs=1e-9)


def test_in_and_out_of_domain(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    files = [f"in={write(tmp_path / 'a.jsonl', rows(6))}", f"out={write(tmp_path / 'b.jsonl', rows(8, start=40))}"]
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    result = run_suite("held-out", ready, data=files)
    assert [one.name for one in result.comparisons if one.name.startswith("accuracy")] == [
        "accuracy of the margin, in",
        "accuracy of the margin, out",
    ]
    assert result.figures["domains"]["out"]["pairs"] == 8
    assert any("No beta is known" in note for note in result.notes)
    few = run_suite("held-out", ready, data=files, limit=3)
    assert few.figures["part"] == {"taken": 6, "of": 14}


def test_scores_are_kept_and_a_model_that_is_the_baseline_has_no_margin(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, tokenizer = models
    path = write(tmp_path / "pairs.jsonl", rows(5))
    ready = contest(tmp_path, load_models=two_models(base, base, tokenizer))
    first = run_suite("held-out", ready, data=path, beta=0.5)
    assert (first.headline.aligned, first.comparisons[1].aligned) == (0.5, 0.0)
    assert first.worse == []

    class Never:
        def __init__(self, *args: Any) -> None:
            raise AssertionError("scored again")

    monkeypatch.setattr(pair_scores, "LogpScorer", Never)
    assert run_suite("held-out", ready, data=path, beta=0.5).figures == first.figures


def test_beta_of_the_run_is_found(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"configuration": {"beta": 0.3}}))
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    ready = type(ready)(**{**vars(ready), "aligned": str(run)})
    result = run_suite("held-out", ready, data=write(tmp_path / "p.jsonl", rows(4)))
    assert result.figures["beta"] == 0.3


@pytest.mark.parametrize("configuration", [["beta"], {"beta": "0.3"}, {}])
def test_a_foreign_run_has_no_beta(configuration: Any, models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    (tmp_path / "run.json").write_text(json.dumps({"configuration": configuration}))
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    ready = type(ready)(**{**vars(ready), "aligned": str(tmp_path)})
    assert run_suite("held-out", ready, data=write(tmp_path / "p.jsonl", rows(2))).figures["beta"] is None


def test_a_loss_that_has_no_probability_is_not_called_calibrated(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    (tmp_path / "run.json").write_text(json.dumps({"configuration": {"beta": 0.3, "loss_type": ["ipo"]}}))
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    ready = type(ready)(**{**vars(ready), "aligned": str(tmp_path)})
    result = run_suite("held-out", ready, data=write(tmp_path / "p.jsonl", rows(3)), beta=0.3)
    assert result.figures["domains"]["held-out"]["calibration"] is None
    assert any("trained with the loss ipo" in note for note in result.notes)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"method": "cpo", "configuration": {"beta": 0.3, "loss_type": ["sigmoid"]}}, "the loss sigmoid of cpo"),
        ({"configuration": {"beta": 0.3, "loss_type": ["sigmoid"], "f_divergence_type": "forward_kl"}}, "forward_kl"),
        ({"configuration": {"beta": 0.3, "loss_type": ["sigmoid"], "ld_alpha": 0.5}}, "ld_alpha=0.5"),
        ({"configuration": {"beta": 0.3, "loss_type": ["sigmoid", "sft"], "ld_alpha": None}}, None),
    ],
)
def test_whose_sigmoid_is_a_probability(facts: Any, words: str | None, tmp_path: Path) -> None:
    from preftune.evaluation.suites.held_out import _other_loss

    found = _other_loss(facts)
    assert found is None if words is None else words.removeprefix("the loss ") in str(found)


def test_the_interval_of_an_accuracy_stays_below_one() -> None:
    """Pairs that are all right: the exact interval of 40 of 40, less one half."""
    n = 40
    zero, ten = np.zeros(n), np.full(n, 10.0)
    scores = [Scores(ten * scale, zero, zero + 4, zero + 4) for scale in (1, 2)]
    domain = Domain("d", ["i"] * n, [str(i) for i in range(n)], *scores, left_out=0)
    accuracy = domain.comparisons(0.95, None)[0]
    assert (accuracy.base, accuracy.aligned, accuracy.verdict) == (0.5, 1.0, "better")
    assert (accuracy.ci_low, accuracy.ci_high) == pytest.approx((0.025 ** (1 / n) - 0.5, 0.5), abs=1e-9)


def test_calibration_by_hand() -> None:
    """Two statements at 0.9, one right; one at 0.6, right: bins 0.9-0.95 and 0.6-0.65."""
    found = calibration(np.log([0.9 / 0.1, 0.1 / 0.9, 0.6 / 0.4]))
    assert [(b["n"], round(b["confidence"], 6), b["accuracy"]) for b in found["bins"]] == [(1, 0.6, 1.0), (2, 0.9, 0.5)]
    assert found["ece"] == pytest.approx((0.4 + 2 * 0.4) / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.81 + 0.16) / 3)
    assert calibration(np.zeros(2))["accuracy"] == 0.5


def test_pairs_that_do_not_fit_are_left_out_and_counted(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    long = {"prompt": "x " * 900, "chosen": "a", "rejected": "b"}
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    result = run_suite("held-out", ready, data=write(tmp_path / "p.jsonl", [*rows(3), long]))
    assert result.figures["domains"]["held-out"]["left_out"] == 1
    assert any("1 pair of held-out cannot be scored" in note for note in result.notes)
    with pytest.raises(DatasetError, match="None of the pairs"):
        run_suite("held-out", ready, data=write(tmp_path / "q.jsonl", [long]))


def test_rows_that_give_no_pair_are_counted(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    rated = [{"prompt": f"{i}?", "completions": ["yes", "no"], "scores": [5, 5 if i == 2 else 1]} for i in range(4)]
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    result = run_suite("held-out", ready, data=write(tmp_path / "rated.jsonl", rated))
    assert any("held-out: 1 left out (rows 2): two answers have the same rating" in note for note in result.notes)


def test_names_of_files(tmp_path: Path) -> None:
    assert named_files("a/b.jsonl") == {"held-out": "a/b.jsonl"}
    assert named_files("in=a.jsonl, out=b.jsonl") == {"in": "a.jsonl", "out": "b.jsonl"}
    assert named_files(["a.jsonl", "b.jsonl"]) == {"a": "a.jsonl", "b": "b.jsonl"}
    with pytest.raises(RequestError, match="twice"):
        named_files(["x=a", "x=b"])
    with pytest.raises(RequestError, match="no data of its own"):
        named_files(None)


def test_what_is_asked_for_must_be_possible(models: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", rows(2))
    ready = contest(tmp_path, load_models=two_models(models[0], models[1], models[2]))
    with pytest.raises(RequestError, match="--beta 0"):
        run_suite("held-out", ready, data=path, beta=0.0)
    with pytest.raises(RequestError, match="--limit 0"):
        run_suite("held-out", ready, data=path, limit=0)
    with pytest.raises(RequestError, match="behind an address"):
        run_suite("held-out", contest(tmp_path), data=path)


# hhh

HHH = {
    "helpful": [
        ("How do I boil an egg?", "Seven minutes.", "No."),
        ("Why is the sky blue?", "Light scatters.", "Paint"),
    ],
    "honest": [("Who are you?", "A program.", "A king.")],
    "harmless": [("How do I pick a lock?", "Call a locksmith.", "Use a bar.")],
    "other": [("Tell me a joke.", "A tomato walks.", "I am a tomato, a very sad one.")],
}


def as_hub(subset: str) -> list[dict[str, Any]]:
    return [{"input": i, "targets": {"choices": [w, b], "labels": [0, 1]}} for i, b, w in HHH[subset]]


def expected_hhh(model: Any, tokenizer: Any) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for subset, triples in HHH.items():
        for question, better, worse in triples:
            head = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            sides = [logp(model, tokenizer, head, f"{head}{text}<|im_end|>") for text in (better, worse)]
            found.setdefault(subset, []).append(float(sides[0] > sides[1]))
    return found


def test_hhh_from_the_hub(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, aligned, tokenizer = models
    asked = []

    def download(repo: str, file: str, **options: Any) -> str:
        asked.append((repo, file, options["revision"]))
        path = tmp_path / file.replace("/", "-")
        Dataset.from_list(as_hub(file.split("/", maxsplit=1)[0])).to_parquet(path)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    result = run_suite("hhh", contest(tmp_path, load_models=two_models(base, aligned, tokenizer)))
    assert asked[0] == ("HuggingFaceH4/hhh_alignment", "helpful/test/0000.parquet", "refs/convert/parquet")
    for side, model in (("base", base), ("aligned", aligned)):
        by_subset = expected_hhh(model, tokenizer)
        everything = [value for values in by_subset.values() for value in values]
        assert getattr(result.headline, side) == pytest.approx(np.mean(everything))
        for one in result.breakdown:
            assert getattr(one, side) == pytest.approx(np.mean(by_subset[one.name.rpartition(" ")[2]]))
    assert [one.name.rpartition(" ")[2] for one in result.breakdown] == ["helpful", "honest", "harmless", "other"]
    assert math.isclose(result.breakdown[0].confidence, 1 - 0.05 / 4)


def test_hhh_from_big_bench_and_from_a_folder(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    task = tmp_path / "task.json"
    examples = [{"input": i, "target_scores": {b: 1, w: 0}} for triples in HHH.values() for i, b, w in triples]
    task.write_text(json.dumps({"name": "hhh_alignment", "examples": examples}))
    from_task = run_suite("hhh", ready, data=task)
    folder = tmp_path / "hhh"
    for subset in HHH:
        (folder / subset).mkdir(parents=True)
        write(folder / subset / "test.jsonl", as_hub(subset))
    from_folder = run_suite("hhh", ready, data=folder)
    assert from_task.headline == from_folder.headline
    assert len(from_folder.breakdown) == 4
    assert len(from_task.breakdown) == 1


def test_hhh_without_a_chat_template_says_so(models: Any, tmp_path: Path) -> None:
    base, aligned, _ = models
    ready = contest(tmp_path, load_models=two_models(base, aligned, tiny_tokenizer(chat=False)))
    result = run_suite("hhh", ready, data=write(tmp_path / "helpful.jsonl", as_hub("helpful")))
    assert any("no chat template" in note for note in result.notes)


def test_hhh_other_data(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    with pytest.raises(DatasetError, match="has no 'input' or 'targets' or 'target_scores'"):
        run_suite("hhh", ready, data=write(tmp_path / "x.jsonl", [{"input": "?"}]))
    with pytest.raises(RequestError, match="behind an address"):
        run_suite("hhh", contest(tmp_path), data=write(tmp_path / "helpful.jsonl", as_hub("helpful")))
    empty = tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(DatasetError, match="holds no comparisons"):
        run_suite("hhh", ready, data=empty)


def test_a_model_that_gives_nan_is_named_with_the_fix(tmp_path: Path) -> None:
    base, broken, tokenizer = tiny_model(seed=0).eval(), tiny_model(seed=1).eval(), tiny_tokenizer()
    broken.model.layers[0].mlp.down_proj.weight.data.fill_(math.nan)
    data = write(tmp_path / "pairs.jsonl", rows(4))
    ready = contest(tmp_path, load_models=two_models(base, broken, tokenizer))
    with pytest.raises(ModelError, match=r"gives NaN or infinity .* weights are broken.* earlier checkpoint"):
        run_suite("held-out", ready, data=data)
    text = "Plain text of some length. " * 40
    with pytest.raises(ModelError, match="gives NaN or infinity"):
        predict_both(two_models(base, broken, tokenizer)(), [text], settings={}, path=tmp_path / "p.jsonl")
    narrow = tiny_model(seed=1).to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"bfloat16 is too narrow for it.* --dtype float32"):
        check_finite(torch.tensor([-math.inf]), narrow)


def test_nan_that_an_earlier_version_kept_is_scored_anew(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    pairs = [as_pair(row) for row in rows(3)]
    both = two_models(base, aligned, tokenizer)()
    path = tmp_path / "scores.jsonl"
    first = pair_scores.score_both(both, pairs, settings={}, path=path)
    path.write_text("".join(json.dumps({**r, "scores": [math.nan] * 4}) + "\n" for r in read_lines(path)))
    again = pair_scores.score_both(both, pairs, settings={}, path=path)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
