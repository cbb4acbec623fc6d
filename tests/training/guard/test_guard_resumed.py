"""The guard of a resumed run."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from preftune.training.guard import callback
from preftune.training.guard.rules import new_alarms
from tests.training.dpo_runs import lora_model, untimed
from tiny import rows

from .guard_runs import guarded, lines, looks
from .test_guard import FAR_TOO_FAST, MAKE, alarm_at, run_json, weights


class PowerCut(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise RuntimeError("power cut")


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", MAKE)
def test_a_resumed_run_knows_what_it_knew_and_compares_with_the_same_answers(case, paid, tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = guarded(MAKE[case](), tmp_path / "whole", **options)
    whole.train()
    with pytest.raises(RuntimeError, match="power cut"):
        guarded(MAKE[case](), tmp_path / "cut", callbacks=[PowerCut()], **options).train()
    assert [look["step"] for look in looks(tmp_path / "cut")] == [1, 2, 3, 4]
    resumed = guarded(MAKE[case](), tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    found, wanted = (looks(tmp_path / name) for name in ("cut", "whole"))
    assert [look["step"] for look in found] == [1, 2, 3, 4, 5, 6]
    timed = ("guard/seconds", "guard/share_of_time", "time")
    for one, other in zip(untimed(found), untimed(wanted), strict=True):
        one, other = ({k: v for k, v in look.items() if k not in timed} for look in (one, other))
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)
    samples = [{k: v for k, v in s.items() if k != "time"} for s in lines(tmp_path / "cut", "samples.jsonl")]
    assert samples == [{k: v for k, v in s.items() if k != "time"} for s in lines(tmp_path / "whole", "samples.jsonl")]


def test_training_figures_of_a_resumed_run_are_those_of_one_that_was_never_interrupted(monkeypatch, tmp_path):
    """In its second pass, with a line every second step: the checkpoint lies between two lines."""
    monkeypatch.setattr(callback, "GLANCES", 3)
    options = {"max_steps": 7, "data": rows(4), "save_strategy": "steps", "save_steps": 3}
    guarded(lora_model(), tmp_path / "whole", **options).train()
    with pytest.raises(RuntimeError, match="power cut"):
        guarded(lora_model(), tmp_path / "cut", callbacks=[PowerCut()], **options).train()
    guarded(lora_model(), tmp_path / "cut", **options).train(resume_from_checkpoint=True)
    found, wanted = (
        [line for line in untimed(lines(tmp_path / name, "metrics.jsonl")) if "guard/train_loss" in line]
        for name in ("cut", "whole")
    )
    assert [line["guard/train_known"] for line in wanted] == [0, 1, 1, 1]
    assert len(found) == 4
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)


def test_rollback_in_a_resumed_run_says_which_weights_come_back(monkeypatch, tmp_path, caplog):
    options = {"max_steps": 8, "guard": "rollback", "save_strategy": "steps", "save_steps": 3}
    with pytest.raises(RuntimeError, match="power cut"):
        guarded(lora_model(), tmp_path, callbacks=[PowerCut()], **options).train()
    monkeypatch.setattr(callback, "new_alarms", alarm_at(5))
    resumed = guarded(lora_model(), tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert "the weights are again those of step 3" in caplog.text
    assert run_json(tmp_path)["guard"]["rolled_back_to"] == 3
    saved = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, saved[name.replace(".default", "")]), name


def test_an_alarm_from_before_the_checkpoint_is_not_raised_again(monkeypatch, tmp_path):
    monkeypatch.setattr(callback, "new_alarms", alarm_at(2))
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    with pytest.raises(RuntimeError, match="power cut"):
        guarded(lora_model(), tmp_path, callbacks=[PowerCut()], **options).train()
    resumed = guarded(lora_model(), tmp_path, **options)
    monkeypatch.setattr(callback, "new_alarms", lambda history, raised: alarm_at(5)(history, raised - {"planted"}))
    assert resumed.guard is not None
    resumed.train(resume_from_checkpoint=True)
    assert [(line["step"], line["name"]) for line in lines(tmp_path, "guard.jsonl")] == [(2, "planted"), (5, "planted")]
    assert new_alarms is not callback.new_alarms


def test_a_run_without_the_references_answers_is_watched_by_its_figures(paid, tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    with pytest.raises(RuntimeError, match="power cut"):
        guarded(lora_model(), tmp_path, callbacks=[PowerCut()], **options).train()
    (tmp_path / "guard_reference.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint-6", ignore_errors=True)
    guarded(lora_model(), tmp_path, **options).train(resume_from_checkpoint=True)
    assert [look["step"] for look in looks(tmp_path)] == [1, 2, 3]


def test_a_fresh_run_in_the_same_folder_forgets_the_old_one(paid, monkeypatch, tmp_path):
    guarded(lora_model(), tmp_path, **FAR_TOO_FAST).train()
    assert lines(tmp_path, "guard.jsonl")
    guarded(lora_model(), tmp_path, max_steps=1).train()
    assert lines(tmp_path, "guard.jsonl") == []
    assert {entry["step"] for entry in lines(tmp_path, "samples.jsonl")} == {1}
