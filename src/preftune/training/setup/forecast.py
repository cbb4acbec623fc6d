"""The plan of a trainer: its settings and its workload, for `preftune.plan`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from preftune.data import GroupDataset
from preftune.errors import ConfigError, PlanOnlyError, PreftuneError
from preftune.log import detail, say
from preftune.models.four_bit import is_quantized
from preftune.models.load import meta_copy, meta_model
from preftune.models.locate import Location, locate
from preftune.models.precision import decide_precision
from preftune.plan.devices import Device, this_card, this_cpu
from preftune.plan.forecast import Plan
from preftune.plan.settings import ReferenceKind, Settings
from preftune.plan.shape import ModelShape, shape_of
from preftune.plan.workload import MicroBatch, RowLengths, Workload
from preftune.training.config.sharding import Sharding, refusal, shards
from preftune.training.step.micro_batches import plan_micro_batches, shared_tokens, split_group, token_budget
from preftune.types import TokenizedGroup

_SAMPLE, _STEPS = 4096, 200
"""Most rows whose lengths are read, and most steps that are drawn to find the largest micro-batch."""


def workload_of(groups: GroupDataset, args: Any, *, unit: str, device: Device, ranks: int) -> Workload:
    """Rows, steps and the largest micro-batch of a training. The rows of a step are drawn at random.

    Args:
        args: the configuration: batch sizes, epochs, steps, token budget.
        unit: what a row is called, such as "pair".
        device: the device, whose kind decides the default of the token budget.
        ranks: number of processes.
    """
    draw = np.random.default_rng(args.seed)
    count = len(groups)
    known = groups.known
    order = np.arange(len(known)) if len(known) <= _SAMPLE else draw.choice(len(known), _SAMPLE, replace=False)
    members = [known[int(row)] for row in order]
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    per_step = batch * accumulation * ranks
    steps = max(1, math.ceil(count / per_step) if not args.dataloader_drop_last else count // per_step)
    epochs = float(args.num_train_epochs)
    if args.max_steps > 0:
        total, epochs = args.max_steps, args.max_steps * per_step / max(1, count)
    else:
        total = math.ceil(steps * epochs)
    budget = token_budget(args, torch.device(device.kind))
    largest, most = _largest(members, draw, batch=batch, parts=accumulation, budget=budget, steps=min(_STEPS, total))
    rows = [RowLengths.of(group) for group in members]
    sums = MicroBatch.of(rows)
    longest = split_group(known[int(np.argmax(known.lengths))], 1, shared_tokens)
    scale = count / max(1, len(rows))
    return Workload(
        unit=unit,
        rows=count,
        rows_per_step=per_step,
        steps=total,
        epochs=epochs,
        sampled=sums,
        sample=len(rows),
        tokens=round(sums.tokens * scale),
        separate_tokens=round(sum(row.separate for row in rows) * scale),
        largest=largest,
        micro_batches=most,
        smallest_possible=MicroBatch.of([RowLengths.of(max(longest, key=shared_tokens))]),
        budget=budget,
    )


def _largest(
    members: Sequence[TokenizedGroup], draw: Any, *, batch: int, parts: int, budget: int | None, steps: int
) -> tuple[MicroBatch, int]:
    """The largest micro-batch of some drawn steps of one rank, and the most micro-batches in a step."""
    best, most = MicroBatch.of([]), 1
    rows = np.concatenate(
        [draw.permutation(len(members)) for _ in range(max(1, -(-steps * batch * parts // len(members))))]
    )
    for start in range(0, min(len(rows), steps * batch * parts), batch * parts):
        step = [members[int(row)] for row in rows[start : start + batch * parts]]
        batches = [step[at : at + batch] for at in range(0, len(step), batch)]
        if budget is not None:
            split = [part for group in step for part in split_group(group, budget, shared_tokens)]
            planned = plan_micro_batches([group.tokens for group in split], budget)
            batches = [[split[index] for index in indices] for indices in planned]
        most = max(most, len(batches))
        for groups in batches:
            if sum(group.tokens for group in groups) > best.tokens:
                best = MicroBatch.of([RowLengths.of(group) for group in groups])
    return best, most


def reference_of(args: Any, *, full: bool, arrives_trained: bool) -> ReferenceKind:
    """How a training gets its reference scores.

    Args:
        full: full fine-tuning, as opposed to an adapter.
        arrives_trained: whether the model is given with an adapter.
    """
    if not hasattr(args, "sync_ref_model"):
        return "none"
    objective = args.objective()
    if not objective.needs_reference:
        return "none"
    if args.sync_ref_model or arrives_trained:
        return "copy"
    if not full:
        return "adapter off"
    return "copy" if getattr(args, "loss_type", None) == "kto" else "pass"


_measures = ContextVar("_measures", default=False)


@contextmanager
def without_plan() -> Iterator[None]:
    """Within this context, trainers make no plan."""
    token = _measures.set(True)
    try:
        yield
    finally:
        _measures.reset(token)


def announce(trainer: Any, model: Any, args: Any, groups: GroupDataset, **configs: Any) -> Plan | None:
    """Log the plan of a trainer in one line, before its model is loaded. A failure of the plan does not stop the
    training, except with `plan_only`.

    Returns: the plan; None if it failed, or in a run that only measures the rate.
    Raises: PlanOnlyError with the plan, if `plan_only` is set.
    """
    if _measures.get():
        return None
    try:
        plan = plan_of_trainer(trainer, model, args, groups, **configs)
        if args.process_index == 0:  # the line takes a measurement on a CPU
            say(plan.line())
    except Exception as error:
        if args.plan_only:
            raise
        detail(f"there is no plan of this run: {error}")
        return None
    if args.plan_only:
        stop = PlanOnlyError("plan_only=True: this was the plan, and nothing was loaded. Leave it out to train.")
        stop.plan = plan
        raise stop
    return plan


def plan_of_trainer(
    trainer: Any, model: Any, args: Any, groups: GroupDataset, *, peft_config: Any, quantization_config: Any
) -> Plan:
    """The plan of a trainer on this machine.

    Args:
        trainer: the trainer, for its method and its unit.
        model: the trainer's argument: a name, or a model.
        peft_config, quantization_config: the trainer's arguments.
    Raises: PreftuneError for a model whose sizes are not known.
    """
    cpu = args.device.type != "cuda"
    device = this_cpu() if cpu else this_card(args.device.index)
    options = dict(args.model_init_kwargs or {}) if isinstance(model, str) else {}
    shape, arrives = _shape(
        model, options, peft_config, trust=args.trust_remote_code, scores=trainer.method == "reward"
    )
    precision = decide_precision(
        bf16=None if args.automatic_precision else args.bf16,
        fp16=None if args.automatic_precision else args.fp16,
        model_dtype=stored_dtype(shape, options.get("dtype")),
        device=args.device,
    )
    settings = Settings(
        command=trainer.method,
        device=device,
        precision=precision,
        checkpointing=bool(args.activation_checkpointing),
        reference=_live(reference_of(args, full=shape.full, arrives_trained=arrives), groups),
        **optimiser_of(args),
        bits=_bits(options, quantization_config) or shape.bits or _bits_of_module(model),
        nested=_nested(options, quantization_config) or shape.nested,
        dropout=not args.disable_dropout and bool(getattr(peft_config, "lora_dropout", 0)),
        gpus=args.world_size,
        fsdp=sharding_words(args.sharding),
    )
    check_fsdp(settings, args)
    load = workload_of(groups, args, unit=unit_of(trainer), device=device, ranks=args.world_size)
    return Plan(shape, settings, load)


def _live(reference: ReferenceKind, groups: GroupDataset) -> ReferenceKind:
    """A reference that must be asked at any time, as the rows of a stream need it."""
    return "copy" if reference == "pass" and groups.known is not groups else reference


def check_fsdp(settings: Settings, args: Any) -> None:
    """Raises: ConfigError for a sharded training that would be refused when it starts."""
    reason = refusal(
        quantised=settings.bits is not None,
        fp16=settings.precision.fp16,
        compiled=bool(args.torch_compile),
        optimiser=settings.optimizer,
    )
    if settings.fsdp and reason is not None:
        raise ConfigError(f"fsdp={args.fsdp!r} cannot be combined with {reason}.")


def optimiser_of(args: Any) -> dict[str, Any]:
    """The optimiser of a configuration, and whether it can be sharded, as fields of `Settings`."""
    name = str(getattr(args.optim, "value", args.optim))
    return {"optimizer": name, "divisible": shards(name) and not args.torch_compile}


def sharding_words(sharding: Sharding | None) -> frozenset[str]:
    """The words of `--fsdp` for a way of sharding; empty for None."""
    if sharding is None:
        return frozenset()
    word = {
        (False, True): "full_shard",
        (False, False): "shard_grad_op",
        (True, True): "hybrid_shard",
        (True, False): "hybrid_shard_zero2",
    }[sharding.hybrid, sharding.reshard_after_forward]
    return frozenset({word, "offload"} if sharding.cpu_offload else {word})


def unit_of(trainer: Any) -> str:
    """The name of a row of a trainer, in the singular."""
    return str(trainer.unit).removesuffix("s")


def stored_dtype(shape: ModelShape, asked: Any) -> torch.dtype:
    """The number format in which the weights are loaded."""
    name = shape.dtype if asked in (None, "auto") else str(asked).removeprefix("torch.")
    found = getattr(torch, name, torch.float32)
    return found if isinstance(found, torch.dtype) else torch.float32


def shape_of_name(
    name: str, options: dict[str, Any], peft_config: Any, *, trust: bool, scores: bool
) -> tuple[ModelShape, bool]:
    """Sizes of a model by its name, and whether it comes with an adapter. Only its config is read."""
    from preftune.models.attach import locate_base

    place, arrives = _config_place(name, options), False
    if place.kind in ("adapter", "hub-adapter"):
        from peft import PeftConfig

        peft_config, arrives = PeftConfig.from_pretrained(place.name), True
        peft_config.inference_mode = False
        place = locate_base(place, options.get("base_model"), revision=options.get("revision"))
    built = meta_model(place, revision=options.get("revision"), trust_remote_code=trust, peft_config=peft_config)
    return shape_of(built, scores=scores), arrives


def _config_place(name: str, options: dict[str, Any]) -> Location:
    """The location of the model's config, which may be a folder without weights."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        return Location("folder", str(folder), local_files_only=True)
    return locate(name, revision=options.get("revision"))


def _shape(
    model: Any, options: dict[str, Any], peft_config: Any, *, trust: bool, scores: bool
) -> tuple[ModelShape, bool]:
    if isinstance(model, str):
        return shape_of_name(model, options, peft_config, trust=trust, scores=scores)
    if not isinstance(model, nn.Module):
        raise PreftuneError("the model is not known yet.")
    arrives = hasattr(model, "peft_config")
    if peft_config is not None and not arrives:
        return shape_of(meta_copy(model, peft_config), scores=scores), False
    return shape_of(model, scores=scores), arrives


def _bits(options: dict[str, Any], *configs: Any) -> int | None:
    """Bits of quantisation in the options of loading or a config of bitsandbytes; None without quantisation."""
    asked = [options, *map(_as_mapping, (options.get("quantization_config"), *configs))]
    return next((bits for bits in (4, 8) if any(one.get(f"load_in_{bits}bit") for one in asked)), None)


def _bits_of_module(model: Any) -> int | None:
    if not isinstance(model, nn.Module) or not is_quantized(model):
        return None
    return 8 if getattr(model, "is_loaded_in_8bit", False) else 4


def _nested(options: dict[str, Any], *configs: Any) -> bool:
    """Whether the scales of 4-bit weights are to be quantised too."""
    configs = tuple(map(_as_mapping, (options.get("quantization_config"), *configs)))
    return bool(options.get("use_bnb_nested_quant")) or any(c.get("bnb_4bit_use_double_quant") for c in configs)


def _as_mapping(config: Any) -> dict[str, Any]:
    """A config of bitsandbytes as a mapping; empty for None."""
    return config if isinstance(config, dict) else config.to_dict() if hasattr(config, "to_dict") else {}
