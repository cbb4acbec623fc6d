"""Putting a run together before the Trainer exists: the model made ready, the data tokenised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from preftune.amounts import counted, of_type
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
from preftune.models.four_bit import is_quantized
from preftune.models.precision import Precision, apply_precision, decide_precision, weights_dtype
from preftune.models.quiet import quiet_peft
from preftune.training.config.base import PackedConfig, PairConfig
from preftune.training.record.saved_model import remember_dtypes, say_saved_dtype
from preftune.training.setup.dropout import dropout_off
from preftune.training.setup.streams import held, is_stream, streamed_groups

_GROUP_TOKENS_WITHOUT_LIMIT = 8192
"""Most tokens of a group of rows with one prompt where `max_length` sets no limit."""


def prepare_model(
    model: Any,
    args: Any,
    *,
    peft_config: Any,
    quantization_config: Any,
    load: Callable[..., Any] | None = None,
) -> Any:
    """The model as it will be trained: loaded if it is a name, with its adapter, dropout as asked.

    Args:
        load: loads a name; by default `load_model`.
    Raises:
        ModelError: no model, a quantised model without adapter, an adapter on top of an adapter or without PeftModel.
    """
    if isinstance(model, str):
        from preftune.models import load_model

        options = dict(args.model_init_kwargs or {})
        options.setdefault("trust_remote_code", args.trust_remote_code)
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        model = (load or load_model)(model, **options)
    elif args.model_init_kwargs is not None or quantization_config is not None:
        given = "model_init_kwargs" if quantization_config is None else "quantization_config"
        raise ConfigError(
            f"{given} applies to a model given by name, but this model is already loaded. Leave {given} out."
        )
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is {of_type(model)}: pass a model, a hub id or a folder.")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} has an encoder and a decoder, but preftune trains only decoders. Give a causal "
            "language model (Llama, Qwen, Gemma, ...)."
        )
    if peft_config is not None:
        model = add_adapter(model, peft_config)
    _refuse_untrainable(model)
    if args.disable_dropout:
        dropout_off(model)
    return model


def _refuse_untrainable(model: nn.Module) -> None:
    """Raises: ModelError for a model that is loaded in a way in which it cannot be trained."""
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
    """Raises: ModelError for an adapter that needs a task id for each row. Warns of one of which a part is not done."""
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
    """Seed everything, as Trainer does once more when it is made."""
    from transformers import enable_full_determinism, set_seed

    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)


def add_adapter(model: nn.Module, peft_config: Any) -> Any:
    """The model with a fresh adapter, the rest frozen."""
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        given = peft_config.__name__ if isinstance(peft_config, type) else f"a {type(peft_config).__name__}"
        raise ConfigError(f"peft_config is {given}: pass peft.LoraConfig(r=16, ...) or another configuration of PEFT.")
    if getattr(model, "peft_config", None):
        raise ModelError(
            "the model already has an adapter, and peft_config would put another on top of it. To continue training "
            "the adapter, leave peft_config out; to start a new one, first merge the old one (preftune merge)."
        )
    if getattr(peft_config, "task_type", None) is None:
        peft_config.task_type = "CAUSAL_LM"
    try:
        with quiet_peft():
            return get_peft_model(model, peft_config)
    except ValueError as error:
        layers = dict.fromkeys(name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear))
        raise ConfigError(
            f"PEFT cannot put this adapter on the model: {error} Its linear layers are {', '.join(layers)}; all-linear "
            "(--lora_target_modules) takes all but the head."
        ) from error


def settle_precision(model: nn.Module, args: PackedConfig) -> Precision:
    """Decide the dtypes of the run once, tell them, and make model and arguments obey."""
    precision = decide_precision(
        bf16=None if args.automatic_precision else args.bf16,
        fp16=None if args.automatic_precision else args.fp16,
        model_dtype=weights_dtype(model),
        device=args.device,
    )
    remember_dtypes(model)
    args.bf16, args.fp16 = precision.bf16, precision.fp16
    args.mixed_precision = "bf16" if precision.bf16 else "fp16" if precision.fp16 else "no"
    for sentence in [precision.describe(), *apply_precision(model, precision)]:
        say(sentence)
    say_saved_dtype(model, args.save_dtype)
    return precision


def settle_engine(model: Any, args: PackedConfig) -> tuple[Engine, Support]:
    """The engine for the model; reports what the user should know about the choice."""
    return told_engine(model, lambda: choose_engine(model, args.engine))  # type: ignore[arg-type]


def told_engine(model: Any, choose: Callable[[], tuple[Any, Support]]) -> tuple[Any, Support]:
    """The engine that `choose` gives; reports what the user should know about it."""
    before = getattr(model.config, "_attn_implementation", None)
    engine, support = choose()
    if not support.exact:
        say(f"prompts are not shared and sequences not packed (engine {engine.name}): {support.reason}.")
    elif before not in (None, "sdpa", model.config._attn_implementation):
        say(f"attention {before!r} is replaced by preftune's own during training; engine='separate' keeps it.")
    return engine, support


def settle_compilation(model: nn.Module, args: PackedConfig) -> None:
    """Compile what `torch_compile` asks for, and say what that is.

    Raises:
        ConfigError: nothing in this model can be compiled.
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
    """Inside, the configuration asks for no compilation: accelerate would compile the model around our hooks."""
    asked = args.torch_compile, args.torch_compile_backend, args.torch_compile_mode
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
    try:
        yield
    finally:
        args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = asked


def one_device(args: PackedConfig) -> None:
    """A packed row cannot be split by DataParallel: one process uses one device, torchrun uses all."""
    if args.n_gpu > 1:
        say(f"one of {args.n_gpu} devices is used by this process; torchrun --nproc_per_node {args.n_gpu} uses all.")
        args._n_gpu = 1


def settle_learning_rate(args: PackedConfig, *, full: bool) -> None:
    """Choose the learning rate where none was given, and say so."""
    if not args.automatic_learning_rate:
        return
    args.learning_rate = args.full_learning_rate if full else args.adapter_learning_rate
    kind = "full fine-tuning" if full else "an adapter"
    other = f" (TRL's is {args.trls_rate:.0e})" if args.learning_rate != args.trls_rate else ""
    say(f"learning_rate={args.learning_rate:g}, the default for {kind}{other}; set it to change it.")


def prepare_data(
    source: Any, tokenizer: Any, args: PairConfig, *, role: str, lists: bool = False, gold: bool = False
) -> tuple[GroupDataset, TokenizeReport | DemonstrationReport | None]:
    """Tokenised groups of any kind of source, with a log of everything that was dropped or cut.

    Args:
        role: "train", "eval", "eval (NAME)" or "test". Rows to predict stay in their order, one group per row,
            whatever `group_by_prompt` and `lists` say.
        lists: the rated pairs of a prompt become one list of its answers.
        gold: the rows have a third answer, which is imitated.
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
    """Groups, new or from the cache, and their report, which is logged. `settings` are those of the tokenising."""
    groups, report, recalled = tokenize_or_recall(rows, tokenizer, **settings)
    if recalled:
        detail(f"the {role} {rows.kind}s were tokenised before: their token ids are read from the cache.")
    first, *others = report.lines()
    (say if role == "train" else detail)(first)
    for line in others:
        warn(line)
    return groups, report


def _grouped(groups: GroupDataset, args: PairConfig, *, role: str) -> GroupDataset:
    """Groups of all rows with the same prompt, if that is asked for, and what it saves."""
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
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        line += (
            f". The batch size counts groups: a step of {per_step} holds about "
            f"{per_step * merged.pairs / len(merged):.0f} pairs"
        )
    say(f"{line}.")
    return merged


def _listed(groups: GroupDataset, args: PairConfig, *, role: str) -> GroupDataset:
    """One group for the rated answers of each prompt, and what that makes of the pairs."""
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
    """What lists were made of pairs."""
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
            f"{counted(counts.contradicting, f'{role} prompt')} left out, because all its answers have the same score "
            "on average."
        )
    if counts.rerated:
        say(f"{counted(counts.rerated, f'{role} answer')} with different ratings in several rows: the mean counts.")


Prepare = Callable[[Any, str], tuple[GroupDataset, Any]]
"""Tokenises a source for a role ("train", "eval", "eval (NAME)", "test"); gives its report, if there is one."""


def prepare_all(
    train: Any, held_out: Any, prepare: Prepare
) -> tuple[GroupDataset, GroupDataset | dict[str, GroupDataset] | None, dict[str, Any]]:
    """Training and evaluation data of a run, and what tokenising did to each, by role."""
    if train is None:
        raise ConfigError("`train_dataset` is required: pass a dataset, a list of dicts, a path or a hub id.")
    groups, report = prepare(train, "train")
    eval_groups, reports = prepare_held_out(held_out, prepare)
    for name, part in (eval_groups if isinstance(eval_groups, Mapping) else {"": eval_groups}).items():
        if part is not None and groups.known is groups:
            _say_shared(groups, part, f"evaluation prompts{f' ({name})' if name else ''}")
    return groups, eval_groups, reports if report is None else {"train": report, **reports}


def _say_shared(train: GroupDataset, held_out: GroupDataset, what: str) -> None:
    """Metrics on prompts that are trained on measure memory. Prompts of one token (plain texts) do not count."""
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
    """Data of no, one or several named evaluation datasets."""
    if source is None:
        return None, {}
    if isinstance(source, Mapping):
        prepared = {name: prepare(part, f"eval ({name})") for name, part in source.items()}
        reports = {f"eval_{name}": report for name, (_, report) in prepared.items() if report is not None}
        return {name: groups for name, (groups, _) in prepared.items()}, reports
    groups, report = prepare(source, "eval")
    return groups, {} if report is None else {"eval": report}
