"""`preftune dpo` from the command line to the files, on a random model."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from preftune.cli.flags.arguments import DataArguments
from preftune.cli.train.datasets import open_datasets
from preftune.errors import RequestError
from tests.cli.command import pair, write_rows


def test_smol_course_command(preftune, tiny_model, pairs_file, tmp_path, monkeypatch) -> None:
    """The exercise's command line with `trl dpo` -> `preftune dpo`; the upload goes nowhere."""
    from preftune.training import DPOTrainer

    pushed: list[object] = []
    monkeypatch.setattr(
        DPOTrainer, "push_to_hub", lambda self, **kwargs: pushed.append((self.args.hub_model_id, kwargs))
    )
    monkeypatch.setattr(DPOTrainer, "init_hf_repo", lambda self, token=None: None)
    monkeypatch.setattr(DPOTrainer, "_push_from_checkpoint", lambda self, folder: None)
    result = preftune(
        "dpo", "--model_name_or_path", tiny_model, "--dataset_name", pairs_file, "--learning_rate", "5e-5",
        "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--max_steps", "2", "--beta", "0.1",
        "--max_prompt_length", "64", "--max_length", "96", "--output_dir", tmp_path / "run", "--push_to_hub",
        "--hub_model_id", "me/smol", "--report_to", "none",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert pushed[-1] == ("me/smol", {"dataset_name": pairs_file})
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["outcome"] == "finished"
    assert run["configuration"]["max_prompt_length"] == 64
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert "Done after 2 steps" in result.out
    assert f"--baseline {tiny_model}" in result.out


def test_lora_run_with_held_out_prompts(preftune, tiny_model, pairs_file, tmp_path) -> None:
    run = tmp_path / "a run"
    result = preftune(
        "dpo", "--model", tiny_model, "--data", pairs_file, "--use-peft", "--lora_r", "4", "--lora_alpha", "8",
        "--learning-rate", "1e-2", "--max_steps", "4", "--logging_steps", "2", "--eval_fraction", "0.25",
        "--output_dir", run,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads((run / "adapter_config.json").read_text())["r"] == 4
    weights = load_file(run / "adapter_model.safetensors")
    assert any(bool(value.any()) for name, value in weights.items() if "lora_B" in name)
    steps = [line for line in result.out.splitlines() if line.startswith("step ")]
    assert steps[0].startswith("step 2/4  loss 0.")
    assert "margin" in steps[0]
    assert "accuracy" in steps[0]
    assert any("Held out: margin" in line for line in result.out.splitlines())
    assert f"preftune chat --model '{run}'" in result.out
    assert f"preftune merge '{run}' -o '{run}-merged'" in result.out
    audit = json.loads((run / "audit.json").read_text())
    assert set(audit) == {"train", "eval"}


def test_recipe_and_flags_together(preftune, tiny_model, pairs_file, tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {tiny_model}\ndata: {pairs_file}\nmax_steps: 50\nbeta: 0.3\nlearning_rate: 1e-3\n")
    run = tmp_path / "run"
    result = preftune("dpo", "--config", recipe, "--max_steps", 1, "--output_dir", run)
    assert result.code == 0, result.err
    configuration = json.loads((run / "run.json").read_text())["configuration"]
    assert (configuration["beta"], configuration["max_steps"], configuration["learning_rate"]) == (0.3, 1, 1e-3)


def test_evaluation_that_the_strategy_asks_for(preftune, tiny_model, pairs_file, tmp_path) -> None:
    held_out = write_rows(tmp_path / "held_out.jsonl", [pair(0), pair(1)])
    result = preftune(
        "dpo", "--model", tiny_model, "--data", pairs_file, "--eval_dataset_name", held_out, "--eval_strategy", "steps",
        "--eval_steps", 1, "--max_steps", 2, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert result.code == 0, result.err
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in metrics if "eval_loss" in entry] == [1, 2]  # the last is not measured twice


def test_stopping_says_what_is_kept_and_resuming_goes_on(
    preftune, tiny_model, pairs_file, tmp_path, monkeypatch
) -> None:
    from transformers import Trainer

    run = tmp_path / "run"
    words = [
        "dpo",
        "--model",
        tiny_model,
        "--data",
        pairs_file,
        "--max_steps",
        3,
        "--save_steps",
        1,
        "--output_dir",
        run,
    ]
    plain_step = Trainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return plain_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", stopping)
        result = preftune(*words)
    assert result.code == 130
    assert "checkpoint-2 is kept" in result.message
    assert result.message.endswith("--resume")
    assert json.loads((run / "run.json").read_text())["outcome"] == "interrupted"
    again = preftune(*result.message.split("preftune ")[-1].split())
    assert again.code == 0, again.err
    assert json.loads((run / "run.json").read_text())["resumed_from_step"] == 2
    assert "Done after 3 steps" in again.out


def test_stopping_does_not_advise_to_resume_from_weights_alone(
    preftune, tiny_model, pairs_file, tmp_path, monkeypatch
) -> None:
    from transformers import Trainer

    plain_step = Trainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return plain_step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", stopping)
    words = ["dpo", "--model", tiny_model, "--data", pairs_file, "--max_steps", 2, "--save_steps", 1]
    result = preftune(*words, "--save_only_model", "--output_dir", tmp_path / "run")
    assert result.code == 130
    assert "checkpoint-1 is kept, but only the weights: start a new run without --save_only_model." in result.message
    assert "--resume" not in result.message


def test_one_command_starts_goes_on_after_a_signal_and_leaves_a_finished_run_alone(
    preftune, tiny_model, pairs_file, tmp_path, monkeypatch, caplog
) -> None:
    from transformers import Trainer

    run = tmp_path / "run"
    words = ["dpo", "--model", tiny_model, "--data", pairs_file, "--max_steps", 3, "--output_dir", run]
    words += ["--resume", "auto"]
    plain_step = Trainer.training_step

    def terminated(self, *args, **kwargs):
        if self.state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return plain_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", terminated)
        result = preftune(*words)
    assert result.code == 143
    assert "checkpoint-2 is kept. Continue from it with: preftune dpo" in result.message
    assert json.loads((run / "run.json").read_text())["stopped_by"] == "SIGTERM"
    again = preftune(*words)
    assert again.code == 0, again.err
    assert "Done after 3 steps" in again.out
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    third = preftune(*words)
    assert (third.code, third.out) == (0, "")
    assert "nothing to do: the run in" in caplog.text
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    other = preftune(*words, "--beta", "0.3")
    assert other.code == 2
    assert "beta (0.1 before, 0.3 now)" in other.message


@pytest.mark.parametrize("reference", [[], ["--sync_ref_model", "--ref_model_sync_steps", 2]])
def test_a_run_that_was_killed_while_its_held_out_rows_were_measured_is_measured_later(
    reference, preftune, tiny_model, pairs_file, tmp_path, monkeypatch
) -> None:
    """Its weights are there and run.json says finished, so nothing else would ever measure them."""
    from preftune.training import DPOTrainer

    words = ["dpo", "--model", tiny_model, "--data", pairs_file, "--max_steps", 4, "--save_steps", 2, *reference]
    words += ["--eval_fraction", 0.25, "--learning_rate", "1e-2", "--resume", "auto", "--output_dir"]
    assert preftune(*words, tmp_path / "whole").code == 0

    def killed(self, *args, **kwargs):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(DPOTrainer, "evaluate", killed)
        assert preftune(*words, run).code == 130
    assert json.loads((run / "run.json").read_text())["outcome"] == "finished"
    again = preftune(*words, run)
    assert (again.code, (run / "report.html").is_file()) == (0, True)
    figures = [
        [
            line["eval_loss"]
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if "eval_loss" in line
        ]
        for folder in (tmp_path / "whole", run)
    ]
    assert len(figures[0]) == 1
    assert figures[1] == figures[0]
    before = (run / "metrics.jsonl").read_bytes()
    assert preftune(*words, run).code == 0
    assert (run / "metrics.jsonl").read_bytes() == before


def test_stopping_before_the_first_checkpoint(preftune, tiny_model, pairs_file, tmp_path, monkeypatch) -> None:
    from transformers import Trainer

    def stopping(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "training_step", stopping)
    result = preftune(
        "dpo", "--model", tiny_model, "--data", pairs_file, "--max_steps", 3, "--output_dir", tmp_path / "r"
    )
    assert result.code == 130
    assert "before the first checkpoint" in result.message


def test_adapter_goes_on_training(preftune, tiny_model, pairs_file, tmp_path) -> None:
    common = ["--data", pairs_file, "--max_steps", 1, "--learning_rate", "1e-2"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert preftune("dpo", "--model", tiny_model, "--use_peft", "--output_dir", first, *common).code == 0
    result = preftune("dpo", "--model", first, "--output_dir", second, *common)
    assert result.code == 0, result.err
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_merge(preftune, tiny_model, pairs_file, tmp_path) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    words = ["--max_steps", 2, "--use_peft", "--learning_rate", "1e-2", "--output_dir", run]
    assert preftune("dpo", "--model", tiny_model, "--data", pairs_file, *words).code == 0
    result = preftune("merge", run, "-o", merged)
    assert result.code == 0, result.err
    assert f"preftune chat --model {merged}" in result.out
    assert not torch.equal(
        load_file(Path(tiny_model) / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"],
        load_file(merged / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"],
    )
    assert (merged / "tokenizer.json").is_file()
    assert preftune("merge", run, "-o", merged).code == 2  # nothing is overwritten


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.99])
def test_split_keeps_prompts_apart(pairs_file, fraction: float) -> None:
    data = DataArguments(dataset_name=pairs_file, eval_fraction=fraction)
    train, held_out = open_datasets(data, evaluate=False, seed=0)
    prompts = [{str(p.prompt) for p in part} for part in (train, held_out)]
    assert prompts[0].isdisjoint(prompts[1])
    assert len(train) + len(held_out) == 16
    assert len(train) > 0
    assert len(held_out) > 0


def test_split_follows_the_seed(pairs_file) -> None:
    data = DataArguments(dataset_name=pairs_file, eval_fraction=0.25)
    rows = [[p.row for p in open_datasets(data, evaluate=False, seed=seed)[1]] for seed in (0, 0, 1, 2, 3)]
    assert rows[0] == rows[1]
    assert len({tuple(part) for part in rows}) > 1


def test_plain_rows_become_chat_messages(tmp_path) -> None:
    data = write_rows(tmp_path / "plain.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    train, _ = open_datasets(DataArguments(dataset_name=data, as_chat=True), evaluate=False, seed=0)
    assert train[0].prompt == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(("words", "seed"), [(("--data_seed", "0", "--seed", "7"), 0), (("--seed", "7"), 7)])
def test_the_split_follows_the_data_seed_where_there_is_one(
    words, seed, preftune, tiny_model, pairs_file, tmp_path, monkeypatch
) -> None:
    drawn = []

    def stop(data, *, evaluate, seed):
        drawn.append(seed)
        raise RequestError("far enough")

    monkeypatch.setattr("preftune.cli.train.datasets.open_datasets", stop)
    asked = preftune("dpo", "--model", tiny_model, "--data", pairs_file, "--output_dir", tmp_path / "run", *words)
    assert asked.code == 2
    assert drawn == [seed]


def test_streaming_trains_on_a_folder_of_shards(preftune, tiny_model, tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "shards").mkdir()
    for number in range(2):
        table = pa.Table.from_pylist([pair(4 * number + row) for row in range(4)])
        pq.write_table(table, tmp_path / "shards" / f"train-{number:05}-of-00002.parquet")
    words = ["dpo", "--model", tiny_model, "--data", tmp_path / "shards", "--streaming", "--use_peft"]
    result = preftune(*words, "--max_steps", "2", "--shuffle_buffer", "3", "--output_dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stream"]["groups"] == 16
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["train"]["rows_out"] == 16
    for more, says in (
        ([], "Set max_steps (--max_steps 1000)"),
        (["--max_steps", "2", "--eval_fraction", "0.1"], "which a stream does not know"),
        (["--max_steps", "2", "--data", "a.jsonl", "b.jsonl"], "--streaming reads one dataset"),
    ):
        refused = preftune(*words, *more, "--output_dir", tmp_path / "refused")
        assert refused.code == 2
        assert says in refused.err
