"""The guard in a run: it changes nothing that is trained, looks within its budget, acts as told, never ends a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from preftune.data import GroupDataset
from preftune.errors import ConfigError
from preftune.training.guard import callback
from preftune.training.guard.looking import Looker
from tests.training.dpo_runs import logged, lora_model, metrics, trainer
from tiny import chat_rows, rows, tiny_model

from .guard_runs import guarded, lines, looks

MAKE = {"lora": lora_model, "full": tiny_model, "sft": lambda: lora_model(trained=True)}


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}


def run_json(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


# --- what is trained stays the same ---


@pytest.mark.sample(2)
@pytest.mark.parametrize("held_out", [rows(6, start=40), None], ids=["held out", "nothing held out"])
@pytest.mark.parametrize("case", MAKE)
def test_losses_and_weights_are_those_of_a_run_without_a_guard(case, held_out, paid, tmp_path):
    # the second run must not find the first one's scores, which were rounded in another packing
    options = {"train_sampling_strategy": "random", "gradient_accumulation_steps": 2, "reference_cache": False}
    options |= {"eval_dataset": held_out, "learning_rate": 3e-3}
    with_guard = guarded(MAKE[case](), tmp_path / "on", **options)
    with_guard.train()
    without = guarded(MAKE[case](), tmp_path / "off", guard="off", **options)
    without.train()
    assert logged(with_guard) == logged(without)
    for name, weight in weights(without).items():
        assert torch.equal(weights(with_guard)[name], weight), name
    assert len(looks(tmp_path / "on")) == 4
    assert without.guard is None
    assert not (tmp_path / "off" / "samples.jsonl").exists()


def test_dropout_and_checkpointing_draw_what_they_draw_without_a_guard(paid, tmp_path):
    options = {"disable_dropout": False, "gradient_checkpointing": True, "reference_cache": False}
    runs = []
    for mode in ("warn", "off"):
        runs.append(guarded(lora_model(lora_dropout=0.3), tmp_path / mode, guard=mode, **options))
        runs[-1].train()
    assert logged(runs[0]) == logged(runs[1])
    assert all(module.training for module in runs[0].model.modules())
    assert not any(p.requires_grad for name, p in runs[0].model.named_parameters() if "lora_" not in name)


# --- what is written ---


def test_a_look_leaves_figures_samples_and_its_share_of_the_time(paid, tmp_path):
    run = guarded(lora_model(), tmp_path, data=chat_rows(14), eval_dataset=chat_rows(6, start=40))
    run.train()
    run.save_model()
    samples = lines(tmp_path, "samples.jsonl")
    assert [entry["step"] for entry in samples] == [step for step in (1, 2, 3, 4) for _ in range(3)]
    assert samples[0]["prompt"] == chat_rows(6, start=40)[0]["prompt"]
    assert set(samples[0]) == {
        "step", "time", "id", "prompt", "reference", "policy", "reference_tokens", "policy_tokens",
        "reference_finished", "policy_finished",
    }  # fmt: skip
    assert len({entry["reference"] for entry in samples}) <= 3  # drawn once
    for look in looks(tmp_path):
        for name in ("repeated", "repeated_reference", "distinct_2", "length_ratio", "finished", "self_similarity",
                     "kl_per_token", "margin_held_out", "accuracy_held_out", "share_of_time"):  # fmt: skip
            assert isinstance(look[f"guard/{name}"], float | int), name
    glances = [line for line in metrics(tmp_path) if "guard/train_pairs" in line]
    assert [line["step"] for line in glances] == [1, 2, 3, 4]
    assert glances[0]["guard/train_margin_rms"] == 0.0
    record = run_json(tmp_path)["guard"]
    assert record["mode"] == "warn"
    assert record["checks"] == 4
    assert record["spent_seconds"] > 0
    assert 0 < record["share"] < 1
    assert record["rolled_back_to"] is None
    assert "guard" in (tmp_path / "README.md").read_text()


def test_held_out_figures_are_those_of_an_evaluation_of_the_same_pairs(paid, tmp_path):
    run = guarded(lora_model(), tmp_path, eval_dataset=rows(4, start=40), eval_strategy="steps", eval_steps=1)
    run.train()
    evaluated = [line for line in metrics(tmp_path) if "eval_loss" in line]
    for look, line in zip(looks(tmp_path), evaluated, strict=True):
        assert look["guard/margin_held_out"] == pytest.approx(line["eval_rewards/margins"], rel=1e-4)
        assert look["guard/accuracy_held_out"] == pytest.approx(line["eval_rewards/accuracies"])


@pytest.mark.parametrize("case", MAKE)
def test_the_distance_to_the_reference_is_nothing_at_first_and_grows(case, paid, tmp_path):
    guarded(
        MAKE[case](), tmp_path, learning_rate=3e-2, warmup_steps=2, lr_scheduler_type="constant_with_warmup"
    ).train()
    distances = [look["guard/kl_per_token"] for look in looks(tmp_path)]
    assert distances[0] == pytest.approx(0.0, abs=1e-5)  # a warm-up begins at 0
    assert distances[-1] > 1e-3


def test_glances_hold_the_means_that_are_logged(tmp_path):
    run = guarded(lora_model(), tmp_path, beta=0.5)
    run.train()
    glances = [line for line in metrics(tmp_path) if "guard/train_pairs" in line]
    training = [line for line in metrics(tmp_path) if "rewards/margins" in line]
    for glance, line in zip(glances, training, strict=True):
        assert glance["guard/train_pairs"] == 2
        assert glance["guard/train_loss"] == pytest.approx(line["loss"], rel=1e-4)
        assert glance["guard/train_margin"] == pytest.approx(line["rewards/margins"] / 0.5, rel=1e-4, abs=1e-5)
        assert glance["guard/train_accuracy"] == line["rewards/accuracies"]
        assert glance["guard/train_chosen_tokens"] == line["completions/chosen_length"]


def test_copies_are_counted_within_a_pass_and_known_pairs_over_all(tmp_path):
    data = [*rows(3), *rows(3)[::-1]]
    guarded(lora_model(), tmp_path, data=data, max_steps=6).train()
    glances = [line for line in metrics(tmp_path) if "guard/train_pairs" in line]
    assert [line["guard/train_copies"] for line in glances] == [0, 0.5, 1, 0, 0.5, 1]
    assert [line["guard/train_known"] for line in glances] == [0, 0.5, 1, 1, 1, 1]


def test_training_lines_give_the_peak_of_memory(tmp_path):
    trainer(lora_model(), tmp_path).train()
    peaks = [line["memory/peak_gb"] for line in metrics(tmp_path) if "loss" in line]
    assert len(peaks) == 3
    assert 0.05 < peaks[0] <= peaks[-1] < 64


# --- where prompts come from ---


def test_without_held_out_rows_prompts_are_training_rows_and_that_is_said(paid, tmp_path, caplog):
    caplog.set_level("DEBUG", logger="preftune")
    guarded(lora_model(), tmp_path, eval_dataset=None, max_steps=1).train()
    assert "of training rows, because no rows are held out" in caplog.text
    assert {entry["prompt"] for entry in lines(tmp_path, "samples.jsonl")} <= {row["prompt"] for row in rows(14)}


def test_prompts_from_a_file_are_asked_as_the_training_data_ask(paid, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text('What now?\n{"id": "two", "prompt": "And then?"}\n')
    options = {"data": chat_rows(8), "eval_dataset": chat_rows(4, start=40), "guard_prompts": str(file)}
    guarded(lora_model(), tmp_path / "run", max_steps=1, **options).train()
    samples = lines(tmp_path / "run", "samples.jsonl")
    assert [entry["prompt"] for entry in samples] == [
        [{"role": "user", "content": "What now?"}],
        [{"role": "user", "content": "And then?"}],
    ]
    assert [entry["id"] for entry in samples] == ["1", "two"]


def test_a_number_of_prompts_is_honoured_and_several_sets_share_it(paid, tmp_path):
    held_out = {"one": rows(4, start=40), "two": rows(4, start=60)}
    guarded(lora_model(), tmp_path, eval_dataset=held_out, guard_prompts=4, max_steps=1).train()
    prompts = {entry["prompt"] for entry in lines(tmp_path, "samples.jsonl")}
    assert len(prompts) == 4
    assert prompts & {row["prompt"] for row in rows(4, start=60)}


def test_tokenised_groups_give_their_prompts_back(paid, tmp_path):
    tokenised = guarded(lora_model(), tmp_path / "text", max_steps=1)
    groups = GroupDataset.from_groups(tokenised.eval_dataset)
    guarded(lora_model(), tmp_path, eval_dataset=groups, max_steps=1).train()
    assert lines(tmp_path, "samples.jsonl")[0]["prompt"].endswith(rows(1, start=40)[0]["prompt"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("\n\n", "holds no prompt"),
        ('{"question": "x"}\n', "line 1: no 'prompt'"),
    ],
)
def test_a_file_without_prompts_is_reported_before_the_first_step(content, message, tmp_path):
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        guarded(lora_model(), tmp_path, guard_prompts=str(file))


# --- alarms ---

FAR_TOO_FAST = {"learning_rate": 1.0, "per_device_train_batch_size": 4, "max_steps": 8}


def test_an_alarm_is_said_written_and_named_in_the_model_card(tmp_path, caplog):
    run = guarded(lora_model(), tmp_path, **FAR_TOO_FAST)
    run.train()
    run.save_model()
    alarm = lines(tmp_path, "guard.jsonl")[0]
    assert alarm["name"] == "learning-rate-too-high"
    assert alarm["level"] == "alarm"
    assert alarm["action"] == "warn"
    assert f"guard, step {alarm['step']}: {alarm['seen']} {alarm['cause']} {alarm['remedy']}" in caplog.text
    assert run.state.global_step == 8
    record = run_json(tmp_path)["guard"]
    assert record["alarms"][0] == "learning-rate-too-high"
    assert len(record["alarms"]) == len(set(record["alarms"]))
    assert "learning-rate-too-high" in (tmp_path / "README.md").read_text()


def test_stop_ends_the_run_and_leaves_the_weights(tmp_path):
    run = guarded(lora_model(), tmp_path, guard="stop", **FAR_TOO_FAST)
    run.train()
    assert run.state.global_step == lines(tmp_path, "guard.jsonl")[0]["step"] < 8
    assert lines(tmp_path, "guard.jsonl")[0]["action"] == "stop"
    assert run_json(tmp_path)["outcome"] == "finished"


def test_rollback_puts_back_the_weights_of_the_best_look_before_the_alarm(paid, monkeypatch, tmp_path):
    kept: dict[int, Any] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept[state.global_step] = weights(run)

    monkeypatch.setattr(callback, "new_alarms", alarm_at(4))
    run = guarded(lora_model(), tmp_path, guard="rollback", callbacks=[Keep()], max_steps=8)
    run.train()
    assert run.state.global_step == 4
    found = [look for look in looks(tmp_path) if look["step"] < 4]
    best = max(found, key=lambda look: (look["guard/accuracy_held_out"], look["guard/margin_held_out"]))["step"]
    assert run_json(tmp_path)["guard"]["rolled_back_to"] == best
    for name, weight in weights(run).items():
        assert torch.equal(weight, kept[best][name]), name


def test_rollback_without_a_good_look_goes_back_to_the_beginning(tmp_path):
    model = lora_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    run = guarded(model, tmp_path, guard="rollback", **FAR_TOO_FAST)
    run.train()
    assert run_json(tmp_path)["guard"]["rolled_back_to"] == 0
    for name, weight in weights(run).items():
        assert torch.equal(weight, before[name]), name


def alarm_at(step: int) -> Any:
    from preftune.training.guard.alarms import Alarm

    def rules(history: Any, raised: Any) -> list[Alarm]:
        return [Alarm(step, "planted", "Seen.", "Cause.", "Remedy.")] if history.step == step and not raised else []

    return rules


def test_a_note_stops_nothing(monkeypatch, tmp_path):
    def noted(history: Any, raised: Any) -> Any:
        from dataclasses import replace

        return [replace(alarm, level="note") for alarm in alarm_at(2)(history, raised)]

    monkeypatch.setattr(callback, "new_alarms", noted)
    run = guarded(lora_model(), tmp_path, guard="stop")
    run.train()
    assert run.state.global_step == 4
    assert lines(tmp_path, "guard.jsonl")[0]["action"] == "warn"


# --- faults of its own ---


@pytest.mark.parametrize("method", ["prepare", "look"])
def test_a_fault_of_the_guard_is_reported_and_the_run_goes_on(method, paid, monkeypatch, tmp_path, caplog):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Looker, method, fail)
    run = guarded(lora_model(), tmp_path)
    run.train()
    assert run.state.global_step == 4
    assert caplog.text.count("the guard failed and is off for the rest of this run") == 1
    assert "ZeroDivisionError: planted" in caplog.text
    assert run_json(tmp_path)["guard"]["on"] is False


def test_a_fault_of_a_rule_is_the_guards(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(callback, "suspicious", lambda history: 1 / 0)
    guarded(lora_model(), tmp_path).train()
    assert "the guard failed" in caplog.text


# --- the budget ---


def test_a_short_run_is_watched_by_its_figures_alone(tmp_path, caplog):
    caplog.set_level("DEBUG", logger="preftune")
    guarded(lora_model(), tmp_path).train()
    assert "is too small for answers in a run this short" in caplog.text
    assert looks(tmp_path) == []
    assert not (tmp_path / "samples.jsonl").exists()


def test_no_budget_draws_nothing_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(Looker, "prepare", None)  # it would fail
    guarded(lora_model(), tmp_path, guard_budget=0).train()
    assert run_json(tmp_path)["guard"]["on"] is True


# --- resuming ---


# --- settings ---
