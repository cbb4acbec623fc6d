"""The optimiser and the schedule of a checkpoint fit the run, or the checkpoint is named: no crash, no other result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.errors import CheckpointError, ConfigError
from preftune.storage.file_hashes import size_and_hash
from preftune.training.record.manifest import FILE
from tests.training.dpo_runs import logged, lora_model, trainer
from tiny import rows

OPTIMISER, SCHEDULE = "optimizer.pt", "scheduler.pt"
Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    trainer(lora_model(), folder, max_steps=3, save_strategy="steps", save_steps=2).train()
    return folder / "checkpoint-2"


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run" / made.name))


def resume(folder: Path) -> Any:
    run = trainer(lora_model(), folder.parent, max_steps=3, save_strategy="steps", save_steps=2)
    run.train(resume_from_checkpoint=str(folder))
    return run


def forge(checkpoint: Path, file: str, change: Change) -> None:
    """Changes the content of a file, and its hash in the manifest."""
    content = torch.load(checkpoint / file, weights_only=True)
    change(content)
    torch.save(content, checkpoint / file)
    manifest = json.loads((checkpoint / FILE).read_text())
    manifest.pop("check", None)
    manifest["files"][file] = size_and_hash(checkpoint / file)
    (checkpoint / FILE).write_text(json.dumps(manifest))


def state(**values: Any) -> Change:
    return lambda content: content["state"][0].update(values)


def group(**values: Any) -> Change:
    return lambda content: content["param_groups"][0].update(values)


def schedule(**values: Any) -> Change:
    return lambda content: content.update(values)


FORGED: dict[str, tuple[str, Change, str]] = {
    "shape": (OPTIMISER, state(exp_avg=torch.zeros(3)), r"exp_avg of \S+ has the shape \(3,\), and the weight"),
    "text": (OPTIMISER, state(exp_avg="x"), r"exp_avg of \S+ is '"),
    "infinite": (OPTIMISER, lambda c: c["state"][0]["exp_avg"].fill_(torch.inf), "is not finite"),
    "negative": (OPTIMISER, lambda c: c["state"][0]["exp_avg_sq"].fill_(-1), "exp_avg_sq of .* is negative"),
    "later": (OPTIMISER, state(step=torch.tensor(400.0)), "step of .* is 400, at step 2 of the run"),
    "step": (OPTIMISER, state(step="4"), "cannot be loaded"),
    "none": (OPTIMISER, lambda c: c["state"].clear(), "has no state of"),
    "one": (OPTIMISER, lambda c: c["state"].pop(0), "has no state of"),
    "rate": (OPTIMISER, group(lr="a"), "has lr='a'"),
    "betas": (OPTIMISER, group(betas=0.1), "has betas=0.1, where the run has"),
    "decay": (OPTIMISER, group(weight_decay=100.0), "has weight_decay=100.0, where the run has 0"),
    "maximize": (OPTIMISER, group(maximize=True), "has maximize=True, where the run has False"),
    "groups": (OPTIMISER, schedule(param_groups=None), "cannot be loaded"),
    "epoch": (SCHEDULE, schedule(last_epoch=400), "is at step 400, and the run at step 2"),
    "epoch text": (SCHEDULE, schedule(last_epoch="a"), "has last_epoch='a'"),
    "rates": (SCHEDULE, schedule(base_lrs=[5.0]), "has base_lrs="),
    "rates text": (SCHEDULE, schedule(base_lrs="xx"), "has base_lrs='xx'"),
    "method": (SCHEDULE, schedule(get_lr=5), "has get_lr=5"),
    "optimiser": (SCHEDULE, schedule(optimizer=5), "has optimizer=5"),
    "factors": (SCHEDULE, schedule(lr_lambdas=None), "cannot be loaded"),
}


@pytest.mark.sample("shape", "later", "one", "decay", "epoch", "method")
@pytest.mark.parametrize("what", FORGED)
def test_a_state_that_does_not_fit_the_run_names_the_checkpoint(what: str, checkpoint: Path) -> None:
    file, change, said = FORGED[what]
    forge(checkpoint, file, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        resume(checkpoint)
    assert "checkpoint-2 cannot be loaded" in str(caught.value)
    assert "Nothing was trained." in str(caught.value)


def test_what_was_written_is_loaded(checkpoint: Path) -> None:
    forge(checkpoint, OPTIMISER, lambda content: None)
    assert resume(checkpoint).state.global_step == 3


def test_a_field_of_another_transformers_is_named(checkpoint: Path) -> None:
    (checkpoint / FILE).unlink()
    file = checkpoint / "trainer_state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "foo": 1}))
    with pytest.raises(ConfigError, match="has the field foo, which the installed transformers does not know"):
        resume(checkpoint)


class Counting(torch.optim.SGD):
    """Keeps a count in its groups, as schedule-free optimisers do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1e-2)
        for one in self.param_groups:
            one["k"] = 0

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for one in self.param_groups:
            one["k"] += 1
        return super().step(closure)


def test_a_longer_run_keeps_what_an_optimiser_counts_in_its_groups(tmp_path: Path) -> None:
    for steps in (2, 4):
        model = lora_model()
        optimizer = Counting([p for p in model.parameters() if p.requires_grad])
        options = {"max_steps": steps, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
        run = trainer(model, tmp_path, optimizers=(optimizer, None), **options)
        run.train(resume_from_checkpoint=None if steps == 2 else str(tmp_path / "checkpoint-2"))
    assert optimizer.param_groups[0]["k"] == 4


def test_a_changed_rate_holds_for_a_schedule_that_follows_a_metric(tmp_path: Path) -> None:
    options = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1,
        "eval_dataset": rows(4), "lr_scheduler_type": "reduce_lr_on_plateau",
    }  # fmt: skip
    trainer(lora_model(), tmp_path, learning_rate=1e-2, lr_scheduler_kwargs={"patience": 9}, **options).train()
    changed = {"learning_rate": 1e-3, "lr_scheduler_kwargs": {"patience": 8}, "allow_changed": True}
    run = trainer(lora_model(), tmp_path, **changed, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(run, "learning_rate")[-2:] == pytest.approx([1e-3, 1e-3])
    assert run.lr_scheduler.patience == 8


def test_a_schedule_of_another_kind_is_named(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    trainer(lora_model(), tmp_path, eval_dataset=rows(4), **options).train()
    other = {"lr_scheduler_type": "reduce_lr_on_plateau", "allow_changed": True}
    run = trainer(lora_model(), tmp_path, eval_dataset=rows(4), **other, **options)
    with pytest.raises(CheckpointError, match="is it one of another lr_scheduler_type"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
