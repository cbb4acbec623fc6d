"""Checkpoints without a manifest or with a forged one: values of wrong types are named, not a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import CheckpointError, ConfigError, PreftuneError
from preftune.storage.file_hashes import DamagedError, size_and_hash
from preftune.training.record.manifest import FILE, read_manifest, write_manifest
from preftune.training.record.resuming import choose_checkpoint, own_state
from tests.training.dpo_runs import lora_model, trainer
from tests.training.online.test_group_trainer import stepped

WRONG: list[Any] = ["x", ["x"], 10**400, {"a": {"b": 1}}, -3]


def resume(folder: Path, output: Path) -> None:
    made = trainer(lora_model(), output, max_steps=3)
    made.train(resume_from_checkpoint=str(folder))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    trainer(lora_model(), folder, max_steps=2, save_strategy="steps", save_steps=2).train()
    (folder / "checkpoint-2" / FILE).unlink()
    return folder / "checkpoint-2"


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / made.name))


def change(file: Path, name: str, value: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("trainer_state.json", "log_history", "x"),
        ("trainer_state.json", "total_flos", None),
        ("trainer_state.json", "best_model_checkpoint", ["x"]),
        ("trainer_state.json", "stateful_callbacks", 3),
        ("trainer_state.json", "global_step", "2"),
        ("preftune_state.json", "reference", ["x"]),
        ("preftune_state.json", "reference", {"fingerprint": 3}),
        ("preftune_state.json", "step_limit", "x"),
        ("preftune_state.json", "loss", 10**400),
        ("preftune_state.json", "spent", 3),
    ],
)
def test_a_value_of_a_wrong_type_is_named(file: str, name: str, value: Any, checkpoint: Path, tmp_path: Path) -> None:
    change(checkpoint / file, name, value)
    with pytest.raises(ConfigError, match=f"checkpoint-2 cannot be resumed from: its {file} has {name}="):
        resume(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value"), [("moments", {"a": 1}), ("rewards", [1.0]), ("spent", {"a": 1}), ("work", {"units": "x"})]
)
def test_what_only_the_reader_knows_names_the_checkpoint(
    name: str, value: Any, checkpoint: Path, tmp_path: Path
) -> None:
    change(checkpoint / "preftune_state.json", name, value)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 cannot be loaded into this run \(.*Nothing was trained"):
        resume(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("file", ["trainer_state.json", "preftune_state.json"])
def test_every_field_of_every_type(file: str, checkpoint: Path) -> None:
    whole, refused = (checkpoint / file).read_text(), 0
    for name in json.loads(whole):
        for value in WRONG:
            (checkpoint / file).write_text(whole)
            change(checkpoint / file, name, value)
            with contextlib.suppress(PreftuneError):
                choice = choose_checkpoint(str(checkpoint), str(checkpoint.parent))
                assert choice is not None
                own_state(choice, rank=0)
                continue
            refused += 1
    assert refused > 2 * len(json.loads(whole))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    trainer(lora_model(), folder, max_steps=2, save_strategy="steps", save_steps=1).train()
    return folder


@pytest.mark.parametrize(
    ("file", "name", "value", "said"),
    [
        ("trainer_state.json", "global_step", 1, "is of step 1, and its preftune_manifest.json of step 2"),
        ("trainer_state.json", "global_step", "2", "has global_step='2'"),
        ("trainer_state.json", "log_history", [{"loss": 0.5}], "has log_history="),
        ("preftune_state.json", "reference", "x", "has reference='x'"),
        ("preftune_state.json", "window", "x", "has window='x'"),
        ("preftune_state.json", "total_loss", None, "has total_loss=None"),
        ("preftune_state.json", "stream", "x", "has stream='x'"),
    ],
)
def test_a_checkpoint_with_a_forged_manifest_is_passed_over(
    file: str, name: str, value: Any, said: str, two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(two, tmp_path / "run"))
    checkpoint = folder / "checkpoint-2"
    change(checkpoint / file, name, value)
    content = json.loads((checkpoint / FILE).read_text())
    del content["check"]
    content["files"][file] = size_and_hash(checkpoint / file)
    (checkpoint / FILE).write_text(json.dumps(content))
    choice = choose_checkpoint("auto", str(folder))
    assert choice is not None
    assert choice.folder.name == "checkpoint-1"
    assert f"skipped: checkpoint-2 (its {file} {said}" in caplog.text
    with pytest.raises(ConfigError, match=r"checkpoint-2 cannot be resumed from: its .*checkpoint-1 is complete"):
        choose_checkpoint(str(checkpoint), str(folder))


@pytest.mark.parametrize("name", ["run", "step", "processes", "resumable", "facts", "files", "version"])
@pytest.mark.parametrize("value", [*WRONG, {"data": {"rows": "x"}}, {"settings": 3}], ids=lambda value: str(value)[:12])
def test_a_manifest_without_its_hash_is_read_with_care(name: str, value: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path, run="r", step=2, processes=1, resumable=True, facts={"data": {"rows": 3}})
    content = json.loads((tmp_path / FILE).read_text())
    del content["check"]
    (tmp_path / FILE).write_text(json.dumps(content))
    assert read_manifest(tmp_path) is not None, "an older preftune wrote it"
    if not (name == "run" and value == "x") and not (name in ("facts", "files") and value == {"a": {"b": 1}}):
        (tmp_path / FILE).write_text(json.dumps({**content, name: value}))
        with pytest.raises(DamagedError):
            read_manifest(tmp_path)


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", ["configuration", "data", "result", "id", "steps", "outcome", "spent"])
@pytest.mark.parametrize("value", ["x", [3], {"train": "x"}], ids=str)
def test_run_json_with_other_types_is_no_traceback(name: str, value: Any, tmp_path: Path) -> None:
    """Of a finished run without checkpoints that is opened again: it is this run, or another one that is put aside."""
    made = trainer(lora_model(), tmp_path, max_steps=1)
    made.train()
    made.save_model()
    change(tmp_path / "run.json", name, value)
    with contextlib.suppress(PreftuneError):
        again = trainer(lora_model(), tmp_path, max_steps=1)
        again.train(resume_from_checkpoint="auto")
        assert again.state.global_step == 1


def test_what_an_online_run_writes_is_of_the_right_types(tmp_path: Path) -> None:
    stepped(tmp_path, save_strategy="steps", save_steps=1, num_iterations=2)
    for folder in tmp_path.glob("checkpoint-*"):
        (folder / FILE).unlink()
        choice = choose_checkpoint(str(folder), str(tmp_path))
        assert choice is not None
        assert isinstance((own_state(choice, rank=0) or {})["window"], dict)
