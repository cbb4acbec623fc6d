"""`preftune plan`: memory, time and cost of a training before anything is loaded, and what makes it fit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.arguments import take_command
from preftune.cli.flags.messages import echo
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.train.train_command import method_of
from preftune.errors import RequestError
from preftune.shell_words import word

if TYPE_CHECKING:
    from preftune.cli.train.train_command import Method
    from preftune.data import GroupDataset
    from preftune.plan.forecast import Plan
    from preftune.plan.settings import Settings
    from preftune.plan.shape import ModelShape

COMMANDS = ("dpo", "sft", "kto", "reward")
"""Commands that train on given data."""
_DEVICES = "t4 l4 a100-80 h100 h200 cpu this".split()
_ROWS = 1000


def run(argv: Sequence[str]) -> int:
    """Runs `preftune plan` and returns its exit code: 0 if the training fits, 1 if it does not."""
    name, words = take_command(argv, COMMANDS, prog="preftune plan", which="train on given data")
    asked, rest = _parser().parse_known_args(words)
    _check(asked)
    method = method_of(name)
    plan = _plan(method, asked, rest)
    if asked.json:
        print(json.dumps(plan.to_json(), indent=2))
    else:
        from preftune.cli.display.plan_table import show

        data = [] if asked.prompt_tokens is None else ["--data", "FILE"]
        show(plan, [word(one) for one in [*rest, *data]])
    return 0 if plan.memory.fits else 1


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune plan",
        usage="preftune plan [dpo|sft|kto|reward] --model NAME_OR_PATH (--data FILE | --prompt_tokens N "
        "--completion_tokens N) --device NAME [options of the training]",
        description="Forecast memory, time and cost of a training from the model's config and the lengths of the data. "
        "No weights are loaded, except for --device this, which measures two steps. Every flag of the training command "
        "and --config RECIPE are taken as they are.",
    )
    add = parser.add_argument
    add("--device", choices=_DEVICES, default="this", help="one of each kind; cpu and this are of this machine (this)")
    add("--gpus", type=int, default=1, metavar="N", help="devices in each machine (1)")
    add("--nodes", type=int, default=1, metavar="N", help="machines (1)")
    add("--price_per_hour", type=float, metavar="PRICE", help="of one device, for the cost")
    add("--prompt_tokens", type=int, metavar="N", help="length of every prompt, instead of data")
    add("--completion_tokens", type=int, metavar="N", help="length of every completion, instead of data")
    add("--rows", type=int, metavar="N", help=f"number of rows, instead of data ({_ROWS})")
    add("--json", action="store_true", help="the plan as JSON")
    return parser


def _check(asked: argparse.Namespace) -> None:
    """Raises: RequestError."""
    for flag in ("gpus", "nodes", "prompt_tokens", "completion_tokens", "rows"):
        value = getattr(asked, flag)
        if value is not None and value < 1:
            raise RequestError(f"--{flag} {value}: give 1 or more.")
    if (asked.prompt_tokens is None) != (asked.completion_tokens is None):
        raise RequestError("--prompt_tokens and --completion_tokens belong together. Give both, or --data.")
    if asked.rows is not None and asked.prompt_tokens is None:
        raise RequestError("--rows has no effect with --data. Leave it out, or give --prompt_tokens too.")
    if asked.price_per_hour is not None and not asked.price_per_hour >= 0:
        raise RequestError(f"--price_per_hour {asked.price_per_hour:g}: give 0 or more.")


def _plan(method: Method, asked: argparse.Namespace, words: Sequence[str]) -> Plan:
    from preftune.plan.devices import device_named
    from preftune.plan.forecast import Plan
    from preftune.training.setup.forecast import check_fsdp, shape_of_name, unit_of, workload_of

    data, model, config, values = _request(method, asked, words)
    device = device_named("cpu" if asked.device == "this" and values.use_cpu else asked.device)
    if device.kind == "cpu" and asked.gpus * asked.nodes > 1:
        raise RequestError(f"--device {asked.device} is one machine without cards: leave --gpus and --nodes out.")
    lora = model.lora_config()
    from preftune.cli.train.train_command import loading_options

    options = loading_options(model, config, is_trainable=lora is None)
    config.model_init_kwargs = options
    trainer = method.trainer_class()
    name = str(model.model_name_or_path)
    shape, arrives = shape_of_name(
        name, options, lora, trust=config.trust_remote_code, scores=trainer.method == "reward"
    )
    settings = _settings(trainer, asked, values, config, shape, device, model, arrives=arrives)
    check_fsdp(settings, config)
    tokenizer, groups = _groups(method, trainer, asked, data, model, config, tuple(words))
    load = workload_of(groups, config, unit=unit_of(trainer), device=device, ranks=settings.ranks)
    plan = Plan(shape, settings, load, price_per_hour=asked.price_per_hour)
    if asked.device != "this":
        return plan
    if not plan.memory.fits:
        echo("preftune: it does not fit here, so nothing is measured and the rate is assumed.")
        return plan
    return replace(plan, measured=_measured(trainer, name, config, values, groups, tokenizer, plan, lora))


def _request(
    method: Method, asked: argparse.Namespace, words: Sequence[str]
) -> tuple[Any, Any, Any, argparse.Namespace]:
    """Data, model and configuration of the training's own flags, checked; and the values of flags that depend on the
    device, which need not be this one.
    """
    from preftune.cli.flags.field_names import check_names, names_of, spoken_as_flags
    from preftune.cli.flags.recipe import find_recipe
    from preftune.cli.train.train_command import off_device, parser_of

    recipe = find_recipe(words)
    names = names_of(method.data_arguments, method.model_arguments, method.config)
    if names is not None:
        check_names(names, words, recipe, prog=method.prog)
    try:
        parser = parser_of(method)
        values = parser.parse(words, recipe)
        wanted = argparse.Namespace(**vars(values))
        values.output_dir = values.output_dir or method.output_dir
        off_device(values)
        data, model = (parser.build(kind, values) for kind in (method.data_arguments, method.model_arguments))
        if not model.model_name_or_path:
            raise RequestError(
                "There is no model to plan for. Name it with --model NAME_OR_PATH. See preftune plan --help."
            )
        if not data.dataset_name and asked.prompt_tokens is None:
            raise RequestError(
                "There are no lengths. Name the data with --data FILE_OR_HUB_ID, or give --prompt_tokens and "
                "--completion_tokens. See preftune plan --help."
            )
        return data, model, parser.build(_load(method.config), values), wanted
    except RequestError as error:
        raise spoken_as_flags(error, names or ()) from error


def _settings(
    trainer: Any,
    asked: argparse.Namespace,
    values: argparse.Namespace,
    config: Any,
    shape: ModelShape,
    device: Any,
    model: Any,
    *,
    arrives: bool,
) -> Settings:
    """How the training computes on the device."""
    from preftune.plan.settings import Settings, precision_on
    from preftune.training.setup.forecast import optimiser_of, reference_of, sharding_words, stored_dtype

    precision = precision_on(
        device, bf16=values.bf16, fp16=bool(values.fp16), model_dtype=stored_dtype(shape, model.dtype)
    )
    asked_by_fsdp = config.sharding is not None and config.sharding.activation_checkpointing
    old_name, new_name = values.gradient_checkpointing, getattr(values, "activation_checkpointing", None)
    checkpointing = (asked_by_fsdp or old_name) if new_name is None else new_name
    return Settings(
        command=trainer.method,
        device=device,
        precision=precision,
        checkpointing=device.kind == "cuda" if checkpointing is None else bool(checkpointing),
        reference=reference_of(config, full=shape.full, arrives_trained=arrives),
        **optimiser_of(config),
        bits=4 if model.load_in_4bit else 8 if model.load_in_8bit else shape.bits,
        nested=model.use_bnb_nested_quant or shape.nested,
        dropout=model.adapter and model.lora_dropout > 0 and not config.disable_dropout,
        gpus=asked.gpus,
        nodes=asked.nodes,
        fsdp=sharding_words(config.sharding),
    )


def _groups(
    method: Method, trainer: Any, asked: argparse.Namespace, data: Any, model: Any, config: Any, words: tuple[str, ...]
) -> tuple[Any, GroupDataset]:
    """The tokenizer (None without data), and the rows as they will be trained."""
    from preftune.data import GroupDataset
    from preftune.types import Label, Preference, TokenizedGroup

    if asked.prompt_tokens is None:
        from preftune.cli.train.train_command import Request, tokenizer_of

        request = Request(data, model, config, words)
        train, _ = method.open_data(request)
        tokenizer = tokenizer_of(request)
        return tokenizer, trainer.groups_of(train, tokenizer, config)[0]
    prompt, answer = asked.prompt_tokens, asked.completion_tokens
    paired = trainer.method in ("dpo", "reward")
    completions = ([7] * answer,) if not paired else ([7] * answer, [8] * answer)
    one = TokenizedGroup(
        [9] * prompt,
        completions,
        (Preference(0, 1),) if paired else (),
        labels=(Label(True, 1.0),) if trainer.method == "kto" else (),
    )
    return None, GroupDataset.from_groups(replace(one, id=str(row)) for row in range(asked.rows or _ROWS))


def _measured(
    trainer: Any,
    name: str,
    config: Any,
    values: argparse.Namespace,
    groups: GroupDataset,
    tokenizer: Any,
    plan: Plan,
    lora: Any,
) -> Any:
    """The rate of two steps on this machine, with the weights of the model, or random ones if the folder has none."""
    from preftune.training.setup.measured_rate import measured_rate, stand_in_tokenizer, weights_or_random

    echo("preftune: measuring two steps on this machine ...")
    here = replace(
        config,
        bf16=values.bf16,
        fp16=bool(values.fp16),
        use_cpu=bool(values.use_cpu),
        tf32=values.tf32,
        gradient_checkpointing=plan.settings.checkpointing,
    )
    model = weights_or_random(name, config.model_init_kwargs or {}, plan.settings)
    if not isinstance(model, str):
        here.model_init_kwargs = None
    return measured_rate(
        trainer,
        model,
        here,
        groups,
        tokenizer or stand_in_tokenizer(),
        shape=plan.shape,
        load=plan.workload,
        peft_config=lora,
        referenced=plan.settings.reference in ("adapter off", "copy"),
    )


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
