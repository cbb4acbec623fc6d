"""Files that others wrote run no code: weights, adapters, checkpoints, prompts' hashes, chat templates, data.

docs/security.md lists what is promised, and the test of each promise."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preftune.data import load_pairs
from preftune.data.chat.tool_calls import apply_template
from preftune.deploy import read_manifest
from preftune.deploy.artefact import damaged_files
from preftune.errors import PreftuneError
from preftune.models import load_model
from preftune.storage.file_hashes import DamagedError, check_files, size_and_hash
from preftune.storage.trained_prompts import read_trained_prompts
from preftune.training import DPOConfig, DPOTrainer
from preftune.training.record.manifest import read_manifest as read_checkpoint_manifest
from preftune.training.record.manifest import write_manifest
from tests.deploy.runs import save_base, save_run
from tiny import chat_rows, tiny_tokenizer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.mark, "ran")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    found = tmp_path / "mark"
    pickle.loads(pickle.dumps(Payload(found)))
    assert found.read_text() == "ran"  # the payload works
    found.unlink()
    return found


def plant(file: Path, mark: Path) -> None:
    """Puts the payload into a file in the form that torch reads."""
    torch.save({"weight": Payload(mark)}, file)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_weights_in_a_pickle_run_nothing(tmp_path: Path, mark: Path, name: str) -> None:
    base = save_base(tmp_path / "base")
    folder = base if name == "pytorch_model.bin" else save_run(tmp_path / "run", base)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    plant(folder / name, mark)
    with pytest.raises((PreftuneError, pickle.UnpicklingError)):
        load_model(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_of_others_runs_nothing(
    tmp_path: Path, mark: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is forged too, so that the file is opened; `training_args.bin` is never read."""
    base = save_base(tmp_path / "base")

    def trainer(steps: int, **more: Any) -> DPOTrainer:
        args = DPOConfig(
            output_dir=str(tmp_path / "run"), max_steps=steps, save_strategy="steps", save_steps=1, save_total_limit=1,
            per_device_train_batch_size=4, disable_tqdm=True, guard="off", **more,
        )  # fmt: skip
        return DPOTrainer(load_model(base), args=args, train_dataset=chat_rows(8), processing_class=tiny_tokenizer())

    trainer(1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    plant(checkpoint / name, mark)
    found = read_checkpoint_manifest(checkpoint)
    assert found is not None
    write_manifest(
        checkpoint, run=found.run, step=found.step, processes=found.processes, resumable=found.resumable,
        facts=found.facts,
    )  # fmt: skip
    opened, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, *rest, **how: opened.append(str(file)) or load(file, *rest, **how))
    resumed = trainer(2, allow_changed=True)
    if name == "training_args.bin":
        resumed.train(resume_from_checkpoint=str(checkpoint))
    else:
        with pytest.raises((PreftuneError, pickle.UnpicklingError)):
            resumed.train(resume_from_checkpoint=str(checkpoint))
    assert (str(checkpoint / name) in opened) == (name != "training_args.bin")
    assert not mark.exists()


def test_hashes_of_prompts_in_a_pickle_run_nothing(tmp_path: Path, mark: Path) -> None:
    np.save(tmp_path / "trained_prompts.npy", np.array([Payload(mark)], dtype=object), allow_pickle=True)
    assert read_trained_prompts(tmp_path) is None
    assert not mark.exists()


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pickle", "rows.pt", "rows.npy"])
def test_pickled_data_are_refused(tmp_path: Path, mark: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(PreftuneError):
        load_pairs(str(tmp_path / name))
    assert not mark.exists()


def test_a_dataset_script_is_not_run(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(mark)!r}, 'w').write('ran')\n")
    with pytest.raises(PreftuneError):
        load_pairs(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_a_template_reaches_nothing_outside_and_changes_nothing(template: str) -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(Exception, match=r"unsafe|undefined|is not|no attribute|immutable|sandbox"):
        apply_template(tokenizer, messages, chat_template=template)
    assert messages == [{"role": "user", "content": "Hello"}]


def test_a_models_own_code_is_not_run_unless_allowed(tmp_path: Path, mark: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "own.py").write_text(f"open({str(mark)!r}, 'w').write('ran')\nclass Own: pass\n")
    config = json.loads((base / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}, "model_type": "own"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(PreftuneError, match="trust_remote_code"):
        load_model(base)
    assert not mark.exists()


def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    folder = tmp_path / "artefact"
    folder.mkdir()
    content = {"manifest": 1, "kind": "merged", "form": "float32", "files": {"../secret": "0" * 64}}
    (folder / "preftune_artefact.json").write_text(json.dumps(content))
    manifest = read_manifest(folder)
    assert manifest is not None
    with pytest.raises(PreftuneError, match="outside the folder"):
        damaged_files(folder, manifest)
    for name in ("../secret", "sub/../../secret", str(tmp_path / "secret")):
        with pytest.raises(DamagedError, match="outside the folder"):  # though it is what the manifest says
            check_files(folder, {name: size_and_hash(tmp_path / "secret")})


def test_what_a_training_leaves_in_the_cache_is_for_its_user_only(tmp_path: Path, monkeypatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PREFTUNE_CACHE", str(cache))
    old = os.umask(0)
    try:
        args = DPOConfig(output_dir=str(tmp_path / "run"), max_steps=1, disable_tqdm=True, guard="off")
        base = save_base(tmp_path / "base")
        DPOTrainer(load_model(base), args=args, train_dataset=chat_rows(8), processing_class=tiny_tokenizer()).train()
    finally:
        os.umask(old)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert any(cache.iterdir())


def test_every_promise_names_its_test() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) >= 20
    for file, name in named:
        assert re.search(rf"def {name}\b", (ROOT / file).read_text(encoding="utf-8")), (file, name)
