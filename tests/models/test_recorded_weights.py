"""Weights that are not those that a run or a checkpoint recorded are noticed wherever they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from preftune.deploy.exports import export
from preftune.errors import ModelError
from preftune.judges.reward_model import open_reward_model
from preftune.models import load_model
from preftune.models import merge as merge_adapter
from preftune.models.damage import WEIGHTS_FILE
from preftune.models.locate import write_run_of_weights
from preftune.storage.file_hashes import size_and_hash
from preftune.training.record.manifest import write_manifest
from tests.judges.test_reward_model import saved
from tests.models.tiny import tiny_llama, tiny_tokenizer


def run_folder(folder: Path, *, adapter: bool = False) -> Path:
    """A saved model, or a saved adapter on one beside it."""
    model: Any = tiny_llama()
    if adapter:
        base = folder.parent / "base"
        model.save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        torch.manual_seed(0)
        model = get_peft_model(load_model(base), LoraConfig(r=2, init_lora_weights=False))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return recorded(folder)


def recorded(folder: Path) -> Path:
    files = {path.name: size_and_hash(path) for path in folder.glob("*.safetensors")}
    write_run_of_weights(folder, "0123456789abcdef", 3, files)
    return folder


def damage(folder: Path, *, later: bool = False) -> None:
    """Changes the last byte; the time stays, as where a disk fails, unless it was done later."""
    (path,) = folder.glob("*.safetensors")
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x3F
    path.write_bytes(content)
    moved = 10**9 * 60 if later else -1
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + moved))


READERS: dict[str, tuple[bool, Callable[[Path], Any]]] = {
    "model": (False, load_model),
    "adapter": (True, load_model),
    "merge": (True, lambda folder: merge_adapter(folder, folder.parent / "merged")),
    "export of a model": (False, lambda folder: export(folder, folder.parent / "out", ["merged"])),
    "export of an adapter": (True, lambda folder: export(folder, folder.parent / "out", ["adapter"])),
}


@pytest.mark.parametrize("reader", READERS)
def test_damaged_weights_are_not_used(reader: str, tmp_path: Path) -> None:
    adapter, read = READERS[reader]
    folder = run_folder(tmp_path / "run", adapter=adapter)
    damage(folder)
    with pytest.raises(ModelError, match=r"damaged or another model's: the content of .*safetensors is not what was"):
        read(folder)


def test_a_damaged_reward_model_rates_nothing(tmp_path: Path) -> None:
    folder = recorded(Path(saved(tmp_path / "rm")))
    open_reward_model(str(folder)).load()
    damage(folder)
    with pytest.raises(ModelError, match="damaged"):
        open_reward_model(str(folder)).load()


def test_a_checkpoint_is_compared_with_its_manifest(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "checkpoint-3")
    (folder / WEIGHTS_FILE).unlink()
    write_manifest(folder, run="0123456789abcdef", step=3, processes=1, resumable=True, facts={})
    load_model(folder)
    damage(folder)
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)


def test_weights_that_were_saved_later_are_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_folder(tmp_path / "run")
    damage(folder, later=True)
    load_model(folder)
    assert "are not those that the training saved" in caplog.text


def test_whole_weights_are_read_without_a_word_and_compared_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path / "run", adapter=True)
    load_model(folder)
    monkeypatch.setattr("preftune.models.damage.check_files", lambda *given: pytest.fail("compared again"))
    load_model(folder)
    assert "weights" not in caplog.text
