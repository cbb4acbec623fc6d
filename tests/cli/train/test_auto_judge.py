"""`preftune eval --judge auto`: a judge without any key, trained once, on what the policy did not see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune import DPOConfig, DPOTrainer
from preftune.data import load_pairs
from preftune.data.conversion.filters import prompt_key, split_key
from preftune.errors import DatasetError
from preftune.report.reading.run_files import read_run
from preftune.report.run import headline
from preftune.storage.trained_prompts import FILE, read_trained_prompts
from preftune.training.reward_judge import train_judge
from tests.cli.command import write_rows
from tiny import chat_rows

QUICK = ("--max_steps", 1, "--per_device_train_batch_size", 2, "--no_report", "--report_to", "none", "--guard", "off")


def distinct_rows(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    return chat_rows(count, start=start)


@pytest.fixture
def policy(preftune, tiny_model, tmp_path: Path, monkeypatch) -> Path:
    pairs = write_rows(tmp_path / "train.jsonl", distinct_rows(8))
    words = ["--model", tiny_model, "--data", pairs, "--output_dir", tmp_path / "dpo", "--use_peft", *QUICK]
    with monkeypatch.context() as patch:  # run.json keeps the command line
        patch.setattr("sys.argv", ["preftune", "dpo", *map(str, words)])
        assert preftune("dpo", *words).code == 0
    return tmp_path / "dpo"


def test_the_judge_is_trained_once_and_its_accuracy_stands_beside_the_win_rate(preftune, policy, tmp_path, caplog):
    pairs = write_rows(tmp_path / "judge.jsonl", distinct_rows(48))  # eight of them trained the policy
    prompts = write_rows(tmp_path / "prompts.jsonl", distinct_rows(4, start=60))
    words = ["eval", "--model", policy, "--judge", "auto", "--judge_data", pairs, "--prompts", prompts]
    first = preftune(*words, "--max_new_tokens", 4)
    assert first.code == 0, first.err
    assert "the judge does not use 8 pairs; the policy trained on their prompts" in first.err + caplog.text
    assert "The judge is a reward model trained on 30 pairs that the policy did not train on. Of 10" in first.out
    about = json.loads((policy / "eval" / "judge.json").read_text())
    assert (about["pairs"], about["tested"]) == (30, 10)
    assert 0 <= about["accuracy_low"] <= about["accuracy"] <= about["accuracy_high"] <= 1
    assert about["sentence"] in first.out
    weights = Path(about["folder"]) / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    assert preftune(*words, "--max_new_tokens", 4).code == 0
    assert weights.stat().st_mtime_ns == before


@pytest.mark.sample(1)
@pytest.mark.parametrize("damage", ["torn", "edited", "missing"])
def test_a_judge_whose_weights_are_not_those_that_were_tested_is_trained_again(tiny_model, damage, caplog):
    pairs = load_pairs(distinct_rows(48))
    first = train_judge(str(tiny_model), pairs, unwanted=None)
    weights = Path(first.folder) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(whole[: len(whole) // 2] if damage == "torn" else whole[:-1] + bytes([whole[-1] ^ 64]))
    again = train_judge(str(tiny_model), pairs, unwanted=None)
    assert weights.read_bytes() == whole
    assert again.accuracy == first.accuracy
    assert "it is trained again" in caplog.text


def test_prompts_that_were_trained_on_are_counted(preftune, policy, tmp_path):
    # as text, with other spaces, and two of them new
    prompts = [{"prompt": " " + row["prompt"][0]["content"].replace(" ", "  ")} for row in distinct_rows(10)]
    words = ["eval", "--model", policy, "--judge", "shorter", "--max_new_tokens", 4, "--prompts"]
    told = preftune(*words, write_rows(tmp_path / "prompts.jsonl", prompts))
    assert told.code == 0, told.err
    said = "The model was trained on 8 of these 10 prompts"
    assert said in told.err
    assert said in told.out
    assert json.loads((Path(policy) / "eval" / "summary.json").read_text())["seen_in_training"] == 8
    assert said in headline.cautions(read_run(Path(policy)))[0]
    suite = preftune("eval", "--model", policy, "--suite", "held-out", "--suite_data", tmp_path / "train.jsonl")
    assert "The model was trained on 8 of these" in suite.out
    assert "pairs of held-out, so the result includes memorisation" in suite.out
    new = preftune(*words, write_rows(tmp_path / "new.jsonl", distinct_rows(4, start=60)))
    assert "trained on" not in new.err + new.out
    (tmp_path / "train.jsonl").unlink()
    assert said in preftune(*words, tmp_path / "prompts.jsonl").err, "the data are gone, as those of a pipe are"
    assert preftune("merge", policy, "-o", tmp_path / "merged").code == 0
    of_merged = ["eval", "--model", tmp_path / "merged", "--baseline", policy, *words[3:]]
    assert said in preftune(*of_merged, tmp_path / "prompts.jsonl").err
    (policy / FILE).unlink()
    unknown = preftune(*words, tmp_path / "prompts.jsonl")
    assert unknown.code == 0, unknown.err
    assert f"it is unknown which of these prompts {policy} was trained on" in unknown.err
    assert json.loads((policy / "eval" / "summary.json").read_text())["seen_in_training"] is None


@pytest.mark.sample(2)
@pytest.mark.parametrize("method", ["sft", "kto", "reward", "grpo"])
def test_every_method_keeps_its_prompts_and_those_of_the_model_it_began_with(preftune, policy, tmp_path, method):
    assert preftune("merge", policy, "-o", tmp_path / "merged").code == 0
    pairs = write_rows(tmp_path / "more.jsonl", distinct_rows(6, start=6))  # two of the eight, and four more
    words = ["--model", tmp_path / "merged", "--data", pairs, "--output_dir", tmp_path / "next", *QUICK]
    words = words if method in ("kto", "grpo") else words[:-2]  # without --guard
    if method == "grpo":
        words += ["--reward_model", "length:5", "--num_generations", 2, "--max_new_tokens", 4]
    done = preftune(method, *words)
    assert done.code == 0, done.err
    known = read_trained_prompts(tmp_path / "next")
    assert known.tolist() == sorted({prompt_key(row["prompt"]) for row in distinct_rows(12)})


def test_a_model_saved_elsewhere_and_a_checkpoint(tiny_model, tmp_path):
    args = DPOConfig(output_dir=str(tmp_path / "run"), max_steps=1, report_to="none", guard="off", save_steps=1)
    trainer = DPOTrainer(tiny_model, args=args, train_dataset=distinct_rows(4))
    trainer.train()
    trainer.save_model(str(tmp_path / "elsewhere"))
    for place in ("elsewhere", "run/checkpoint-1"):
        assert len(read_trained_prompts(tmp_path / place)) == 4
    again = DPOTrainer(tiny_model, args=args, train_dataset=trainer.train_dataset)  # token ids: the texts are not known
    again.args.overwrite = True
    again.train()
    assert read_trained_prompts(tmp_path / "run") is None


def test_prompts_of_tokens_that_were_kept(preftune, tiny_model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("preftune.data.tokens.cache.LEAST_PAIRS", 1)
    pairs = write_rows(tmp_path / "pairs.jsonl", distinct_rows(5))
    for name in ("one", "two"):
        words = ["--model", tiny_model, "--data", pairs, "--output_dir", tmp_path / name, *QUICK, "--verbose"]
        done = preftune("dpo", *words)
        assert done.code == 0, done.err
        assert len(read_trained_prompts(tmp_path / name)) == 5
    assert "were tokenised before" in caplog.text
    assert "prompt_keys" not in (tmp_path / "two" / "audit.json").read_text()


def test_a_run_that_held_nothing_out_needs_named_pairs(preftune, policy):
    missing = preftune("eval", "--model", policy, "--judge", "auto")
    assert missing.code == 2
    assert "--judge auto needs pairs that" in missing.message
    assert "Name some with --judge_data" in missing.message


def a_run(preftune, tiny_model, folder: Path, monkeypatch, *, by_recipe: bool) -> tuple[Path, Path]:
    """A run of 60 prompts that holds 24 of them out, by flags or by a recipe; and the file of its pairs."""
    pairs = Path(write_rows(folder / "all.jsonl", distinct_rows(60)))
    settings = {"model": tiny_model, "data": str(pairs), "eval_fraction": 0.4, "output_dir": str(folder / "dpo")}
    words: list[Any] = ["--use_peft", *QUICK]
    if by_recipe:
        recipe = folder / "recipe.yaml"
        recipe.write_text(
            f"model_name_or_path: {tiny_model}\ndataset_name: {pairs}\neval_fraction: 0.4\n"
            f"output_dir: {folder / 'dpo'}\n"
        )
        words += ["--config", recipe]
    else:
        words += [word for name, value in settings.items() for word in (f"--{name}", value)]
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["preftune", "dpo", *map(str, words)])
        made = preftune("dpo", *words)
    assert made.code == 0, made.err
    return folder / "dpo", pairs


@pytest.mark.parametrize("by_recipe", [False, True])
def test_without_named_pairs_it_takes_those_that_the_run_held_out(
    preftune, tiny_model, tmp_path, monkeypatch, by_recipe
):
    """And none that the policy was trained on: the two are read back from the run's own groups."""
    run, pairs = a_run(preftune, tiny_model, tmp_path, monkeypatch, by_recipe=by_recipe)
    learned: list[frozenset[int]] = []

    def watch(base: str, data: Any, **options: Any) -> Any:
        learned.append(frozenset(split_key(pair) for pair in data))
        assert options["unwanted"] is not None
        assert not options["unwanted"] & learned[-1]
        assert len(options["unwanted"]) == 36
        return train_judge(base, data, **options)

    monkeypatch.setattr("preftune.training.reward_judge.train_judge", watch)
    told = preftune("eval", "--model", run, "--judge", "auto", "--prompts", pairs, "--limit", 2, "--max_new_tokens", 2)
    assert told.code == 0, told.err
    assert len(learned[0]) == 24
    assert f"the judge is trained on the pairs that {run} held out (24)" in told.err
    assert "trained on 18 pairs that the policy did not train on. Of 6 held-out pairs it gets" in told.out


@pytest.mark.parametrize("change", ["longer", "gone"])
def test_data_that_are_no_longer_what_they_were_prove_nothing(preftune, tiny_model, tmp_path, monkeypatch, change):
    run, pairs = a_run(preftune, tiny_model, tmp_path, monkeypatch, by_recipe=False)
    if change == "gone":
        pairs.unlink()
    else:
        write_rows(pairs, distinct_rows(80))
    told = preftune("eval", "--model", run, "--judge", "auto")
    assert told.code == 2
    assert ("changed since the run" if change == "longer" else "cannot be read again") in told.err
    assert "Name some with --judge_data" in told.message


def test_what_is_not_known_is_not_claimed(preftune, policy, tmp_path):
    facts = json.loads((policy / "run.json").read_text())
    (policy / "run.json").write_text(json.dumps({**facts, "command": ["train.py"]}))
    (policy / FILE).unlink()
    pairs = write_rows(tmp_path / "judge.jsonl", distinct_rows(24))
    told = preftune("eval", "--model", policy, "--judge", "auto", "--judge_data", pairs, "--limit", 2,
                    "--max_new_tokens", 2)  # fmt: skip
    assert told.code == 0, told.err
    assert "trained on 18 pairs that the policy may have been trained on as well" in told.out


def test_what_the_policy_was_trained_on_is_left_out(tiny_model):
    pairs = load_pairs(distinct_rows(24))
    unwanted = frozenset(split_key(pairs[i]) for i in range(8))
    with pytest.raises(DatasetError, match=r"on 16 prompts that a judge could learn from \(8 prompts that the"):
        train_judge(tiny_model, pairs, unwanted=unwanted)


def test_flags_that_would_do_nothing(preftune, policy):
    told = preftune("eval", "--model", policy, "--judge", "shorter", "--judge_data", "x.jsonl")
    assert told.code == 2
    assert "--judge_data has no effect unless --judge is auto" in told.message
    told = preftune("eval", "--model", policy, "--judge", "reward:one", "--reward_ensemble", "min")
    assert "--reward_ensemble has no effect unless --judge is reward:A,B,C" in told.message
