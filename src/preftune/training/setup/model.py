"""Preparation of a run before the trainer exists: the model's adapter, precision and engine, and tokenised data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from preftune.amounts import counted
from preftune.data import (
    DemonstrationDataset,
    DemonstrationReport,
    GroupDataset,
    LabelledDataset,
    LabelledReport,
    ListCounts,
    PairDataset,
    TokenizeReport,
    as_lists,
    group_by_prompt,
    load_pairs,
)
from preftune.data.tokens.cache import tokenize_or_recall
from preftune.errors import ConfigError, ModelError
from preftune.log import detail, say, warn
from preftune.logps import Engine, Support, choose_engine
from preftune.logps.layers.compiled import compile_layers
from preftune.models.attach import add_adapter
from preftune.models.four_bit import is_quantized
from preftune.models.precision import Precision, apply_precision, decide_precision, weights_dtype
from preftune.training.config.base import PackedConfig, PairConfig
from preftune.training.record.saved_model import remember_dtypes, say_saved_dtype, say_where_adapters_are_saved
from preftune.training.record.scaling import keep_scaling
from preftune.training.setup.dropout import dropout_off
from preftune.training.setup.streams import held, is_stream, streamed_groups
from preftune.training.setup.unsaved import warn_of_unsaved

_GROUP_TOKENS_WITHOUT_LIMIT = 8192
"""Most tokens of a group of rows with one prompt when `max_length` sets no limit."""


def prepare_model(
    model: Any,
    args: Any,
    *,
    peft_config: Any,
    quantization_config: Any,
    load: Callable[..., Any] | None = None,
) -> Any:
    """The model as it will be trained: loaded if it is given by name, with its adapter, and without dropout if
    `disable_dropout` is set.

    Args:
        load: loads a model by its name; by default `load_model`.
    Raises:
        ModelError: the model cannot be trained: it is no decoder, is spread over devices, is quantised without an
            adapter, or has no trainable parameter; or an adapter would be put on another.
        ConfigError: options of loading with a loaded model, or a `peft_config` that does not fit.
    """
    revision = None
    if isinstance(model, str):
        from preftune.models import load_model

        options = dict(args.model_init_kwargs or {})
        revision = options.get("revision")
        options.setdefault("trust_remote_code", args.trust_remote_code)
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        model = (load or load_model)(model, **options)
    elif args.model_init_kwargs is not None or quantization_config is not None:
        given = "model_init_kwargs" if quantization_config is None else "quantization_config"
        raise ConfigError(
            f"{given} applies to a model given by name, but this model is already loaded. Leave {given} out."
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} has an encoder and a decoder, but preftune trains only decoders. Give a causal "
            "language model (Llama, Qwen, Gemma, ...)."
        )
    if peft_config is not None:
        model = add_adapter(model, peft_config)
    _refuse_untrainable(model)
    say_where_adapters_are_saved(model)
    if args.disable_dropout:
        dropout_off(model)
    keep_scaling(model)
    warn_of_unsaved(model, revision=revision, trust_remote_code=args.trust_remote_code)
    return model


def _refuse_untrainable(model: nn.Module) -> None:
    """Raises: ModelError for a model that cannot be trained in the form in which it was loaded."""
    _refuse_tasks(model)
    devices = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()} - {"cpu", "disk"}
    if len(devices) > 1:
        raise ModelError(
            f"the model is spread over {len(devices)} devices (device_map), but preftune trains on one per process. "
            "Load it without device_map, in 4 bit if it is large (load_in_4bit=True), and start one process per "
            "device with torchrun."
        )
    if hasattr(model, "peft_config") and not hasattr(model, "disable_adapter"):
        raise ModelError(
            "the model holds its adapter without a PeftModel around it, as AutoModelForCausalLM.from_pretrained makes "
            "of an adapter's folder. Load it with preftune.load_model(name, is_trainable=True)."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "no parameter of the model requires a gradient. Load the adapter with is_trainable=True, or pass a "
            "peft_config (--use_peft)."
        )
    if is_quantized(model) and not hasattr(model, "peft_config"):
        raise ModelError(
            "a quantised model cannot be trained directly. Pass peft_config=LoraConfig(target_modules='all-linear') "
            "(--use_peft), which trains an adapter on top of it."
        )


def _refuse_tasks(model: Any) -> None:
    """Warn of AdaLoRA, a part of which is not supported.

    Raises: ModelError for an adapter that needs a task id for each row.
    """
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind in ("POLY", "MULTITASK_PROMPT_TUNING"):
            raise ModelError(
                f"adapter {name!r} ({kind}) needs the task of every row, which preference data do not have. Use LoRA, "
                "or prompt tuning."
            )
        if kind == "ADALORA":
            warn(
                f"adapter {name!r} (AdaLoRA): its ranks are not reduced from {config.init_r} to {config.target_r}, and "
                "no penalty keeps its factors orthogonal: PEFT leaves both to the training loop. Use LoRA, or "
                "call model.base_model.update_and_allocate(step) in a callback's on_optimizer_step."
            )


def seed(args: PackedConfig) -> None:
    """Seed Python, NumPy and torch, as transformers' Trainer does again when it is made."""
    from transformers import enable_full_determinism, set_seed

    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)


def settle_precision(model: nn.Module, args: PackedConfig) -> Precision:
    """Decide the dtypes of the run, log them, and apply them to the model and the configuration, in place."""
    precision = decide_precision(
        bf16=None if args.automatic_precision else args.bf16,
        fp16=None if args.automatic_precision else args.fp16,
        model_dtype=weights_dtype(model),
        device=args.device,
    )
    remember_dtypes(model)
    args.bf16, args.fp16 = precision.bf16, precision.fp16
    args.mixed_precision = "bf16" if precision.bf16 else "fp16" if precision.fp16 else "no"
    (detail if precision.plain else say)(precision.describe())
    for sentence in apply_precision(model, precision):
        say(sentence)
    say_saved_dtype(model, args.save_dtype)
    return precision


def settle_engine(model: Any, args: PackedConfig) -> tuple[Engine, Support]:
    """The engine for the model, and what it supports; logs the reason if prompts are not shared."""
    return logged_engine(model, lambda: choose_engine(model, args.engine))  # type: ignore[arg-type]


def logged_engine(model: Any, choose: Callable[[], tuple[Any, Support]]) -> tuple[Any, Support]:
    """The engine that `choose` returns; logs the reason if prompts are not shared, and a replaced attention."""
    before = getattr(model.config, "_attn_implementation", None)
    engine, support = choose()
    if not support.exact:
        say(f"prompts are not shared and sequences not packed (engine {engine.name}): {support.reason}.")
    elif before not in (None, "sdpa", model.config._attn_implementation):
        say(f"attention {before!r} is replaced by preftune's own during training; engine='separate' keeps it.")
    return engine, support


def settle_compilation(model: nn.Module, args: PackedConfig) -> None:
    """Compile the model's norms and MLPs if `torch_compile` is set, and log their number.

    Raises:
        ConfigError: the model has no layer that can be compiled.
    """
    if not args.torch_compile:
        return
    backend = args.torch_compile_backend or "inductor"
    count = compile_layers(model, backend=backend, mode=args.torch_compile_mode)
    if count == 0:
        raise ConfigError(
            "torch_compile=True, but this model has no norms or MLPs that could be compiled (they are quantised, "
            "experts, or PyTorch's own). Remove torch_compile."
        )
    say(
        f"{counted(count, 'norm or MLP is', 'norms and MLPs are')} compiled ({backend}); the first steps take longer, "
        "and attention is not changed."
    )


@contextmanager
def compiled_by_us(args: PackedConfig) -> Iterator[None]:
    """Within this context, `torch_compile` is off: accelerate would compile the whole model around preftune's hooks."""
    asked = args.torch_compile, args.torch_compile_backend, args.torch_compile_mode
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
    try:
        yield
    finally:
        args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = asked


def one_device(args: PackedConfig) -> None:
    """Limit the process to one device, because DataParallel cannot split a packed row; torchrun uses all devices."""
    if args.n_gpu > 1:
        say(f"one of {args.n_gpu} devices is used by this process; torchrun --nproc_per_node {args.n_gpu} uses all.")
        args._n_gpu = 1


def settle_learning_rate(args: PackedConfig, *, full: bool) -> None:
    """Choose the learning rate if none was given, in place, and log it."""
    if not args.automatic_learning_rate:
        return
    args.learning_rate = args.full_learning_rate if full else args.adapter_learning_rate
    kind = "full fine-tuning" if full else "an adapter"
    other = f" (TRL's is {args.trls_rate:.0e})" if args.learning_rate != args.trls_rate else ""
    say(f"learning_rate={args.learning_rate:g}, the default for {kind}{other}; set it to change it.")


def prepare_data(
    source: Any, tokenizer: Any, args: PairConfig, *, role: str, lists: bool = False, gold: bool = False
) -> tuple[GroupDataset, TokenizeReport | DemonstrationReport | None]:
    """Tokenised groups of any kind of source; the rows that were dropped or cut are logged.

    Args:
        role: "train", "eval", "eval (NAME)" or "test". Rows of "test" stay in their order, one group per row, without
            regard to `group_by_prompt` and `lists`.
        lists: whether the rated pairs of a prompt become one list of its answers.
        gold: whether the rows have a third answer, which is imitated.
    Returns: the groups and the report of tokenising; no report for data that are tokenised already.
    Raises: DatasetError for a source that cannot be read as pairs, ConfigError for ratings that all contradict.
    """
    grouped = _listed if lists else _grouped
    if isinstance(source, GroupDataset):
        return grouped(source, args, role=role), None
    limits: dict[str, Any] = {name: getattr(args, name) for name in ("max_length", "max_prompt_length", "truncation")}
    if is_stream(source) and role == "train":
        return streamed_groups(source, "pair", tokenizer, args, gold=gold, **limits)
    source = held(source, role)
    pairs = source if isinstance(source, PairDataset) else load_pairs(source)
    pairs = pairs.rated() if lists else pairs.with_gold() if gold else pairs
    groups, report = tokenize(pairs, tokenizer, role=role, num_proc=args.dataset_num_proc, **limits)
    return grouped(groups, args, role=role), report


def tokenize(
    rows: PairDataset | DemonstrationDataset | LabelledDataset, tokenizer: Any, *, role: str, **settings: Any
) -> tuple[GroupDataset, TokenizeReport | DemonstrationReport | LabelledReport]:
    """Groups, new or from the cache, and their report, which is logged. `settings` are passed to the tokenising."""
    groups, report, recalled = tokenize_or_recall(rows, tokenizer, **settings)
    if recalled:
        detail(f"the {role} {rows.kind}s were tokenised before: their token ids are read from the cache.")
    first, *others = report.lines()
    (say if role == "train" else detail)(first)
    for line in others:
        warn(line)
    return groups, report


def _grouped(groups: GroupDataset, args: PairConfig, *, role: str) -> GroupDataset:
    """One group for the rows of each prompt if `group_by_prompt` is set; logs the number of tokens that it saves."""
    if not args.group_by_prompt or role == "test":
        return groups
    limit = 4 * args.max_length if args.max_length else _GROUP_TOKENS_WITHOUT_LIMIT
    merged = group_by_prompt(groups, max_group_tokens=limit)
    if merged.total_tokens == groups.total_tokens:
        say(f"group_by_prompt: no two {role} pairs ({groups.pairs:,} in all) share a prompt, so it has no effect.")
        return merged
    line = (
        f"{groups.pairs:,} {role} pairs share {counted(merged.prompts, 'prompt')}: {counted(len(merged), 'group')}, "
        f"{merged.total_tokens:,} tokens instead of {groups.total_tokens:,}"
    )
    if role == "train":
        per_step = args.rows_per_step
        line += (
            f". The batch size counts groups: a step of {per_step} holds about "
            f"{per_step * merged.pairs / len(merged):.0f} pairs"
        )
    say(f"{line}.")
    return merged


def _listed(groups: GroupDataset, args: PairConfig, *, role: str) -> GroupDataset:
    """One group for the rated answers of each prompt; logs the lengths of the lists."""
    if role == "test":
        return groups
    lists, counts = as_lists(groups)
    if not len(lists):
        raise ConfigError(
            f"the ratings of all {role} pairs ({groups.pairs:,}) contradict each other: answers to the same prompt "
            "have the same score on average. Correct the ratings, or use a loss of pairs."
        )
    say_lists(lists, counts, groups.pairs, role=role)
    return lists


def say_lists(lists: GroupDataset, counts: ListCounts, pairs: int, *, role: str) -> None:
    """Log the lists that were made of pairs, and the prompts that were left out."""
    if not counts.lengths:
        say(
            f"no {role} prompt has more than two rated answers: a list is a pair. Data with ratings of both sides, "
            "scores or ranks give longer lists."
        )
    else:
        least, most = 2 if counts.of_two else min(counts.lengths), max(counts.lengths)
        answers = f"{least} to {most} answers" if least < most else f"{most} answers"
        say(f"{pairs:,} {role} pairs form {counted(len(lists), 'list')} of {answers}. The batch size counts lists.")
    if counts.contradicting:
        warn(
            f"{counted(counts.contradicting, f'{role} prompt is', f'{role} prompts are')} left out, because all "
            "answers to a prompt have the same score on average."
        )
    if counts.rerated:
        rerated = counted(counts.rerated, f"{role} answer has", f"{role} answers have")
        say(f"{rerated} different ratings in several rows: the mean is used.")


Prepare = Callable[[Any, str], tuple[GroupDataset, Any]]
"""Tokenises a source for a role ("train", "eval", "eval (NAME)", "test"). Returns groups, and a report or None."""


def prepare_all(
    train: Any, held_out: Any, prepare: Prepare
) -> tuple[GroupDataset, GroupDataset | dict[str, GroupDataset] | None, dict[str, Any]]:
    """Training and evaluation data of a run, and the reports of tokenising by role.

    Raises: ConfigError without training data.
    """
    if train is None:
        raise ConfigError("`train_dataset` is required: pass a dataset, a list of dicts, a path or a hub id.")
    groups, report = prepare(train, "train")
    eval_groups, reports = prepare_held_out(held_out, prepare)
    for name, part in (eval_groups if isinstance(eval_groups, Mapping) else {"": eval_groups}).items():
        if part is not None and groups.known is groups:
            _say_shared(groups, part, f"evaluation prompts{f' ({name})' if name else ''}")
    return groups, eval_groups, reports if report is None else {"train": report, **reports}


def _say_shared(train: GroupDataset, held_out: GroupDataset, what: str) -> None:
    """Log how many held-out prompts are training prompts, whose metrics measure memorisation. Prompts of one token
    (plain texts) do not count.
    """
    asked = np.unique(held_out.prompt_keys(least=2))
    shared = len(np.intersect1d(asked, train.prompt_keys(least=2))) if len(asked) else 0
    if shared:
        say(
            f"{shared:,} of {len(asked):,} {what} are also in the training data, so their figures include "
            "memorisation. Keep each prompt on one side: eval_fraction (--eval_fraction 0.05), or preftune convert "
            "--split 0.05 --by prompt."
        )


def prepare_held_out(
    source: Any, prepare: Prepare
) -> tuple[GroupDataset | dict[str, GroupDataset] | None, dict[str, Any]]:
    """Tokenised data of no evaluation dataset, of one, or of several by name; and their reports."""
    if source is None:
        return None, {}
    if isinstance(source, Mapping):
        prepared = {name: prepare(part, f"eval ({name})") for name, part in source.items()}
        reports = {f"eval_{name}": report for name, (_, report) in prepared.items() if report is not None}
        return {name: groups for name, (groups, _) in prepared.items()}, reports
    groups, report = prepare(source, "eval")
    return groups, {} if report is None else {"eval": report}
