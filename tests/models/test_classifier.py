"""Sequence classifiers with one label, made of causal models or loaded; and the pad token that no text ends with."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from models_zoo import random_model
from preftune.errors import ModelError
from preftune.models import load_model
from preftune.models.classifier import classifier_of, load_classifier, reward_adapter, spare_token
from saved_reward import save_reward
from tiny import CHAT_TEMPLATE, save_tiny, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3"])
def test_the_trunk_is_the_same_object_and_the_head_is_fresh(name):
    causal = random_model(name)
    expected = causal(IDS, output_hidden_states=True).hidden_states[-1]
    torch.manual_seed(0)
    made = classifier_of(causal)
    assert type(made).__name__.endswith("ForSequenceClassification")
    prefix = made.base_model_prefix
    assert getattr(made, prefix) is getattr(causal, prefix)
    assert made.score.weight.shape == (1, causal.config.hidden_size)
    assert (made.config.num_labels, made.config.problem_type) == (1, "regression")
    assert causal.config.num_labels == 2  # its own is left alone
    found = made(IDS, output_hidden_states=True)
    torch.testing.assert_close(found.hidden_states[-1], expected)
    torch.testing.assert_close(found.logits[0], made.score(expected[0, -1]))
    again = random_model(name)
    torch.manual_seed(0)
    assert torch.equal(classifier_of(again).score.weight, made.score.weight)


def test_an_adapter_comes_along_with_its_weights():
    causal = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for key, parameter in causal.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0.0, 0.5)
    expected = causal(IDS, output_hidden_states=True).hidden_states[-1].detach()
    made = classifier_of(causal)
    torch.testing.assert_close(made(IDS, output_hidden_states=True).hidden_states[-1], expected)
    trains = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
    assert any("score.modules_to_save" in name for name in trains)
    assert all("lora_" in name or "score" in name for name in trains)
    config = made.peft_config["default"]
    assert (config.task_type, config.modules_to_save) == ("SEQ_CLS", ["score"])


def test_loading_by_name(tmp_path):
    causal = save_tiny(tmp_path / "causal")
    made = load_classifier(causal)
    assert made.config.num_labels == 1
    made.save_pretrained(tmp_path / "reward")
    again = load_classifier(str(tmp_path / "reward"))
    assert torch.equal(again.score.weight, made.score.weight)
    AutoModelForSequenceClassification.from_pretrained(causal, num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match="has 3 labels, but a reward model has one"):
        load_classifier(str(tmp_path / "three"))


def test_what_cannot_become_a_reward_model():
    with pytest.raises(ModelError, match="has no sequence classifier in transformers"):
        classifier_of(random_model("granite"))
    with pytest.raises(ModelError, match="target_modules names 'score'"):
        reward_adapter(LoraConfig(target_modules=["q_proj", "score"]))


def test_a_pad_token_that_no_text_ends_with():
    assert spare_token(tiny_tokenizer()) == "<|endoftext|>"  # its own
    assert spare_token(tiny_tokenizer(pad_is_eos=True)) == "<|im_start|>"  # with which turns begin, and none ends
    tokenizer = tiny_tokenizer(pad_is_eos=True, chat=False)
    assert spare_token(tokenizer) != tokenizer.eos_token


def test_a_pad_token_with_which_the_template_ends_an_answer_is_not_taken():
    """Its score would be read one token early, wherever texts are padded."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", "<|im_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")
    assert tokenizer.pad_token != tokenizer.eos_token
    assert spare_token(tokenizer) not in ("<|im_end|>", "<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE  # here a line break ends it
    assert spare_token(tokenizer) == "<|im_end|>"


def test_a_reward_model_is_no_language_model(tmp_path):
    """Loaded as one it would lose its head, and as a whole model talk with a random one."""
    save_reward(tmp_path / "adapter", save_tiny(tmp_path / "base"))
    classifier_of(tiny_model()).save_pretrained(tmp_path / "whole")
    for name in ("adapter", "whole"):
        with pytest.raises(ModelError, match="is a reward model, which rates answers and cannot write them"):
            load_model(str(tmp_path / name))
