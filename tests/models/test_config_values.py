"""Values of wrong types in a model's files: one sentence that names the file, whatever the value and the field."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from preftune.errors import ModelError
from preftune.generation.generate import generate
from preftune.models import load_model, load_tokenizer
from preftune.models.locate import Location
from tests.models.tiny import tiny_llama, tiny_tokenizer

WRONG: list[Any] = ["x", ["x"], 10**40, {"a": {"b": 1}}, -3]
MORE = {
    "generation_config.json": {
        "max_length": 20,
        "temperature": 0.7,
        "top_k": 50,
        "do_sample": True,
        "forced_eos_token_id": 2,
        "suppress_tokens": [1],
        "bad_words_ids": [[3]],
        "stop_strings": ["zz"],
    }
}
"""Fields of the real file that the tiny model's lacks."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny_llama(torch.float32).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    get_peft_model(load_model(folder / "model"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        folder / "adapter"
    )
    return folder


@pytest.fixture
def shelf(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "shelf")
    return tmp_path / "shelf"


def use(folder: Path) -> None:
    generate(load_model(folder), load_tokenizer(folder), ["a b"], max_new_tokens=2)


def change(file: Path, **values: Any) -> None:
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**old, **values}), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("model/generation_config.json", {"eos_token_id": "x"}, r"eos_token_id is 'x', not a token id or a list"),
        ("model/config.json", {"eos_token_id": "x"}, r"eos_token_id is 'x', not a token id or a list"),
        ("model/config.json", {"text_config": {"bos_token_id": [1]}}, r"bos_token_id is \[1\], not a token id"),
        ("model/config.json", {"hidden_size": "x"}, "holds a value that cannot be used: .*hidden_size"),
        ("model/config.json", {"vocab_size": -1}, "vocab_size is -1, not 0 or more"),
        ("model/config.json", {"architectures": 3}, "architectures is 3, not a list of texts"),
        ("model/generation_config.json", {"max_new_tokens": -1}, "cannot be used: .*max_new_tokens.* Correct it"),
        ("model/tokenizer_config.json", {"model_max_length": "x"}, "model_max_length is 'x', not a number"),
        ("adapter/adapter_config.json", {"r": "x"}, "r is 'x', not a whole number"),
        ("adapter/adapter_config.json", {"use_dora": "no"}, "use_dora is 'no', not true or false"),
        ("adapter/adapter_config.json", {"base_model_name_or_path": 3}, "base_model_name_or_path is 3, not a text"),
        ("adapter/adapter_config.json", {"alpha_pattern": 3}, "holds a value that cannot be used: AttributeError"),
        ("adapter/generation_config.json", {"top_k": [1]}, r"top_k is \[1\], not a whole number"),
    ],
)
def test_the_file_and_the_field_are_named(shelf: Path, file: str, values: dict[str, Any], says: str) -> None:
    change(shelf / file, **values)
    with pytest.raises(ModelError, match=f"{file}.*{says}"):
        use((shelf / file).parent)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "file",
    [
        "model/config.json",
        "model/generation_config.json",
        "model/tokenizer_config.json",
        "adapter/adapter_config.json",
        "adapter/generation_config.json",
    ],
)
def test_no_wrong_value_reaches_a_library(shelf: Path, file: str) -> None:
    path = shelf / file
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    whole |= MORE.get(path.name, {})
    refused = 0
    for field in whole:
        for wrong in WRONG:
            path.write_text(json.dumps({**whole, field: wrong}), encoding="utf-8")
            with contextlib.suppress(ModelError):
                use(path.parent)
                continue
            refused += 1
    assert refused > len(whole)


def test_that_of_the_hub_is_checked_before_the_weights_are_read(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shelf / "model"
    change(folder / "generation_config.json", eos_token_id="x")
    (folder / "model.safetensors").unlink()
    place = Location("hub", str(folder), local_files_only=True)
    monkeypatch.setattr("preftune.models.load.locate", lambda *names, **options: place)
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id is 'x'"):
        load_model("me/tiny")


def test_an_error_of_generation_does_not_blame_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("the cache has another\nlength")

    model = tiny_llama()
    monkeypatch.setattr(model, "generate", fails)
    monkeypatch.setattr("preftune.generation.early_exit.generate_in_rounds", fails)
    says = r"^the model could not generate: the cache has another length\. If that names a setting"
    with pytest.raises(ModelError, match=says):
        generate(model, tiny_tokenizer(), ["a b"], max_new_tokens=2)


def test_the_model_in_memory_is_checked_too(shelf: Path) -> None:
    model, tokenizer = load_model(shelf / "model"), load_tokenizer(shelf / "model")
    model.generation_config.eos_token_id = "x"
    with pytest.raises(ModelError, match="the model's generation_config: eos_token_id is 'x'"):
        generate(model, tokenizer, ["a b"], max_new_tokens=2)


def test_stop_strings_of_the_files_end_an_answer(shelf: Path) -> None:
    tokenizer = load_tokenizer(shelf / "model")
    plain = generate(load_model(shelf / "model"), tokenizer, ["a b"], max_new_tokens=8)[0]
    change(shelf / "model/generation_config.json", stop_strings=[plain.text[:1]])
    assert generate(load_model(shelf / "model"), tokenizer, ["a b"], max_new_tokens=8)[0].tokens < plain.tokens
