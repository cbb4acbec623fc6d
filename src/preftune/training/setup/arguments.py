"""Checks and defaults of the trainers' arguments. The error for a removed argument names its successor."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback

from preftune.amounts import of_type
from preftune.data import GroupDataset
from preftune.errors import ConfigError, DatasetError, ModelError, did_you_mean
from preftune.log import say
from preftune.models.positions import check_token_ids, positions_of
from preftune.training.config.base import PackedConfig
from preftune.training.protocol import TrainerView
from preftune.training.setup.rehearsal import rehearse

Config = TypeVar("Config", bound=PackedConfig)

_REMOVED = {
    "tokenizer": "processing_class",
    "beta": "DPOConfig(beta=...)",
    "max_length": "DPOConfig(max_length=...)",
    "max_prompt_length": "DPOConfig(max_prompt_length=...)",
    "loss_type": "DPOConfig(loss_type=...)",
    "model_init_kwargs": "DPOConfig(model_init_kwargs=...)",
    "ref_model_init_kwargs": "a ref_model that is loaded already, or none",
    "precompute_ref_log_probs": "DPOConfig(precompute_ref_log_probs=...)",
    "model_init": "model",
}


def with_early_stopping(callbacks: list[TrainerCallback] | None, args: PackedConfig) -> list[TrainerCallback]:
    """The callbacks, with transformers' `EarlyStoppingCallback` if `early_stopping_patience` is set.

    Raises: ConfigError if `callbacks` is not a list of callbacks.
    """
    if not isinstance(callbacks, list | tuple | None):
        raise ConfigError(f"callbacks is {of_type(callbacks)}: pass a list, callbacks=[...].")
    callbacks = list(callbacks or [])
    for one in callbacks:
        if not hasattr(one, "on_init_end"):
            raise ConfigError(f"callbacks holds {one!r}: pass a transformers.TrainerCallback, or its class.")
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
    return callbacks


def refuse_arguments(
    trainer: type, removed: Mapping[str, Any], data_collator: Any = None, preprocess: Any = None
) -> None:
    """Raises: TypeError for an argument that never existed, ConfigError for a removed or unsupported one."""
    for name in removed:
        successor = _REMOVED.get(name)
        if successor is None:
            hint = did_you_mean(name, _arguments_of(trainer), otherwise="Leave it out.")
            raise TypeError(f"{trainer.__name__}() got an unexpected keyword argument {name!r}. {hint}")
        successor = successor.replace("DPO", trainer.__name__.removesuffix("Trainer"))
        raise ConfigError(f"{trainer.__name__} does not (or no longer) take {name!r}; its successor is {successor}.")
    for name, value in {"data_collator": data_collator, "preprocess_logits_for_metrics": preprocess}.items():
        if value is not None:
            raise ConfigError(
                f"{name} is not honoured: preftune packs its own batches and keeps no logits; leave it out."
            )


def own_config(args: Any, kind: type[Config], *, method: str) -> Config:
    """The configuration, or the defaults of its class `kind` for None.

    Raises: ConfigError for a configuration of another class, or one of which no optimiser can be made (`rehearse`).
    """
    if args is None:
        return kind(output_dir=f"runs/{method}")
    if not isinstance(args, kind):
        given = f"{type(args).__module__}.{type(args).__name__}"
        raise ConfigError(f"args is a {given}: pass preftune.{kind.__name__}, which has its fields.")
    rehearse(args)
    return args


def _arguments_of(trainer: type) -> list[str]:
    """The names of the arguments that a trainer and its bases in preftune take."""
    makers = [vars(kind).get("__init__") for kind in trainer.__mro__ if kind.__module__.startswith("preftune.")]
    parameters = [one for maker in makers if maker for one in inspect.signature(maker).parameters.values()]
    return [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def checked_model(model: Any) -> Any:
    """The model, or its name as text. Raises: ModelError for what is neither a name nor a model of transformers."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if not (isinstance(model, nn.Module) and hasattr(model, "config")):
        given = "missing" if model is None else of_type(model)
        raise ModelError(f"model is {given}: pass a causal language model of transformers, a hub id or a folder.")
    return model


def tokenizer_of(given: Any, model: Any, args: PackedConfig) -> Any:
    """The tokenizer that a trainer is given, as such or by name; for None that of the model.

    Raises: ConfigError for anything else; ModelError if there is no tokenizer of that name.
    """
    from preftune.models import load_tokenizer

    if isinstance(given, str | os.PathLike):
        return load_tokenizer(given, trust_remote_code=args.trust_remote_code)
    if given is not None:
        if isinstance(given, type) or not hasattr(given, "eos_token_id"):
            raise ConfigError(
                f"processing_class is {of_type(given)}: pass a tokenizer, or its folder or hub id; leave it out for "
                "the model's own."
            )
        return given
    name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    if not name:
        raise ConfigError("processing_class is missing, and the model has no name to load a tokenizer from. Pass it.")
    loading = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    return load_tokenizer(name, trust_remote_code=args.trust_remote_code, base_model=loading.get("base_model"))


def check_optimizers(optimizers: Any, kind_and_options: Any = None) -> None:
    """Raises: ConfigError unless `optimizers` is a pair, and `optimizer_cls_and_kwargs` None or a class and a dict."""
    pair = isinstance(optimizers, list | tuple) and len(optimizers) == 2
    if not pair or not all(one is None or hasattr(one, "step") for one in optimizers):
        raise ConfigError(
            f"optimizers is {of_type(optimizers)}: pass a pair, (optimizer, scheduler), with None for what preftune "
            "makes."
        )
    if kind_and_options is None:
        return
    pair = isinstance(kind_and_options, list | tuple) and len(kind_and_options) == 2
    if not pair or not callable(kind_and_options[0]) or not isinstance(kind_and_options[1], Mapping):
        raise ConfigError(
            f"optimizer_cls_and_kwargs is {of_type(kind_and_options)}: pass a class and its arguments, "
            "(torch.optim.AdamW, {'lr': 1e-5})."
        )


def check_metrics(compute_metrics: Any) -> None:
    """Raises: ConfigError if `compute_metrics` is not callable."""
    if compute_metrics is not None and not callable(compute_metrics):
        raise ConfigError(
            f"compute_metrics is {of_type(compute_metrics)}: pass a function of one EvalPrediction that "
            "returns a dict of numbers."
        )


def check_evaluation(args: PackedConfig, eval_dataset: Any, columns: Sequence[str], *, has_own_metrics: bool) -> None:
    """Check `eval_strategy` and `metric_for_best_model`, and replace the name of the metric by its full name, in place.
    The name may lack the prefix and differ in plural and separators.

    Args:
        columns: metrics of an evaluation besides the loss, without prefix.
        has_own_metrics: whether `compute_metrics` is given; its names are not known before it runs.
    Raises: ConfigError without evaluation data, or for an unknown or ambiguous metric.
    """
    wanted = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if wanted != "no" and eval_dataset is None:
        raise ConfigError(f"eval_strategy={wanted!r}, but there is no eval_dataset. Pass one, or eval_strategy='no'.")
    metric = args.metric_for_best_model
    if metric is None:
        return
    sets = list(eval_dataset) if isinstance(eval_dataset, dict) else []
    bare = metric.removeprefix("eval").lstrip("_/")
    fitting = [key for key in sets if bare.startswith((f"{key}_", f"{key}/"))]
    chosen = max(fitting, key=len, default=None)
    if sets and chosen is None:
        listed = ", ".join(f"'eval_{key}_loss'" for key in sets)
        raise ConfigError(
            f"metric_for_best_model={metric!r} does not name its evaluation set. With several sets, name one: {listed}."
        )
    prefix = "" if chosen is None else f"{chosen}_"
    found = _metric_named(bare[len(prefix) :], ("loss", *columns))
    if found is not None:
        args.metric_for_best_model = f"eval_{prefix}{found}"
        if found == "loss" and not metric.endswith("loss"):  # transformers assumed that higher is better
            args.greater_is_better = False
    elif not has_own_metrics:
        names = [f"eval_{prefix}{name}" for name in ("loss", *columns)]
        hint = did_you_mean(metric, names, cutoff=0.3, otherwise="Check the spelling.")
        raise ConfigError(
            f"metric_for_best_model={metric!r} is not a metric of this evaluation. Known are "
            f"{', '.join(map(repr, names))}. {hint}"
        )


def check_fit(model: nn.Module, datasets: Mapping[str, GroupDataset | None]) -> None:
    """Check that the model has an embedding for every token id, and a position for every token of the longest row.

    Args:
        datasets: datasets by role ("train", "eval"), for the message.
    Raises: ModelError or DatasetError.
    """
    limit = positions_of(model)
    for role, groups in datasets.items():
        if groups is None:
            continue
        check_token_ids(model, groups.largest_id)
        if limit is not None and groups.longest > limit:
            raise DatasetError(
                f"a row of the {role} dataset has {groups.longest:,} tokens, but the model has only {limit:,} "
                f"positions. Set max_length={limit} (--max_length {limit}), which cuts longer rows or leaves them out."
            )


def say_unwatched(trainer: TrainerView) -> None:
    """Log a hint if there is an eval_dataset that will not be evaluated."""
    wanted = str(getattr(trainer.args.eval_strategy, "value", trainer.args.eval_strategy))
    if wanted == "no" and trainer.eval_dataset is not None and not getattr(trainer, "evaluates_at_end", True):
        say(
            "advice: eval_dataset is given, but eval_strategy is 'no', so it is not evaluated during training. Set "
            "eval_strategy='steps' with eval_steps, or call trainer.evaluate() afterwards."
        )


def _metric_named(name: str, known: Sequence[str]) -> str | None:
    """The metric of a name: the same name, or the only metric with the same words, or the only one that contains them;
    separators and plurals do not matter (`reward_margin` for `rewards/margins`, `accuracy` for `rewards/accuracies`).
    """
    if name in known:
        return name
    words = _words(name)
    fitting = [metric for metric in known if words and words <= _words(metric)]
    exact = [metric for metric in fitting if words == _words(metric)]
    return exact[0] if len(exact) == 1 else fitting[0] if len(fitting) == 1 else None


def _words(name: str) -> set[str]:
    parts = re.split(r"[^a-z]+", name.lower())
    return {re.sub(r"ies$", "y", part) if part.endswith("ies") else part.removesuffix("s") for part in parts if part}
