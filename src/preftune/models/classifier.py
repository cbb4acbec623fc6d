"""Reward models in transformers' form: sequence classifiers with one label, loaded or made from a causal model."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from preftune.errors import ModelError
from preftune.models.attach import adapter_config, attach_adapter, locate_base, name_base
from preftune.models.load import load_model, load_pretrained, parse_dtype
from preftune.models.locate import Location, locate
from preftune.models.quiet import quiet_peft

HEAD = "score"
"""The head's name in the sequence classifiers of decoders."""

HEAD_STD = 0.01
"""Standard deviation of a fresh head's weights: scores start near 0, and losses of pairs near ln 2."""


def load_classifier(name: str | os.PathLike[str], **options: Any) -> nn.Module:
    """A sequence classifier with one label from a folder or hub id: an existing classifier, or one made from a causal
    model with a fresh head; with its adapter, if the name is an adapter's.

    Args:
        options: as for `load_model`.
    Raises: ModelError if it cannot be found or loaded, or has more than one label.
    """
    place = locate(name, revision=options.get("revision"))
    if is_classifier(place, options):
        return _load_classifier(place, options)
    return classifier_of(load_model(name, **options))


def classifier_of(model: Any) -> nn.Module:
    """A sequence classifier with one label on the trunk of a causal model, which is not copied. The head is fresh,
    drawn from torch's generator; an adapter is kept, and trains and saves the head too.

    Raises:
        ModelError: the architecture has no sequence classifier whose head is called `score`.
    """
    if hasattr(model, "peft_config"):
        return _with_adapter_of(model)
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(model.config)
    as_regression(config)
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} has no sequence classifier in transformers, so no reward model can be made from "
            "it. Use another architecture (Llama, Qwen, Gemma, Mistral, ...)."
        ) from error
    prefix = classifier.base_model_prefix
    trunk, head = getattr(model, prefix, None), getattr(classifier, HEAD, None)
    if trunk is None or not isinstance(head, nn.Linear) or type(trunk) is not type(getattr(classifier, prefix)):
        raise ModelError(
            f"the trunk of {type(model).__name__} is not that of {type(classifier).__name__}, so its weights cannot be "
            "taken over. Give a sequence classifier, or another architecture."
        )
    setattr(classifier, prefix, trunk)
    like = trunk.get_input_embeddings().weight
    fresh = nn.Linear(head.in_features, 1, bias=False, device=like.device)
    nn.init.normal_(fresh.weight, std=HEAD_STD)
    setattr(classifier, HEAD, fresh)
    left = [key for key, value in (*classifier.named_parameters(), *classifier.named_buffers()) if value.is_meta]
    if left:
        raise ModelError(
            f"{type(classifier).__name__} has weights that {type(model).__name__} does not have: {left[0]}."
        )
    for mark in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            setattr(classifier, mark, getattr(model, mark))
    if hasattr(model, "hf_device_map"):
        classifier.hf_device_map = model.hf_device_map
    classifier.train(model.training)
    made: nn.Module = classifier
    return made


def as_regression(config: Any) -> None:
    """Sets one label as a regression, so that transformers' pipeline returns the raw score."""
    config.num_labels = 1
    config.problem_type = "regression"


def reward_adapter(peft_config: Any) -> Any:
    """A PEFT configuration for a reward model: with the right task, and with the head trained and saved.

    Raises:
        ModelError: the adapter would be on the head.
    """
    made = copy.deepcopy(peft_config)
    targets = getattr(made, "target_modules", None)
    if isinstance(targets, list | set | tuple) and HEAD in targets:
        raise ModelError("target_modules names 'score', the head, which is trained in full. Leave it out.")
    made.task_type = "SEQ_CLS"
    if hasattr(made, "modules_to_save"):  # PEFT adds the head
        made.modules_to_save = sorted({*(made.modules_to_save or ())} - {"lm_head", HEAD}) or None
    return made


def name_the_head_alone(model: Any) -> None:
    """Keeps, of PEFT's names for heads of classifiers (`classifier`, `score`), those that this model has."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.get_base_model().named_modules()}
    for config in model.peft_config.values():
        if getattr(config, "modules_to_save", None):
            config.modules_to_save = sorted(names & set(config.modules_to_save))


def _with_adapter_of(model: Any) -> nn.Module:
    """The adapter of a causal model on a classifier with the same trunk: its weights are kept, the head is fresh."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    (name,) = model.active_adapters
    config, weights = model.peft_config[name], get_peft_model_state_dict(model, adapter_name=name)
    if getattr(config, "is_prompt_learning", False):
        raise ModelError("a prompt-learning adapter adds its own tokens and cannot be used for a reward model.")
    with quiet_peft():
        base = model.unload()
        config = reward_adapter(config)
        config.inference_mode = False
        made = get_peft_model(classifier_of(base), config)
        name_the_head_alone(made)
        trained = {key: value for key, value in weights.items() if "lm_head" not in key}
        found: Any = set_peft_model_state_dict(made, {**get_peft_model_state_dict(made), **trained})
    if found.unexpected_keys:
        raise ModelError(f"the adapter does not fit the classifier: {found.unexpected_keys[0]} has no place in it.")
    fitted: nn.Module = made
    return fitted


def is_classifier(place: Location, options: Mapping[str, Any]) -> bool:
    """Whether a model or an adapter is a sequence classifier, such as a reward model.

    Args:
        options: of loading; `revision` and `trust_remote_code` are read.
    """
    if place.kind == "gguf":
        return False
    if place.kind in ("adapter", "hub-adapter"):
        return is_reward_adapter(place)
    from transformers import AutoConfig

    given = {key: options[key] for key in ("revision", "trust_remote_code") if options.get(key) is not None}
    config = load_pretrained(AutoConfig, place, revision=given.pop("revision", None), options=given)
    return any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())


def is_reward_adapter(place: Location) -> bool:
    """Whether an adapter was trained on a sequence classifier, so that it contains the head."""
    task = adapter_config(place.name).task_type
    return bool(getattr(task, "value", task) == "SEQ_CLS")


def _load_classifier(place: Location, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    adapter = place if place.kind in ("adapter", "hub-adapter") else None
    base = place if adapter is None else locate_base(place, options.get("base_model"))
    kept = {key: options[key] for key in ("trust_remote_code", "attn_implementation", "device_map") if options.get(key)}
    kept["dtype"] = parse_dtype(options.get("dtype", "auto"))
    if options.get("load_in_4bit") or options.get("load_in_8bit") or options.get("quantization_config") is not None:
        raise ModelError(
            f"{place.name} is a trained classifier, which cannot be quantised for further training. Leave the "
            "quantisation out, or start from the causal model."
        )
    if adapter is not None:
        kept["num_labels"] = 1
    model = load_pretrained(AutoModelForSequenceClassification, base, revision=options.get("revision"), options=kept)
    if model.config.num_labels != 1:
        raise ModelError(
            f"{place.name} has {model.config.num_labels} labels, but a reward model has one. Give a causal model, or a "
            "classifier with one label."
        )
    as_regression(model.config)
    if adapter is None:
        loaded: nn.Module = model
        return loaded
    attached = attach_adapter(model, adapter, is_trainable=bool(options.get("is_trainable")))
    if options.get("base_model") is not None:
        name_base(attached, base.name)
    return attached


def spare_token(tokenizer: Any) -> str:
    """A padding token with which no text ends: transformers reads a score at the last token that is not padding.

    The tokenizer's own pad token, if neither a plain text nor a conversation ends with it; otherwise an unused special
    token of the vocabulary; otherwise the byte 0, with which no text ends.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    ends = {tokenizer.eos_token, None, *_ends_of_answers(tokenizer)}
    if tokenizer.pad_token not in ends:
        return str(tokenizer.pad_token)
    added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    template = str(getattr(tokenizer, "chat_template", "") or "")
    meant = [token for token in added if any(word in token.lower() for word in ("pad", "reserved", "unused"))]
    unused = [token for token in added if token not in template and token != tokenizer.unk_token]
    for token in (*meant, *unused, tokenizer.bos_token):
        if token not in ends:
            return str(token)
    zero = tokenizer("\0", add_special_tokens=False)["input_ids"]
    if len(zero) == 1:
        return str(tokenizer.convert_ids_to_tokens(zero)[0])
    raise ModelError(
        "the tokenizer has no padding token with which no text ends. Set tokenizer.pad_token to one that is not eos."
    )


def _ends_of_answers(tokenizer: Any) -> set[str]:
    """The token with which the chat template ends an answer; empty if there is none, or if the template refuses a
    question.
    """
    if not getattr(tokenizer, "chat_template", None):
        return set()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template is a program; one that takes no question has no ordinary answers either
        return set()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {str(tokenizer.convert_ids_to_tokens(ids[-1]))} if ids else set()
