"""Stop and resume: the run goes on as if it had never stopped, and only with the reference it began with."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from preftune.errors import ConfigError, ReferenceMismatchError
from tests.training.dpo_runs import logged, lora_model, metrics, trainer, untimed
from tiny import rows, tiny_model

CASES = {
    "lora": lora_model,
    "full": tiny_model,
    "sft": lambda: lora_model(trained=True),
    "pissa": lambda: lora_model(init_lora_weights="pissa"),
}
OPTIONS: dict[str, Any] = {
    "max_steps": 9,
    "logging_steps": 3,  # the checkpoint of step 5 cuts the window of steps 4 to 6
    "save_strategy": "steps",
    "save_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "learning_rate": 3e-3,
    "train_sampling_strategy": "random",
}


def run(make: Any, folder: Path, *, callbacks: Any = None, resume: Any = None, **options: Any) -> Any:
    settings = {"data": rows(14), "eval_dataset": rows(3, start=40), **OPTIONS, **options}
    made = trainer(make(), folder, callbacks=callbacks, **settings)
    made.train(resume_from_checkpoint=resume)
    return made


class PowerCut(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise RuntimeError("power cut")


@dataclass
class Runs:
    """A run without interruption, and the folder that one leaves behind when the power fails in its eighth step."""

    whole: Any
    whole_folder: Path
    cut_folder: Path


@pytest.fixture(scope="module")
def runs_of(tmp_path_factory):
    made: dict[str, Runs] = {}

    def runs(case: str) -> Runs:
        if case not in made:
            folder = tmp_path_factory.mktemp("resume")
            whole = run(CASES[case], folder / "whole")
            with pytest.raises(RuntimeError, match="power cut"):
                run(CASES[case], folder / "cut", callbacks=[PowerCut()])
            made[case] = Runs(whole, folder / "whole", folder / "cut")
        return made[case]

    return runs


@pytest.fixture
def cut(runs_of, tmp_path):
    """A copy of what the interrupted run left, and the cache folder of this test still empty."""

    def copy(case: str) -> Path:
        shutil.copytree(runs_of(case).cut_folder, tmp_path / "cut")
        return tmp_path / "cut"

    return copy


def comparable(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without rates, and without how many scores were on disk, of which a resumed run finds more."""
    return [{k: v for k, v in record.items() if k != "reference/cache_hits"} for record in untimed(records)]


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_logs_what_an_uninterrupted_one_logs_and_ends_with_its_weights(case, runs_of, cut):
    folder, expected = cut(case), runs_of(case)
    assert [record["step"] for record in metrics(folder) if "loss" in record] == [3, 6]  # 6 will be logged again
    resumed = run(CASES[case], folder, resume=True)
    found, wanted = comparable(metrics(folder)), comparable(metrics(expected.whole_folder))
    assert [record["step"] for record in found] == [3, 4, 6, 8, 9, 9, 9]
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    for one, other in zip(resumed.state.log_history, expected.whole.state.log_history, strict=True):
        assert comparable([one])[0] == pytest.approx(comparable([other])[0], rel=1e-4, abs=1e-6)
    for name, weight in expected.whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.sample(1)
@pytest.mark.parametrize("persistent", [False, True])
def test_dropout_of_a_resumed_run_is_that_of_a_run_without_interruption(persistent, tmp_path):
    """Persistent workers begin once in a process: what they draw must not come out of dropout's generator."""
    options: dict[str, Any] = {
        "disable_dropout": False,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": persistent,
    }

    def make() -> Any:
        return lora_model(lora_dropout=0.3)

    whole = run(make, tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="power cut"):
        run(make, tmp_path / "cut", callbacks=[PowerCut()], **options)
    torch.manual_seed(99)
    resumed = run(make, tmp_path / "cut", resume=True, **options)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_the_mean_loss_of_a_resumed_run_is_the_mean_of_all_its_steps(runs_of, cut):
    folder, whole = cut("lora"), runs_of("lora").whole
    made = trainer(lora_model(), folder, data=rows(14), eval_dataset=rows(3, start=40), **OPTIONS)
    result = made.train(resume_from_checkpoint=True)
    expected = sum(logged(whole)) / 3
    assert logged(whole, "train_loss")[0] == pytest.approx(expected, rel=1e-5)
    assert result.metrics["train_loss"] == pytest.approx(expected, rel=1e-4)
    assert result.training_loss == pytest.approx(expected, rel=1e-4)
    outcome = json.loads((folder / "run.json").read_text())
    assert outcome["result"]["train_loss"] == pytest.approx(expected, rel=1e-4)
    assert outcome["resumed_from_step"] == 5


def test_a_last_line_that_a_crash_left_unfinished_is_dropped(runs_of, cut):
    folder = cut("lora")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 0.3')
    run(lora_model, folder, resume=str(folder / "checkpoint-5"))
    assert [r["loss"] for r in metrics(folder) if "loss" in r] == pytest.approx(logged(runs_of("lora").whole), rel=1e-4)


@pytest.mark.sample(2)
@pytest.mark.parametrize("damage", ["deleted", "a line lost", "a figure changed", "of another run", "none"])
def test_metrics_that_are_not_what_the_run_logged_are_restored(damage, cut, runs_of, caplog):
    file = cut("lora") / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if '"loss"' in line)
    changed = {"a line lost": "", "a figure changed": re.sub(r'"loss": [^,]*', '"loss": 0.1', lines[at])}
    lines[at] = changed.get(damage, lines[at])
    if damage == "of another run":
        lines = [f'{{"step": {step}, "loss": 9.0, "guard/train_margin": 9.0}}\n' for step in range(1, 6)]
    file.write_text("".join(lines))
    if damage == "deleted":
        file.unlink()
    run(lora_model, file.parent, resume=True)
    assert (f"{file} is not what this run wrote: the figures of" in caplog.text) == (damage != "none")
    found, wanted = comparable(metrics(file.parent)), comparable(metrics(runs_of("lora").whole_folder))
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_a_resumed_run_asks_the_reference_nothing_that_it_asked_before(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        run(tiny_model, tmp_path, callbacks=[PowerCut()])
    resumed = trainer(tiny_model(), tmp_path, data=rows(14), eval_dataset=rows(3, start=40), **OPTIONS)
    resumed.reference.source.score = None  # it would fail
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9


@pytest.mark.parametrize("case", ["lora", "full"])
def test_resuming_with_another_model_is_an_error_that_says_which_one_is_wanted_and_loses_nothing(case, cut):
    folder = cut(case)
    before = (folder / "metrics.jsonl").read_bytes(), (folder / "run.json").read_bytes()
    other = tiny_model(seed=5) if case == "full" else lora_model(tiny_model(seed=5))
    with pytest.raises(ReferenceMismatchError, match="the model that the run started from"):
        run(lambda: other, folder, resume=True)
    assert before == ((folder / "metrics.jsonl").read_bytes(), (folder / "run.json").read_bytes())


def test_a_checkpoint_of_an_earlier_release_goes_on_and_says_that_the_reference_cannot_be_checked(runs_of, cut, caplog):
    """The rule of the fingerprint has changed since, and options were added."""
    folder = cut("full")
    file = folder / "checkpoint-5" / "preftune_state.json"
    state = json.loads(file.read_text())
    state["reference"] = {"source": "a pass over all rows before the first step", "fingerprint": "0" * 32}
    file.write_text(json.dumps(state))
    manifest = folder / "checkpoint-5" / "preftune_manifest.json"
    content = json.loads(manifest.read_text())
    content["files"].pop(file.name)
    content.pop("check")
    for added in ("loss_weights", "f_divergence_type", "ld_alpha", "rpo_distance"):
        content["facts"]["settings"].pop(added)
    manifest.write_text(json.dumps(content))
    resumed = run(tiny_model, folder, resume=True)
    assert "It cannot be checked: give the model that the run started from" in caplog.text
    assert logged(resumed) == pytest.approx(logged(runs_of("full").whole), rel=1e-4)


def test_resuming_a_full_run_with_its_own_checkpoint_as_the_model_is_the_same_error(cut):
    from preftune import load_model

    folder = cut("full")
    with pytest.raises(ReferenceMismatchError, match="not with a checkpoint of it"):
        run(lambda: load_model(folder / "checkpoint-5"), folder, resume=True)


def test_a_checkpoint_that_is_not_there_is_a_clear_error(tmp_path):
    made = trainer(lora_model(), tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint in"):
        made.train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="not a folder"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


def test_a_checkpoint_of_another_library_is_resumed_if_it_is_named_and_says_what_is_not_known(cut, caplog):
    folder = cut("lora")
    for name in ("preftune_state.json", "preftune_manifest.json"):
        (folder / "checkpoint-5" / name).unlink()
    with pytest.raises(ConfigError, match=r"it has no preftune_manifest\.json; name it to use it"):
        run(lora_model, folder, resume=True)
    assert run(lora_model, folder, resume=str(folder / "checkpoint-5")).state.global_step == 9
    assert "cannot check that it is complete" in caplog.text


@pytest.mark.parametrize("optimiser", ["adamw_torch", "sgd"])
def test_a_hinge_run_whose_pairs_are_all_won_can_be_resumed(optimiser, tmp_path):
    """Beyond the margin hinge's gradient is exactly zero, which is no fault."""
    options = {"loss_type": "hinge", "beta": 2.0, "learning_rate": 0.1, "max_steps": 10, "optim": optimiser}
    options |= {"eval_strategy": "no", "eval_dataset": None, "logging_steps": 1, "save_steps": 8}
    won = run(lora_model, tmp_path, **options)
    assert logged(won)[8:] == [0.0, 0.0]
    resumed = run(lora_model, tmp_path, resume=str(tmp_path / "checkpoint-8"), **options)
    assert resumed.state.global_step == 10


def test_a_second_call_of_train_goes_on_with_the_same_reference(tmp_path):
    made = trainer(lora_model(trained=True), tmp_path, data=rows(6))
    fingerprint = made.reference.source.fingerprint
    made.train()
    made.train()
    assert made.reference.source.fingerprint == fingerprint
    assert logged(made)[0] < 0.5  # the policy is where the first call left it, the reference where it was received
