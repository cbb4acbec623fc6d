"""A new run in a folder with an earlier one, and two runs at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from preftune.errors import ConfigError, RequestError
from preftune.models.locate import locate
from preftune.storage import run_lock
from tests.training.dpo_runs import trainer
from tiny import save_tiny

from .test_checkpoints import PowerCut, run


def test_a_new_run_keeps_the_earlier_one_apart(tmp_path, caplog):
    first = run(tmp_path)
    first.save_model()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, callbacks=[PowerCut()], beta=0.2, save_strategy="no")
    aside = next((tmp_path / "_earlier").iterdir())
    assert f"it was moved to {aside}" in caplog.text
    assert {"run.json", "metrics.jsonl", "adapter_model.safetensors", "checkpoint-3"} <= {
        p.name for p in aside.iterdir()
    }
    assert not list(tmp_path.glob("checkpoint-*"))
    assert not list(tmp_path.glob("*.safetensors")), "eval would take them for the new run's"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"none was written\. Earlier runs of this folder are in"):
        run(tmp_path, resume=True, beta=0.2)
    assert json.loads((aside / "run.json").read_text())["id"] != json.loads((tmp_path / "run.json").read_text())["id"]


def test_a_run_that_is_restarted_before_its_first_checkpoint_leaves_no_pile(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path, callbacks=[PowerCut()], save_steps=100, resume="auto")
    assert not (tmp_path / "_earlier").exists()
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, callbacks=[PowerCut()], save_steps=100, resume="auto", beta=0.2)
    assert (tmp_path / "_earlier").exists(), "another run is kept"


def test_overwrite_removes_the_earlier_run(tmp_path):
    run(tmp_path)
    run(tmp_path, overwrite=True, max_steps=1, save_strategy="no")
    assert not (tmp_path / "_earlier").exists()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_model_in_the_folder_of_a_run_is_not_overwritten(tmp_path, caplog):
    name = save_tiny(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(ConfigError, match="the model is read from"):
        trainer(name, tmp_path / "model").train()
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    run(tmp_path / "model", max_steps=1)
    aside = next((tmp_path / "model/_earlier").iterdir())
    assert f"held a model; it was moved to {aside}" in caplog.text
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before


def test_a_checkpoint_of_another_run_is_not_offered(tmp_path):
    run(tmp_path / "a", max_steps=3)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "b", callbacks=[PowerCut()], save_strategy="no")
    shutil.copytree(tmp_path / "a/checkpoint-3", tmp_path / "b/checkpoint-3")
    with pytest.raises(ConfigError, match=r"checkpoint-3 \(it belongs to another run"):
        run(tmp_path / "b", resume=True)


def test_a_run_directory_whose_weights_are_of_another_run_is_no_model(tmp_path):
    from preftune.errors import ModelError

    made = run(tmp_path, max_steps=1, save_strategy="no")
    made.save_model()
    assert locate(str(tmp_path)).kind == "adapter"
    facts = json.loads((tmp_path / "run.json").read_text()) | {"id": "another", "outcome": "interrupted"}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="are of another run"):
        locate(str(tmp_path))


def test_a_model_inside_the_folder_that_a_new_run_replaces_is_refused(tmp_path):
    run(tmp_path / "run", max_steps=3)
    model = save_tiny(tmp_path / "run" / "checkpoint-9")
    made = trainer(model, tmp_path / "run", max_steps=1)
    with pytest.raises(ConfigError, match="inside output_dir"):
        made.train()
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


HOLDER = """
import sys, time
from preftune.storage.run_lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RequestError, match=rf"another run \(process {other.pid} on .*is writing to"):
            run(tmp_path)
        other.kill()
    assert not (tmp_path / "run.json").exists()
    assert run(tmp_path, max_steps=1).state.global_step == 1, "a killed process holds no lock"
    assert not (tmp_path / run_lock.FILE).exists()
