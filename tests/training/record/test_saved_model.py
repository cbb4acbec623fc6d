"""What a run leaves behind is what other programs load: its dtype, what ends its answers, its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, pipeline

from preftune import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, load_model
from preftune.errors import ConfigError
from preftune.evaluation.two_models.verdict_record import write_summary
from preftune.models import load_tokenizer, merge
from preftune.models.precision import rounded
from tests.training.dpo_runs import logged, lora_model, trainer
from tiny import chat_rows, rows, tiny_model, tiny_tokenizer


def tokenizer_with_another_eos() -> Any:
    """The template ends an answer with <|im_end|>, and the tokenizer's eos is <|endoftext|>."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def base(folder: Path, **options: Any) -> str:
    model = tiny_model(**options)
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    tokenizer_with_another_eos().save_pretrained(folder)
    return str(folder)


def trained(model: Any, folder: Path, *, tokenizer: Any = None, kind: str = "dpo", **options: Any) -> Any:
    made, config = {"dpo": (DPOTrainer, DPOConfig), "sft": (SFTTrainer, SFTConfig)}[kind]
    own = {"peft_config": options.pop("peft_config")} if "peft_config" in options else {}
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "bf16": False}
    run = made(
        model=model,
        args=config(output_dir=str(folder), **{**settings, **options}),
        train_dataset=chat_rows(8),
        processing_class=tokenizer or tokenizer_with_another_eos(),
        **own,
    )
    run.train()
    run.save_model()
    return run


def ends(folder: Path) -> list[int]:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


# --- a generation config that transformers refuses to save ---


@pytest.mark.parametrize("adapter", [False, True])
def test_settings_of_sampling_without_do_sample_do_not_end_the_run_at_its_first_checkpoint(
    tmp_path: Path, adapter: bool
) -> None:
    """As Llama 2's and Vicuna's first ones; the end that the template adds made transformers check it strictly."""
    model = load_model(base(tmp_path / "base"))
    model.generation_config.update(temperature=0.9, top_p=0.6, length_penalty=2.0, pad_token_id=-1)
    options = {"peft_config": LoraConfig(r=2, target_modules="all-linear")} if adapter else {}
    trained(model, tmp_path / "run", save_strategy="steps", save_steps=1, **options)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        saved = json.loads((folder / "generation_config.json").read_text())
        assert (saved["do_sample"], saved["temperature"], saved["top_p"]) == (True, 0.9, 0.6)


def test_one_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = load_model(base(tmp_path / "base"))
    model.generation_config.max_new_tokens = 0
    with pytest.raises(ConfigError, match=r"max_new_tokens.*Correct generation_config\.json"):
        trained(model, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


# --- what ends an answer ---


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_the_mark_that_ends_a_turn_ends_generation(kind, tmp_path, caplog):
    caplog.set_level("DEBUG", logger="preftune")
    trained(load_model(base(tmp_path / "base")), tmp_path / "run", kind=kind)
    assert ends(tmp_path / "run") == [0, 2]
    assert sum("generation also ends at <|im_end|>" in line for line in caplog.messages) == 1


def that_ends_turns(model: Any) -> Any:
    """Says <|im_end|> whatever it is asked."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[5].clone()
        state = model.model.norm(model.model.embed_tokens.weight[5])
        model.lm_head.weight[:] = -state
        model.lm_head.weight[2] = state
    return model


def test_a_saved_run_stops_by_itself_in_transformers_pipeline(tmp_path):
    folder = base(tmp_path / "base")
    that_ends_turns(load_model(folder)).save_pretrained(folder)
    trained(load_model(folder), tmp_path / "run", learning_rate=1e-7)
    lengths = []
    for name in (folder, str(tmp_path / "run")):
        talking = pipeline("text-generation", model=name, tokenizer=name, device="cpu")
        (said,) = talking("q", max_new_tokens=20, do_sample=False, return_tensors=True)
        lengths.append(len(said["generated_token_ids"]))
    assert lengths[0] - lengths[1] == 19  # the base goes on to the limit


def test_an_adapters_folder_keeps_what_ends_its_answers_for_merging_and_loading(tmp_path):
    trained(load_model(base(tmp_path / "base")), tmp_path / "run", peft_config=LoraConfig(r=4))
    assert ends(tmp_path / "run") == [0, 2]
    assert load_model(str(tmp_path / "run")).generation_config.eos_token_id == [0, 2]
    merge(str(tmp_path / "run"), str(tmp_path / "merged"))
    assert ends(tmp_path / "merged") == [0, 2]


def test_what_ends_answers_already_is_left_alone(tmp_path, caplog):
    caplog.set_level("DEBUG", logger="preftune")
    model = tiny_model()
    model.generation_config.eos_token_id = [2, 7]
    trained(model, tmp_path, tokenizer=tiny_tokenizer())
    assert ends(tmp_path) == [2, 7]
    assert "generation also ends at" not in caplog.text


# --- dtype ---


def dtypes(folder: Path) -> set[torch.dtype]:
    (file,) = folder.glob("*.safetensors")
    return {tensor.dtype for tensor in load_file(file).values()}


@pytest.mark.parametrize("received", [torch.bfloat16, torch.float32])
def test_a_model_is_saved_in_the_dtype_it_came_in_and_trained_in_float32(received, tmp_path, caplog):
    caplog.set_level("DEBUG", logger="preftune")
    run = trained(
        load_model(base(tmp_path / "base", dtype=received)), tmp_path / "run", save_strategy="steps", save_steps=2
    )
    assert dtypes(tmp_path / "run") == {received}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dtype"] == str(received).removeprefix("torch.")
    assert dtypes(tmp_path / "run" / "checkpoint-2") == {torch.float32}  # from which a run goes on bit for bit
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert ("are saved in bfloat16" in caplog.text) == (received == torch.bfloat16)
    saved = load_model(str(tmp_path / "run")).state_dict()
    for name, weight in run.model.state_dict().items():
        assert torch.equal(saved[name], rounded(weight, received, seed=name)), name


def test_save_dtype_changes_it(tmp_path):
    trained(load_model(base(tmp_path / "base", dtype=torch.bfloat16)), tmp_path / "run", save_dtype="float32")
    assert dtypes(tmp_path / "run") == {torch.float32}
    trained(load_model(base(tmp_path / "base32")), tmp_path / "half", save_dtype="float16")
    assert dtypes(tmp_path / "half") == {torch.float16}


def test_an_adapter_is_saved_in_its_own_dtype(tmp_path):
    model = load_model(base(tmp_path / "base", dtype=torch.bfloat16))
    trained(model, tmp_path / "run", peft_config=LoraConfig(r=4))
    assert dtypes(tmp_path / "run") == {torch.float32}  # as PEFT makes it
    trained(
        load_model(base(tmp_path / "b", dtype=torch.bfloat16)),
        tmp_path / "half",
        peft_config=LoraConfig(r=4),
        save_dtype="bfloat16",
    )
    assert dtypes(tmp_path / "half") == {torch.bfloat16}


# --- vocabularies that were changed before training ---

ADAPTERS = {
    "lora": {"target_modules": ["q_proj"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [257, 258]},
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "full": None,
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("how", ADAPTERS)
@pytest.mark.parametrize("size", ["larger", "smaller", "padded"])
def test_a_run_with_another_vocabulary_loads_merges_and_trains_on(size, how, tmp_path):
    tokenizer, model = tokenizer_with_another_eos(), load_model(base(tmp_path / "base"))
    if size == "larger":
        tokenizer.add_tokens([f"<new{i}>" for i in range(9)], special_tokens=True)
    model.resize_token_embeddings(
        len(tokenizer), pad_to_multiple_of=64 if size == "padded" else None, mean_resizing=False
    )
    rows = model.get_input_embeddings().weight.shape[0]
    own = {} if ADAPTERS[how] is None else {"peft_config": LoraConfig(r=4, **ADAPTERS[how])}
    run = trained(model, tmp_path / "run", tokenizer=tokenizer, **own)
    ids = torch.tensor([[5, 6, len(tokenizer) - 1]])
    with torch.no_grad():
        expected = run.model.eval()(input_ids=ids).logits
        folders = ["run"]
        if own:
            merge(str(tmp_path / "run"), str(tmp_path / "merged"))
            folders.append("merged")
        for folder in folders:
            loaded = load_model(str(tmp_path / folder)).eval()
            assert loaded.get_input_embeddings().weight.shape[0] == rows
            torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    if "peft_config" not in own:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
        assert plain.get_input_embeddings().weight.shape[0] == rows
    again = load_model(str(tmp_path / "run"), **({"is_trainable": True} if own else {}))
    more = trained(again, tmp_path / "more", tokenizer=load_tokenizer(str(tmp_path / "run")))
    assert logged(more)[0] == pytest.approx(0.6931, abs=1e-3)


def test_a_later_evaluation_is_in_the_model_card(tmp_path):
    made = trainer(lora_model(), tmp_path, max_steps=2)
    made.train()
    made.save_model()
    assert "Not evaluated on held-out pairs" in (tmp_path / "README.md").read_text()
    figures = made.evaluate(rows(4))
    assert f"loss {figures['eval_loss']:.4f}" in (tmp_path / "README.md").read_text()


def test_a_later_evaluation_keeps_the_verdict_of_these_weights_alone(tmp_path):
    """`preftune eval` adds its section to the card; `trainer.evaluate()` and a second save write the card anew."""
    card = tmp_path / "README.md"
    figures = {"win_rate": 0.7, "ci_low": 0.6, "ci_high": 0.8, "n": 100, "judge": "rule", "baseline_name": "base"}

    def made(steps: int) -> DPOTrainer:
        return trainer(lora_model(), tmp_path, max_steps=steps, save_strategy="steps", save_steps=2)

    run = made(2)
    run.train()
    run.save_model()
    (tmp_path / "eval").mkdir()
    write_summary(tmp_path / "eval", figures)
    judged = card.read_text().partition("## Evaluation")[2]
    assert judged
    loss = run.evaluate(rows(4))["eval_loss"]
    assert card.read_text().endswith(judged)
    assert f"loss {loss:.4f}" in card.read_text().partition("## Evaluation")[0]
    run.save_model()
    assert card.read_text().endswith(judged)
    finished = made(2)
    finished.train(resume_from_checkpoint=True)
    finished.evaluate(rows(4))
    assert card.read_text().count("## Evaluation") == 1
    more = made(4)
    more.train(resume_from_checkpoint=True)
    more.save_model()
    assert "## Evaluation" not in card.read_text()
    assert "| steps | 4 |" in card.read_text()


def test_a_small_update_of_a_bfloat16_model_is_in_the_saved_weights(tmp_path):
    """At learning rates of preference tuning, rounding to nearest would return the weights as received."""
    before = {name: weight.detach().clone() for name, weight in tiny_model(dtype=torch.bfloat16).named_parameters()}
    args = DPOConfig(
        output_dir=str(tmp_path / "run"), max_steps=4, learning_rate=2e-5, lr_scheduler_type="constant", guard="off",
        per_device_train_batch_size=4, disable_tqdm=True, warmup_steps=0, save_strategy="no",
    )  # fmt: skip
    made = DPOTrainer(
        tiny_model(dtype=torch.bfloat16), args=args, train_dataset=rows(16), processing_class=tiny_tokenizer()
    )
    made.train()
    made.save_model()
    saved = load_file(tmp_path / "run" / "model.safetensors")
    trained = {name: weight.detach().float() for name, weight in made.model.named_parameters()}
    names = [name for name in trained if name in saved]
    assert all(saved[name].dtype == torch.bfloat16 for name in names)

    def moved(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([(weights[name].float() - before[name].float()).flatten() for name in names])

    update = moved(trained)
    assert float((moved(saved) @ update) / (update @ update)) == pytest.approx(1, abs=0.1)
    nearest = {name: weight.bfloat16() for name, weight in trained.items()}
    assert float((moved(nearest) @ update) / (update @ update)) < 0.7
