from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from peft import LoraConfig, PeftModel, get_peft_model

from preftune.errors import ModelError
from preftune.hub import Unreachable
from preftune.models import adapter_base, is_adapter_folder, load_model, load_tokenizer
from preftune.models import locate as locating
from preftune.models.locate import _Answer, locate
from tests.models.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an adapter of it, and some broken ones."""
    shelf = tmp_path_factory.mktemp("shelf")
    tiny_llama(torch.bfloat16).save_pretrained(shelf / "tiny-llama")
    tiny_tokenizer().save_pretrained(shelf / "tiny-llama")
    model = get_peft_model(load_model(shelf / "tiny-llama"), LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(shelf / "run" / "checkpoint-2")
    (shelf / "empty").mkdir()
    (shelf / "config-only").mkdir()
    (shelf / "config-only" / "config.json").write_text("{}")
    (shelf / "half-adapter").mkdir()
    (shelf / "half-adapter" / "adapter_config.json").write_text("{}")
    return shelf


@pytest.fixture(autouse=True)
def _forget_answers() -> None:
    locating._ask_hub.cache_clear()


def test_a_folder_keeps_the_checkpoints_dtype_unless_asked(shelf: Path) -> None:
    assert load_model(shelf / "tiny-llama").dtype == torch.bfloat16
    assert load_model(str(shelf / "tiny-llama"), dtype="fp32").dtype == torch.float32
    assert load_model(shelf / "tiny-llama", attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("nested", [False, True])
def test_four_bit(shelf: Path, nested: bool) -> None:
    model = load_model(shelf / "tiny-llama", load_in_4bit=True, use_bnb_nested_quant=nested)
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer.weight).__name__ == "Params4bit"
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested == nested
    assert model.config.quantization_config.bnb_4bit_compute_dtype in (torch.float32, torch.bfloat16)


def test_eight_bit(shelf: Path) -> None:
    model = load_model(shelf / "tiny-llama", load_in_8bit=True)
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Params"


@pytest.mark.parametrize("four_bit", [False, True])
def test_an_adapter_folder_brings_its_base(shelf: Path, four_bit: bool) -> None:
    checkpoint = shelf / "run" / "checkpoint-2"
    model = load_model(checkpoint, load_in_4bit=four_bit)
    assert isinstance(model, PeftModel)
    assert not any(p.requires_grad for p in model.parameters())
    assert any(p.requires_grad for p in load_model(checkpoint, is_trainable=True).parameters())
    assert load_tokenizer(checkpoint).chat_template == tiny_tokenizer().chat_template
    assert is_adapter_folder(checkpoint)
    assert not is_adapter_folder(shelf / "tiny-llama")
    assert adapter_base(checkpoint) == str(shelf / "tiny-llama")


def test_an_adapters_base_may_lie_beside_it(shelf: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    copy.mkdir()
    (tmp_path / "base-here").symlink_to(shelf / "tiny-llama")
    for file in (shelf / "run" / "checkpoint-2").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base-here"}))
    assert Path(adapter_base(copy)).samefile(tmp_path / "base-here")
    (copy / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="does not name its base model"):
        load_model(copy)
    assert isinstance(load_model(copy, base_model=shelf / "tiny-llama"), PeftModel)
    tiny_llama().save_pretrained(tmp_path / "other")
    other = tiny_llama().config
    other.hidden_size = 32
    type(tiny_llama())(other).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ModelError, match="does not fit"):
        load_model(copy, base_model=tmp_path / "narrow")


def test_a_folder_without_a_model_is_no_suggestion(shelf: Path) -> None:
    (shelf / "tiny-lamas").mkdir()
    with pytest.raises(ModelError) as caught:
        load_model(shelf / "tiny-lama")
    assert "tiny-lamas" not in str(caught.value)
    assert "tiny-llama" in str(caught.value)


def test_a_misspelt_path_gets_near_names(shelf: Path) -> None:
    with pytest.raises(ModelError, match=r"Did you mean .*tiny-llama\?"):
        load_model(shelf / "tiny-lama")
    with pytest.raises(ModelError, match=r"Did you mean .*run/checkpoint-2"):
        load_model(shelf / "rum" / "checkpoint-2")
    with pytest.raises(ModelError, match="There is no model at"):
        load_model("/nowhere/at/all.gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no config.json .it is empty"),
        ("config-only", "no weights"),
        ("half-adapter", "not saved completely"),
        ("run", r"Did you mean one of its folders: .*checkpoint-2"),
        ("tiny-llama/config.json", "is a file, not a model"),
    ],
)
def test_what_is_no_model_is_distinguished(shelf: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(shelf / name)


def test_a_missing_package_names_its_extra(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else real(n, *a))
    with pytest.raises(ModelError, match=r"pip install 'preftune\[quant\]'"):
        load_model(shelf / "tiny-llama", load_in_4bit=True)


def test_impossible_requests(shelf: Path) -> None:
    path = shelf / "tiny-llama"
    with pytest.raises(ModelError, match="exclude each other"):
        load_model(path, load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(ModelError, match="nf4"):
        load_model(path, load_in_4bit=True, bnb_4bit_quant_type="int4")
    with pytest.raises(ModelError, match="not a floating dtype"):
        load_model(path, dtype="bfloat61")
    with pytest.raises(ModelError, match="exclude each other"):
        load_model(path, load_in_4bit=True, quantization_config=object())
    with pytest.raises(ModelError, match="empty"):
        load_model("")


def test_offline_the_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self, *args, **kwargs):
        raise hub_errors.OfflineModeIsEnabled("offline mode is on")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    said = r"hub could not be reached \(HF_HUB_OFFLINE is set\)\..* Unset HF_HUB_OFFLINE, or copy .* give its path"
    with pytest.raises(ModelError, match=said):
        load_model("somebody/some-model")
    with pytest.raises(ModelError, match="hub could not be reached"):
        load_tokenizer("somebody/some-model")


def test_a_cached_model_is_used_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self, *args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda r, f, **k: "/cache/config.json" if f == "config.json" else None,
    )
    place = locate("somebody/some-model")
    assert (place.kind, place.local_files_only) == ("hub", True)


def _missing(*args, **kwargs):
    class Missing(hub_errors.RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    raise Missing


def test_a_misspelt_hub_id_gets_near_names(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ["HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M", "someone/else"]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _missing)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_models", lambda *a, **k: [SimpleNamespace(id=i) for i in shown])
    with pytest.raises(ModelError, match=r"Did you mean HuggingFaceTB/SmolLM2-135M-Instruct or"):
        load_model("HugingFaceTB/SmolLM2-135M-Instuct")
    with pytest.raises(ModelError, match=r"Did you mean HuggingFaceTB/SmolLM2-135M-Instruct"):
        load_model("SmolLM2-135M-Instuct")


def test_near_names_may_fail_without_hiding_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise OSError("gone")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _missing)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_models", fail)
    with pytest.raises(ModelError, match="There is no model somebody/nothing on the hub"):
        load_model("somebody/nothing")


def test_a_folder_with_a_near_name_is_suggested_for_a_short_name(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shelf)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _missing)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_models", lambda *a, **k: [])
    with pytest.raises(ModelError, match="Did you mean tiny-llama"):
        load_model("tiny-lama")


def test_an_unknown_architecture_is_reported(tmp_path: Path, shelf: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (shelf / "tiny-llama").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "config.json").write_text(json.dumps({"model_type": "from-the-future"}))
    with pytest.raises(ModelError, match="from-the-future"):
        load_model(broken)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("HuggingFaceTB/SmolLM3-3B-Instruct", "HuggingFaceTB/SmolLM3-3B"),
        ("huggingfacetb/smollm3-3b-instruct", "HuggingFaceTB/SmolLM3-3B"),
        ("HuggingFaceTB/SmolLM2-135M-Instuct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_models_of_tutorials_are_known_offline(asked, meant, monkeypatch):
    answer = _Answer(unreachable=Unreachable("no route", "Connect"))
    monkeypatch.setattr("preftune.models.locate._ask_hub", lambda *_: answer)
    with pytest.raises(ModelError, match=rf"Did you mean {meant}\?"):
        locate(asked)
    with pytest.raises(ModelError) as caught:
        locate(meant)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["tiny-llama", "run/checkpoint-2"])
def test_torn_weights_are_named(name: str, shelf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(shelf / name, folder)
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"The weights in {folder} are damaged or were copied in part"):
        load_model(folder)


def test_an_unknown_option_is_named_without_blaming_the_files(shelf: Path) -> None:
    with pytest.raises(
        ModelError, match=r"could not be loaded: TypeError: .*unexpected keyword argument 'x'\. Remove it"
    ):
        load_model(shelf / "tiny-llama", x=1)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_damaged_config_is_named(name: str, text: str, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    with pytest.raises(ModelError, match=f"{name} is damaged or was copied in part"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"model": {}}'])
def test_a_damaged_tokenizer_is_named(text: str, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="No tokenizer could be loaded from"):
        load_tokenizer(tmp_path / "model")


def test_a_config_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    read = Path.read_text

    def refused(path: Path, *words: object, **options: object) -> str:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *words, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(ModelError, match=r"config\.json cannot be read: Permission denied"):
        locate(tmp_path / "model")


def test_weights_that_are_not_those_of_the_config_are_an_error_with_a_fix(shelf: Path, tmp_path: Path) -> None:
    shutil.copytree(shelf / "tiny-llama", tmp_path / "mixed")
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())
    (tmp_path / "mixed" / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 8}))
    with pytest.raises(ModelError, match=r"weights and config\.json differ in their shapes\. Copy both again"):
        load_model(str(tmp_path / "mixed"))


@pytest.mark.parametrize(("given", "says"), [(None, "missing"), (5, "an int"), (b"m", "a bytes"), ("", "empty")])
def test_the_name_of_a_model_is_text(given: Any, says: str) -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=f"The model's name is {says}. Give a hub id"):
            load(given)
