"""What a program hands to a trainer by mistake ends in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, TrainableTokensConfig, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerFast, TrainerCallback

import preftune
from models_zoo import random_model
from preftune.errors import ConfigError, DatasetError, ModelError
from preftune.training.record.earlier_run import sweep_unfinished
from tests.training.dpo_runs import lora_config, trainer
from tiny import VOCABULARY, rows, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("given", [{"r": 8}, [lora_config()], True, LoraConfig])
def test_an_adapter_is_a_configuration(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peft_config is .*: pass peft.LoraConfig"):
        trainer(tiny_model(), tmp_path, peft_config=given)


def test_layers_that_the_model_does_not_have_are_answered_with_those_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"PEFT cannot put this adapter .*Its linear layers are q_proj, k_proj, "):
        trainer(tiny_model(), tmp_path, peft_config=lora_config(target_modules=["foo"]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trainable_token_indices": [3, 999]}, "there is no token 999: model.embed_tokens has 264 rows. Give ids"),
        ({"trainable_token_indices": [-1]}, "there is no token -1"),
        ({"trainable_token_indices": {"embed_tokens": [264]}}, "there is no token 264: embed_tokens has 264 rows"),
        ({"trainable_token_indices": {"words": [3]}}, "no layer 'words' .* Its embedding is 'model.embed_tokens'"),
        ({"trainable_token_indices": "all"}, "='all': give a list of token ids"),
        ({"trainable_token_indices": 5}, "=5: give a list of token ids"),
        ({"trainable_token_indices": [1.5]}, r"=\[1.5\]: give a list of token ids"),
        ({"trainable_token_indices": [3, 4, 3]}, "names token 3 twice"),
        ({"trainable_token_indices": [3], "target_modules": ["embed_tokens"]}, "Leave embed_tokens out of target_mod"),
        ({"trainable_token_indices": [3], "modules_to_save": ["embed_tokens"]}, "Leave embed_tokens out of modules_to"),
    ],
)
def test_tokens_whose_embeddings_an_adapter_trains_are_checked(options: Any, says: str, tmp_path: Path) -> None:
    """They were an IndexError of torch, or advice about linear layers."""
    with pytest.raises(ConfigError, match=says):
        trainer(tiny_model(), tmp_path, peft_config=lora_config(**options))


def test_tokens_that_are_trained_alone_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token_indices: there is no token 999"):
        trainer(tiny_model(), tmp_path, peft_config=TrainableTokensConfig(token_indices=[999], task_type="CAUSAL_LM"))
    made = TrainableTokensConfig(token_indices=[3, 4], task_type="CAUSAL_LM")
    assert trainer(tiny_model(), tmp_path, peft_config=made).model.active_peft_config.token_indices == [3, 4]


@pytest.mark.parametrize("name", ["gpt2", "codegen"])
def test_a_row_beyond_the_model_s_positions_is_named_before_training(name: str, tmp_path: Path) -> None:
    """It was an IndexError of torch's embedding in the first step; on a GPU it takes the device along."""
    long = [*rows(3), {"prompt": "p" * 50, "chosen": "c" * 30, "rejected": "r"}]
    model = random_model(name, vocab_size=VOCABULARY, n_positions=64, max_position_embeddings=64)
    with pytest.raises(DatasetError, match=r"a row of the train dataset has 8\d tokens, .* only 64 positions"):
        trainer(model, tmp_path, data=long)
    with pytest.raises(DatasetError, match=r"a row of the eval dataset has"):
        trainer(model, tmp_path, data=rows(4), eval_dataset=long)
    trainer(model, tmp_path, data=long, max_length=64)
    trainer(
        random_model("llama", vocab_size=VOCABULARY, max_position_embeddings=16), tmp_path, data=long
    )  # rope goes on


@pytest.mark.parametrize(("active", "warned"), [(["default"], False), (["b"], True), (["default", "b"], True)])
def test_the_folders_of_several_adapters_are_reported(
    active: list[str], warned: bool, tmp_path: Path, caplog: Any
) -> None:
    """The folder of a run that trained `b` was evaluated and merged as `default`, which had not been trained."""
    model = get_peft_model(tiny_model(), lora_config())
    model.add_adapter("b", lora_config())
    model.base_model.set_adapter(active)
    trainer(model, tmp_path)
    assert ("in a folder of its name (b)" in caplog.text) == warned


def test_the_part_of_adalora_that_no_one_does_is_reported(tmp_path: Path, caplog) -> None:
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer(tiny_model(), tmp_path, peft_config=config)
    assert "its ranks are not reduced from 4 to 2" in caplog.text


def test_a_token_that_the_model_has_no_embedding_for_is_named_before_training(tmp_path: Path) -> None:
    """It was an IndexError of torch's embedding as well, of a tokenizer with new tokens or of another model."""
    small = random_model("llama", vocab_size=100)
    known = {"prompt": "A", "chosen": "B", "rejected": "CD"}  # of ids below 100
    with pytest.raises(ModelError, match=r"the token id 2\d\d, but the model has only 100 embeddings"):
        trainer(small, tmp_path, data=rows(4))
    with pytest.raises(ModelError, match=r"has only 100 embeddings"):
        trainer(small, tmp_path, data=[known], eval_dataset=rows(4))
    trainer(small, tmp_path, data=[known])


@pytest.mark.parametrize("given", [TrainerCallback(), TrainerCallback, [None], ["name"], [print]])
def test_callbacks_are_a_list_of_callbacks(given: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"callbacks (is a .*: pass a list|holds .*: pass a transformers.TrainerCallback)"
    ):
        trainer(tiny_model(), tmp_path, callbacks=given)


@pytest.mark.parametrize("given", [None, 0.5, {"a": "high"}])
def test_own_metrics_are_a_dict(given: Any, tmp_path: Path) -> None:
    run = trainer(tiny_model(), tmp_path, eval_dataset=rows(2), compute_metrics=lambda _: given)
    with pytest.raises(ConfigError, match=r"compute_metrics returned .*: return a dict of numbers by name"):
        run.evaluate()


def test_own_metrics_that_fail_are_named(tmp_path: Path) -> None:
    def metrics(prediction: Any) -> dict[str, float]:
        raise KeyError("logits")

    run = trainer(tiny_model(), tmp_path, eval_dataset=rows(2), compute_metrics=metrics)
    with pytest.raises(ConfigError, match=r"compute_metrics raised KeyError: 'logits'.* have the shape \(2, 2\)"):
        run.evaluate()
    with pytest.raises(ConfigError, match="compute_metrics is a str: pass a function"):
        trainer(tiny_model(), tmp_path, compute_metrics="accuracy")


@pytest.mark.parametrize("given", [3, 1.5, ["checkpoint-1"], {"max_steps": 1}])
def test_train_and_save_model_take_a_folder(given: Any, tmp_path: Path) -> None:
    run = trainer(tiny_model(), tmp_path)
    with pytest.raises(ConfigError, match=r"train\(\) was given .*resume_from_checkpoint.*Set the length of"):
        run.train(given)
    assert not (tmp_path / "run.json").exists()
    for folder in (given, "", b"x"):
        with pytest.raises(ConfigError, match=r"save_model\(\) was given .* Its argument is a folder"):
            run.save_model(folder)
    run.save_model(tmp_path / "a path")
    assert (tmp_path / "a path" / "config.json").exists()


def test_half_written_records_are_swept_and_others_stay(tmp_path: Path) -> None:
    for name in (".preftune_weights.json-0a1b", ".run.json-0a1b", "preftune_weights.json", ".mine"):
        (tmp_path / name).touch()
    sweep_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "preftune_weights.json"]


@pytest.mark.parametrize("given", [None, nn.Linear(2, 2), nn.Linear, 5, {"name": "m"}])
def test_a_model_is_a_name_or_a_model_of_transformers(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model is (missing|an? \w+): pass a causal language model of transformers"):
        trainer(given, tmp_path)


@pytest.mark.parametrize("given", [5, tiny_model(), PreTrainedTokenizerFast, lambda text: text])
def test_a_tokenizer_is_a_tokenizer(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^processing_class is an? \w+: pass a tokenizer, or its folder"):
        trainer(tiny_model(), tmp_path, processing_class=given)


def test_a_tokenizer_may_be_named(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "t")
    tiny_model().save_pretrained(tmp_path / "t")
    for name in (tmp_path / "t", str(tmp_path / "t")):
        made = trainer(tiny_model(), tmp_path / "run", processing_class=name)
        assert made.processing_class.encode("ab") == tiny_tokenizer().encode("ab")
    with pytest.raises(ModelError, match="There is no model at"):
        trainer(tiny_model(), tmp_path / "run", processing_class="./none")


@pytest.mark.parametrize("given", [5, None, (None,), torch.optim.SGD([torch.zeros(1)], lr=1.0), (5, None)])
def test_optimizers_are_a_pair(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^optimizers is an? \w+: pass a pair, \(optimizer, scheduler\)"):
        trainer(tiny_model(), tmp_path, optimizers=given)


@pytest.mark.parametrize("given", [5, torch.optim.SGD, (torch.optim.SGD, None)])
def test_the_class_of_an_optimizer_comes_with_its_arguments(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^optimizer_cls_and_kwargs is an? \w+: pass a class and its arguments"):
        trainer(tiny_model(), tmp_path, optimizer_cls_and_kwargs=given)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("DPO", "trian_dataset", "Did you mean 'train_dataset'"),
        ("KTO", "ref_modl", "Did you mean 'ref_model'"),
        ("CPO", "evaldataset", "Did you mean 'eval_dataset'"),
        ("GRPO", "trian_dataset", "Did you mean 'train_dataset'"),
        ("OnlineDPO", "proccessing_class", "Did you mean 'processing_class'"),
        ("SFT", "zzz", "Leave it out"),
    ],
)
def test_an_argument_that_does_not_exist_is_answered_with_one_that_does(kind: str, name: str, says: str) -> None:
    raters = {
        "GRPO": {"reward_funcs": lambda completions: [0.0]},
        "OnlineDPO": {"judge": lambda prompt, answer_a, answer_b: "a"},
    }
    given: dict[str, Any] = raters.get(kind, {})
    with pytest.raises(TypeError, match=rf"^{kind}Trainer\(\) got an unexpected keyword argument '{name}'. {says}"):
        getattr(preftune, f"{kind}Trainer")(tiny_model(), **given, **{name: rows(2)})


def test_a_removed_argument_of_an_online_trainer_is_answered_with_its_successor() -> None:
    with pytest.raises(ConfigError, match=r"GRPOTrainer does not .* take 'tokenizer'; its successor is processing_cla"):
        preftune.GRPOTrainer(tiny_model(), lambda completions, **_: [0.0], tokenizer=tiny_tokenizer())
