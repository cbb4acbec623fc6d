"""Runs that ended: they are not trained again, and may be extended."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, TrainerCallback

from preftune.errors import CheckpointError
from preftune.models.locate import run_of_weights
from tests.training.dpo_runs import logged, lora_model, metrics, trainer
from tiny import rows, save_tiny

from .test_checkpoints import OPTIONS, PowerCut, run, same_weights


def test_a_finished_run_is_left_as_it_is(tmp_path, caplog):
    made = run(tmp_path)
    made.save_model()
    assert run_of_weights(tmp_path) == (json.loads((tmp_path / "run.json").read_text())["id"], 8)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for asked in (True, "auto"):
        again = run(tmp_path, resume=asked)
        assert again.nothing_to_do
        assert again.state.global_step == 8
        assert same_weights(again, made)
    assert "nothing to do: the run in" in caplog.text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def torn(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def flipped(whole: bytes) -> bytes:
    """One bit of the last weight, which no reader notices."""
    return whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]


@pytest.mark.sample(1)
@pytest.mark.parametrize("damage", [torn, flipped])
@pytest.mark.parametrize("there", ["checkpoint", "none"])
def test_a_finished_run_whose_weights_are_damaged_takes_them_from_its_last_checkpoint(there, damage, tmp_path, caplog):
    made = run(tmp_path)
    made.save_model()
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    if there == "none":
        shutil.rmtree(tmp_path / "checkpoint-8")
        with pytest.raises(CheckpointError, match=f"the run in {tmp_path} is finished, but its weights cannot be used"):
            run(tmp_path, resume="auto")
        return
    again = run(tmp_path, resume="auto")
    assert f"they are taken from {tmp_path / 'checkpoint-8'}" in caplog.text
    assert same_weights(again, made)
    again.save_model()
    assert file.read_bytes() == whole


def test_a_run_that_ended_and_was_killed_before_it_saved_its_weights_is_completed_without_a_step(tmp_path):
    made = run(tmp_path)
    facts = json.loads((tmp_path / "run.json").read_text()) | {"outcome": "running"}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    again = run(tmp_path, resume=True)
    assert not again.nothing_to_do, "its weights are to be saved"
    assert same_weights(again, made)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["outcome"], record["steps"]) == ("finished", 8)
    assert record["result"]["train_loss"] == pytest.approx(sum(logged(made)) / 8, rel=1e-6)
    assert record["result"]["total_flos"] == made.state.total_flos > 0
    assert logged(again, "train_loss")[-1] == pytest.approx(sum(logged(made)) / 8, rel=1e-6)
    assert record["result"]["epoch"] == pytest.approx(made.state.epoch)
    assert len([line for line in metrics(tmp_path) if "train_loss" in line]) == 1


def test_a_finished_run_whose_weights_were_never_saved_keeps_its_result(tmp_path):
    made = run(tmp_path)
    before = json.loads((tmp_path / "run.json").read_text())["result"]
    again = run(tmp_path, resume="auto")
    assert not again.nothing_to_do
    after = json.loads((tmp_path / "run.json").read_text())["result"]
    assert after == pytest.approx(before, rel=1e-6)
    assert {"total_flos", "train_runtime", "train_loss"} <= after.keys()
    assert [line["total_flos"] for line in metrics(tmp_path) if "train_loss" in line] == [after["total_flos"]]
    assert same_weights(again, made)


@pytest.mark.parametrize("what", ["finished", "best", "full"])
def test_a_run_that_has_ended_is_evaluated_against_the_reference_it_began_with(what, tmp_path):
    """Its weights are loaded after the trainer is made, and were taken for the reference: a margin of 0."""
    options = {**OPTIONS, "data": rows(14), "eval_dataset": rows(4, start=50)}
    if what != "finished":
        options |= {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
    name = save_tiny(tmp_path / "model")

    def trained(resume: bool) -> Any:
        model = AutoModelForCausalLM.from_pretrained(name) if what == "full" else lora_model()
        made = trainer(model, tmp_path / "run", **options)
        made.train(resume_from_checkpoint=resume)
        return made

    made = trained(False)
    if what == "finished":
        made.save_model()
    else:
        facts = json.loads((tmp_path / "run/run.json").read_text()) | {"outcome": "interrupted"}
        (tmp_path / "run/run.json").write_text(json.dumps(facts))
    before, after = (one.evaluate()["eval_rewards/margins"] for one in (made, trained(True)))
    assert abs(before) > 1e-3
    assert after == pytest.approx(before)


@pytest.mark.parametrize("end", [{"max_steps": 8}, {"max_steps": -1, "num_train_epochs": 1}, {"max_train_tokens": 200}])
def test_a_run_that_ended_is_not_trained_one_step_further(end, tmp_path):
    made = run(tmp_path, lr_scheduler_type="constant", **end)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    again = run(tmp_path, resume=str(last), lr_scheduler_type="constant", **end)
    assert again.state.global_step == made.state.global_step == int(last.name[11:])
    assert same_weights(again, made)


def test_counting_the_steps_of_the_epochs_draws_no_random_number(tmp_path):
    options = {"max_steps": -1, "num_train_epochs": 2, "disable_dropout": False, "save_steps": 5}
    whole = run(tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", callbacks=[PowerCut()], **options)
    resumed = run(tmp_path / "cut", resume=True, **options)
    assert same_weights(resumed, whole)
    assert logged(resumed) == logged(whole)


def test_a_checkpoint_at_the_end_of_its_run_is_completed_in_another_folder_without_mixing_runs(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", beta=0.2, max_steps=2)
    done = run(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-8"))
    assert done.state.global_step == 8
    assert not (tmp_path / "b" / "checkpoint-2").exists()
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert (record["id"], record["steps"]) == (json.loads((tmp_path / "a" / "run.json").read_text())["id"], 8)


def test_an_early_end_by_a_callback_is_an_end(tmp_path):
    class Enough(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    made = run(tmp_path, callbacks=[Enough()])
    assert made.state.global_step == 3
    assert run(tmp_path, resume=str(tmp_path / "checkpoint-3")).state.global_step == 3
    assert run(tmp_path, resume=str(tmp_path / "checkpoint-3"), allow_changed=True).state.global_step == 8


def test_epochs_that_are_added_begin_with_the_rate_of_the_longer_schedule(tmp_path, caplog):
    run(tmp_path, max_steps=4)
    longer = run(tmp_path, max_steps=8, resume=True)
    assert longer.state.global_step == 8
    assert logged(longer, "learning_rate")[4:] == pytest.approx([1e-2 * left / 8 for left in (4, 3, 2, 1)])
    assert "max_steps (4 before, 8 now)" in caplog.text


def test_evaluations_without_progress_are_counted_over_a_resume(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 2, "early_stopping_patience": 3}
    options |= {"learning_rate": 0.0, "eval_dataset": rows(3, start=40), "max_steps": 12}
    whole = run(tmp_path / "whole", **options)
    resumed = run(tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-2"), **options)
    assert resumed.state.global_step == whole.state.global_step == 4


def test_a_disk_that_is_full_at_the_end_says_how_the_run_is_completed(tmp_path, monkeypatch):
    """safetensors and torch have errors of their own for it, which named neither the folder nor what is kept."""
    for words, error in (("I/O error", SafetensorError), ("enforce fail at inline_container.cc", RuntimeError)):
        for strategy, remedy in (("steps", "from its last checkpoint: --resume"), ("no", "No checkpoint was written")):
            folder = tmp_path / f"{strategy} {error.__name__}"
            made = run(folder, save_strategy=strategy, max_steps=3)
            with monkeypatch.context() as full:
                full.setattr(type(made.model), "save_pretrained", raising(error(words)))
                with pytest.raises(CheckpointError, match=rf"not be written to .*{words}.*Make room.*{remedy}"):
                    made.save_model()
    with monkeypatch.context() as other:
        other.setattr(type(made.model), "save_pretrained", raising(RuntimeError("weights share memory")))
        with pytest.raises(RuntimeError, match=r"^weights share memory$"):
            made.save_model()


def raising(error: Exception) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail
