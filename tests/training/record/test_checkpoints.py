"""Checkpoints are whole or not there; a run goes on from its own newest whole one, and touches nothing before that."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from preftune import DPOConfig
from preftune.errors import CheckpointError, ConfigError
from preftune.storage.file_hashes import DamagedError, check_files
from preftune.training.record import whole_checkpoint
from preftune.training.record.manifest import FILE, read_manifest
from tests.training.dpo_runs import logged, lora_model, metrics, trainer
from tiny import rows, tiny_model

OPTIONS: dict[str, Any] = {
    "max_steps": 8,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
    "train_sampling_strategy": "random",
    "lr_scheduler_type": "linear",
}


class PowerCut(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise RuntimeError("power cut")


def run(folder: Path, *, resume: Any = None, callbacks: Any = None, data: Any = None, **options: Any) -> Any:
    data = rows(14) if data is None else data
    made = trainer(lora_model(lora_dropout=0.1), folder, data=data, callbacks=callbacks, **{**OPTIONS, **options})
    made.train(resume_from_checkpoint=resume)
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole run, and the folder of one that ended in its eighth step, with checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("checkpoints")
    whole = run(folder / "whole", disable_dropout=False)
    with pytest.raises(RuntimeError, match="power cut"):
        run(folder / "cut", callbacks=[PowerCut()], disable_dropout=False)
    return whole, folder / "cut"


@pytest.fixture
def cut(runs, tmp_path):
    shutil.copytree(runs[1], tmp_path / "cut")
    return tmp_path / "cut"


def weights(made: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in made.model.state_dict().items() if "lora_" in name}


def same_weights(one: Any, other: Any) -> bool:
    return all(torch.equal(weight, weights(other)[name]) for name, weight in weights(one).items())


def flip(path: Path) -> None:
    """One bit in the middle, where the payload is."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def check(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    check_files(folder, manifest.files)


FILES = (
    "trainer_state.json", "preftune_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "adapter_model.safetensors", FILE,
)  # fmt: skip


@pytest.mark.parametrize("damage", [Path.unlink, empty, halve, flip], ids=["deleted", "empty", "halved", "flipped"])
def test_a_damaged_checkpoint_is_found_whatever_is_damaged(damage, runs, tmp_path):
    for name in FILES:
        folder = tmp_path / name
        shutil.copytree(runs[1] / "checkpoint-6", folder)
        damage(folder / name)
        if name == FILE and damage is Path.unlink:
            assert read_manifest(folder) is None
            continue
        with pytest.raises(DamagedError):
            check(folder)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "preftune_state.json", FILE])
def test_the_newest_whole_checkpoint_is_used_and_the_damaged_one_named(name, runs, cut, caplog):
    (cut / "checkpoint-6" / name).unlink()
    resumed = run(cut, resume=True, disable_dropout=False)
    assert name in caplog.text.partition("skipped: checkpoint-6 (")[2]
    assert json.loads((cut / "run.json").read_text())["resumed_from_step"] == 3
    assert same_weights(resumed, runs[0])
    assert logged(resumed) == logged(runs[0])
    assert [line["step"] for line in metrics(cut) if "loss" in line] == list(range(1, 9))
    assert (next((cut / "_earlier").iterdir()) / "checkpoint-6").is_dir(), "the damaged one is kept, apart"


def test_a_damaged_checkpoint_that_is_named_is_refused_with_the_whole_one_and_nothing_is_lost(cut):
    halve(cut / "checkpoint-6" / "optimizer.pt")
    before = {name: (cut / name).read_bytes() for name in ("metrics.jsonl", "run.json")}
    with pytest.raises(ConfigError, match=r"optimizer.pt has a size of .* bytes instead of .*checkpoint-3 is complete"):
        run(cut, resume=str(cut / "checkpoint-6"), disable_dropout=False)
    for name in ("checkpoint-3", "checkpoint-6"):
        halve(cut / name / "trainer_state.json")
    with pytest.raises(ConfigError, match=r"none can be used: checkpoint-6 \(.*\); checkpoint-3 \("):
        run(cut, resume=True, disable_dropout=False)
    assert before == {name: (cut / name).read_bytes() for name in before}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import transformers
from preftune.training.record import checkpoint, manifest, whole_checkpoint
from tests.training.dpo_runs import lora_model, trainer
from tests.training.record.test_checkpoints import OPTIONS
from tiny import rows

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def on_second(owner, name):
    real, calls = getattr(owner, name), []
    def call(*args, **kwargs):
        calls.append(1)
        return kill() if len(calls) == 2 else real(*args, **kwargs)
    setattr(owner, name, call)

on_second(*{{
    "optimizer": (transformers.Trainer, "_save_optimizer_and_scheduler"),
    "state": (checkpoint, "save_state"),
    "manifest": (whole_checkpoint, "write_manifest"),
    "rename": (whole_checkpoint, "_rename"),
}}[sys.argv[1]])
trainer(lora_model(lora_dropout=0.1), Path(sys.argv[2]), data=rows(14), disable_dropout=False, **OPTIONS).train()
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize("moment", ["optimizer", "state", "manifest", "rename"])
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(moment, runs, tmp_path):
    script = KILLED.format(tests=str(Path(__file__).parents[2]), root=str(Path(__file__).parents[3]))
    done = subprocess.run([sys.executable, "-c", script, moment, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert (tmp_path / "_writing").is_dir()
    resumed = run(tmp_path, resume=True, disable_dropout=False)
    assert same_weights(resumed, runs[0])
    assert logged(resumed) == logged(runs[0])
    assert not (tmp_path / "_writing").exists()


def test_a_full_disk_leaves_no_half_checkpoint_and_the_message_says_what_is_kept(tmp_path, monkeypatch):
    real, calls = torch.save, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 6 .*No space left on device.* --resume"):
        run(tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "_writing").exists()
    monkeypatch.setattr(torch, "save", real)
    assert run(tmp_path, resume=True).state.global_step == 8


# --- the same run ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta": 0.3}, r"beta \(0.1 before, 0.3 now\)"),
        ({"seed": 4}, r"seed \(3 before, 4 now\)"),
        ({"per_device_train_batch_size": 4}, r"batch size \(2 before, 4 now\)"),
        ({"learning_rate": 1e-3}, r"learning_rate \(0.01 before, 0.001 now\)"),
        ({"data": rows(12)}, r"the training data \(14 rows before, 12 now\)"),
        ({"data": rows(14, start=30)}, r"the training data \(14 rows, with other contents\)"),
    ],
)
def test_another_run_is_refused_with_the_difference_and_nothing_is_touched(changes, said, cut):
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=said):
        run(cut, resume=True, **{"disable_dropout": False, **changes})
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


def test_another_base_beneath_an_adapter_is_distinguished_from_its_kin_without_a_reference():
    from preftune.training.record.same_run import base_of, differences

    one, again, other = (base_of(lora_model(tiny_model(seed=seed))) for seed in (1, 1, 2))
    assert one == again
    facts = {"data": {}, "settings": {}, "adapter": None, "base": one}
    assert differences(facts, {**facts, "base": other}) == ["the weights of the base model"]
    assert base_of(tiny_model()) is None, "all of it is trained, and comes from the checkpoint"


def test_a_change_that_is_accepted_holds(cut, caplog):
    """transformers would take the learning rate and the optimiser's settings from the checkpoint."""
    resumed = run(cut, resume=True, disable_dropout=False, learning_rate=1e-3, weight_decay=0.5, allow_changed=True)
    assert (
        "resumed with changes: learning_rate (0.01 before, 0.001 now); weight_decay (0.0 before, 0.5 now)"
        in caplog.text
    )
    assert logged(resumed, "learning_rate")[-2:] == pytest.approx([1e-3 * 2 / 8, 1e-3 * 1 / 8])
    assert resumed.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_what_does_not_change_an_update_may_change(cut):
    options = {"logging_steps": 2, "save_steps": 4, "max_tokens_per_batch": 64, "eval_strategy": "no"}
    resumed = run(cut, resume=True, disable_dropout=False, **options)
    assert (cut / "checkpoint-8").is_dir()
    assert not (cut / "checkpoint-7").exists()
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry][-1] == 8


# --- a run that has ended ---


# --- one folder, several runs ---


# --- when, and how many ---


def test_by_default_a_run_writes_a_checkpoint_in_every_epoch_and_keeps_the_last_two(tmp_path):
    automatic = {"save_strategy": None, "save_steps": None, "max_steps": -1, "num_train_epochs": 3}
    run(tmp_path, **automatic)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-14", "checkpoint-21"]


def test_a_checkpoint_is_written_when_the_time_has_come(tmp_path):
    run(tmp_path, save_strategy="epoch", save_seconds=1e-9, max_steps=3)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
    ]


@pytest.mark.parametrize(
    ("asked", "strategy", "limit", "seconds"),
    [
        ({}, "epoch", 2, 600.0),
        ({"save_total_limit": 5}, "epoch", 5, 600.0),
        ({"save_steps": 100}, "steps", None, None),
        ({"save_strategy": "no"}, "no", None, None),
        ({"save_strategy": "steps"}, "steps", None, None),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 7}, "steps", 2, 600.0),
    ],
)
def test_who_says_when_checkpoints_are_written(asked, strategy, limit, seconds, tmp_path):
    made = DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **asked)
    found = made.save_strategy.value, made.save_total_limit, made.save_seconds
    assert found == (strategy, limit, seconds)


def test_the_best_checkpoint_is_kept_and_its_name_is_that_of_its_folder(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    made = run(tmp_path, save_total_limit=1, eval_dataset=rows(3, start=40), **options)
    best = Path(made.state.best_model_checkpoint)
    assert best.parent == tmp_path
    assert best.is_dir()
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)


def test_the_best_checkpoint_is_found_where_the_run_directory_has_moved(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    options |= {"eval_dataset": rows(3, start=40), "learning_rate": 0.0, "save_total_limit": 2}  # the first is the best
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "old", callbacks=[PowerCut()], **options)
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = run(tmp_path / "new", resume=True, **options)
    assert moved.state.best_model_checkpoint == str(tmp_path / "new" / "checkpoint-2")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("metric_for_best_model", {"metric_for_best_model": "rewards/accuracies"}),
        ("the held-out rows", {"eval_dataset": rows(4, start=60)}),
        ("", {}),
    ],
)
def test_the_best_checkpoint_is_chosen_among_figures_that_compare(name, change, tmp_path, caplog):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    options |= {"eval_dataset": rows(3, start=40), "learning_rate": 0.0, "metric_for_best_model": "loss"}
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, callbacks=[PowerCut()], **options)
    resumed = run(tmp_path, resume=True, **{**options, **change})
    assert resumed.state.best_global_step == (8 if name else 2)
    assert (f"the best so far (step 2): {name}" in caplog.text) == bool(name)


def test_weights_alone_are_no_checkpoint_to_resume_from(tmp_path):
    run(tmp_path, save_only_model=True)
    with pytest.raises(ConfigError, match="only the weights"):
        run(tmp_path, resume=True)


def test_a_checkpoint_is_pushed_under_its_name_when_it_is_whole(tmp_path, monkeypatch):
    pushed = []

    def push(self: Any, folder: str) -> None:
        pushed.append((folder, (Path(folder) / FILE).is_file()))

    from transformers import Trainer

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    made = trainer(lora_model(), tmp_path, data=rows(14), **OPTIONS)
    made.args.push_to_hub = True
    monkeypatch.setattr(Trainer, "push_to_hub", lambda *args, **kwargs: None)
    made.train()
    assert pushed == [(str(tmp_path / f"checkpoint-{step}"), True) for step in (3, 6, 8)]


def test_the_same_step_is_written_once(tmp_path, monkeypatch):
    written = []
    real = whole_checkpoint.write_manifest
    monkeypatch.setattr(
        whole_checkpoint, "write_manifest", lambda folder, **facts: (written.append(folder.name), real(folder, **facts))
    )
    run(tmp_path, save_strategy="epoch", save_seconds=1e-9, max_steps=-1, num_train_epochs=1)
    assert written == [f"checkpoint-{step}" for step in range(1, 8)]


def test_the_umask_of_other_threads_is_never_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", None)
    run(tmp_path, max_steps=3)


def test_a_finished_run_without_checkpoints_is_not_trained_again_by_auto(tmp_path, caplog):
    made = run(tmp_path, save_strategy="no")
    made.save_model()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = run(tmp_path, resume="auto", save_strategy="no")
    assert again.nothing_to_do
    assert same_weights(again, made)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not run(tmp_path, resume="auto", save_strategy="no", beta=0.2).nothing_to_do, "another run"
    assert (next((tmp_path / "_earlier").iterdir()) / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["trainer_state.json", "preftune_state.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"null", b"\xff"])
def test_a_damaged_checkpoint_without_a_manifest_is_an_error_that_names_it(content, name, cut):
    (cut / "checkpoint-6" / FILE).unlink()
    (cut / "checkpoint-6" / name).write_bytes(content)
    before = (cut / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"checkpoint-6 cannot be resumed from: .*checkpoint-3 is complete"):
        run(cut, resume=str(cut / "checkpoint-6"), disable_dropout=False)
    assert (cut / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", [empty, halve])
def test_a_torn_file_of_a_checkpoint_without_a_manifest_is_an_error_that_names_the_checkpoint(damage, name, cut):
    (cut / "checkpoint-6" / FILE).unlink()
    damage(cut / "checkpoint-6" / name)
    with pytest.raises(CheckpointError, match="checkpoint-6 cannot be loaded into this run"):
        run(cut, resume=str(cut / "checkpoint-6"), disable_dropout=False)


def test_a_manifest_that_is_nested_too_deeply_is_damaged(tmp_path):
    (tmp_path / FILE).write_text("[" * 200_000)
    with pytest.raises(DamagedError, match="RecursionError"):
        read_manifest(tmp_path)
