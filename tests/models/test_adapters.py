from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors import SafetensorError

from preftune.errors import CheckpointError, ModelError
from preftune.models import load_model, load_tokenizer, merge
from tests.models.tiny import tiny_llama, tiny_tokenizer

IDS = torch.arange(3, 35).view(2, 16)


def _scores(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def _adapt(model: torch.nn.Module, **options) -> PeftModel:
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": "all-linear", **options}))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or ".modules_to_save." in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return adapted


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_merged_folder_scores_as_the_adapter_did(base: Path, tmp_path: Path) -> None:
    adapted = _adapt(load_model(base))
    expected = _scores(adapted)
    assert (expected - _scores(load_model(base))).abs().max() > 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    merged = merge(tmp_path / "adapter", tmp_path / "out" / "merged")
    torch.testing.assert_close(_scores(merged), expected, rtol=1e-4, atol=1e-4)
    again = load_model(tmp_path / "out" / "merged")
    assert not isinstance(again, PeftModel)
    torch.testing.assert_close(_scores(again), expected, rtol=1e-4, atol=1e-4)
    assert load_tokenizer(tmp_path / "out" / "merged").chat_template == tiny_tokenizer().chat_template
    assert (tmp_path / "out" / "merged" / "generation_config.json").is_file()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["merged"]


def test_a_full_disk_leaves_nothing_and_is_reported(base: Path, tmp_path: Path, monkeypatch) -> None:
    _adapt(load_model(base)).save_pretrained(tmp_path / "adapter")

    def fail(self, folder, *args, **kwargs) -> None:
        Path(folder, "config.json").write_text("{}")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
    with pytest.raises(CheckpointError, match=r"could not be written to .*merged \(I/O error.*Make room on the disk"):
        merge(tmp_path / "adapter", tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_virtual_tokens_that_were_saved_are_not_trained_further(base: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(load_model(base), config).save_pretrained(tmp_path / "adapter")
    assert isinstance(load_model(tmp_path / "adapter"), PeftModel)
    with pytest.raises(ModelError, match=r"virtual tokens .* cannot train further"):
        load_model(tmp_path / "adapter", is_trainable=True)


def test_dtype_of_the_merged_weights(base: Path, tmp_path: Path) -> None:
    _adapt(load_model(base)).save_pretrained(tmp_path / "adapter")
    assert merge(tmp_path / "adapter").dtype == torch.float32
    assert merge(tmp_path / "adapter", dtype="bf16").dtype == torch.bfloat16
    assert merge(_adapt(load_model(base)), dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [1, 3])
def test_a_four_bit_base_is_loaded_again_unquantised(base: Path, tmp_path: Path, caplog, scale: int) -> None:
    def scaled(model: PeftModel) -> PeftModel:
        for layer in model.modules():
            if hasattr(layer, "set_scale"):
                layer.set_scale("default", scale)
        return model

    adapted = scaled(_adapt(load_model(base, load_in_4bit=True)))
    with caplog.at_level(logging.INFO, "preftune"):
        merged = merge(adapted, tmp_path / "merged")
    assert "merged into the unquantised base" in caplog.text
    expected = _scores(scaled(_adapt(load_model(base))))
    torch.testing.assert_close(_scores(merged), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(adapted, PeftModel)
    assert any(type(p).__name__ == "Params4bit" for p in adapted.parameters())  # the given model is left as it is
    assert type(load_model(tmp_path / "merged").model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize("why", ["gone", "changed"])
def test_a_four_bit_base_that_cannot_be_had_is_unpacked(base: Path, tmp_path: Path, caplog, why: str) -> None:
    model = load_model(base, load_in_4bit=True)
    if why == "gone":
        model.name_or_path = model.config._name_or_path = str(tmp_path / "gone")
    else:
        model.model.norm.weight.data += 1  # not the model of that name any more
    adapted = _adapt(model)
    expected = _scores(adapted)
    merged = merge(adapted)
    assert "keep their rounding" in caplog.text
    assert not any(type(p).__name__ == "Params4bit" for p in merged.parameters())
    torch.testing.assert_close(_scores(merged), expected, rtol=0.02, atol=0.05)


def test_an_adapter_of_a_base_stored_in_four_bit(base: Path, tmp_path: Path) -> None:
    load_model(base, load_in_4bit=True).save_pretrained(tmp_path / "packed")
    adapted = _adapt(load_model(tmp_path / "packed"))
    expected = _scores(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = merge(tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(_scores(merged), expected, rtol=0.02, atol=0.05)
    torch.testing.assert_close(_scores(load_model(tmp_path / "merged")), _scores(merged), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*tie.*")
def test_a_head_trained_apart_from_a_tied_embedding_survives(base: Path, tmp_path: Path) -> None:
    adapted = _adapt(load_model(base), target_modules=["q_proj"], modules_to_save=["lm_head"])
    expected = _scores(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    again = load_model(tmp_path / "merged")
    assert again.lm_head.weight is not again.model.embed_tokens.weight
    torch.testing.assert_close(_scores(again), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ends", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_an_adapter_on_one_end_of_a_tied_model_does_not_count_at_the_other(base: Path, tmp_path: Path, ends) -> None:
    adapted = _adapt(load_model(base), target_modules=["q_proj", *ends])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_embedding_" in name:  # PEFT begins with zeros in A here
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.3)
    expected = _scores(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(_scores(load_model(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(_scores(merge(adapted)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_cannot_fold_is_reported(base: Path, tmp_path: Path) -> None:
    _adapt(load_model(base), lora_bias=True).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"cannot be merged: .*lora_bias=True.*Keep it as an adapter"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_repeated_layers_share_a_weight_and_are_not_merged(base: Path, tmp_path: Path) -> None:
    """In memory every copy had the deltas of all of them, without a word; a folder could not be written."""
    adapted = _adapt(load_model(base), layer_replication=[(0, 2), (1, 2)], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match=r"repeats layers \(layer_replication\)"):
        merge(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="Keep it as an adapter"):
        merge(tmp_path / "adapter", tmp_path / "merged", base_model=base)
    assert not (tmp_path / "merged").exists()


def test_a_tied_head_stays_tied(base: Path, tmp_path: Path) -> None:
    _adapt(load_model(base)).save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    again = load_model(tmp_path / "merged")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_what_cannot_be_merged_is_refused_with_the_fix(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no adapter to merge"):
        merge(base)
    _adapt(load_model(base)).save_pretrained(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(ModelError, match=r"Did you mean .*checkpoint-1"):
        merge(tmp_path / "run")
    with pytest.raises(ModelError, match="already in use"):
        merge(tmp_path / "run" / "checkpoint-1", base)
    with pytest.raises(ModelError, match="has no adapter"):
        merge(load_model(base))
    prompt = get_peft_model(load_model(base), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        merge(prompt)
    with pytest.raises(ModelError, match="There is no model at"):
        merge(tmp_path / "run" / "no" / "such")


@pytest.mark.parametrize(
    ("received", "wanted", "size"),
    [
        (torch.bfloat16, None, 0.003),
        (torch.float32, "bfloat16", 0.003),
        (torch.float16, "bfloat16", 0.003),
        (torch.bfloat16, "float16", 0.0004),
        (torch.float32, "float16", 0.0004),
    ],
)
def test_a_merge_keeps_a_small_update(received: torch.dtype, wanted: str | None, size: float, tmp_path: Path) -> None:
    """Rounded to nearest, as PEFT's own merge is, most of a small update would be lost."""
    folder = tmp_path / "base"
    tiny_llama(torch.bfloat16).to(received).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    adapted = _adapt(load_model(folder))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data *= size
    adapted.save_pretrained(tmp_path / "adapter")

    def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    before = weights(load_model(folder))
    exact = weights(merge(tmp_path / "adapter", dtype="float32"))
    ours = weights(merge(tmp_path / "adapter", dtype=wanted))
    (dtype,) = {weight.dtype for weight in ours.values()}
    nearest = {name: weight.to(dtype) for name, weight in exact.items()}
    changed = [name for name in exact if not torch.equal(exact[name], before[name].float())]
    assert all("proj" in name for name in changed)
    update = torch.cat([(exact[name] - before[name].float()).flatten() for name in changed])

    def share_kept(merged: dict[str, torch.Tensor]) -> float:
        own = torch.cat([(merged[name].float() - before[name].float()).flatten() for name in changed])
        return float((own @ update) / (update @ update))

    assert share_kept(ours) == pytest.approx(1, abs=0.1)
    assert abs(share_kept(nearest) - 1) > 0.2
    assert all(torch.equal(ours[name], before[name].to(dtype)) for name in ours if name not in changed)
    again = weights(merge(tmp_path / "adapter", dtype=wanted))
    assert all(torch.equal(ours[name], again[name]) for name in ours)
