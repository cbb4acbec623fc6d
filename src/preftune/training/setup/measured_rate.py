"""The speed of this machine in a training, measured on two real steps of one micro-batch each."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from preftune.data import GroupDataset
from preftune.log import quiet
from preftune.models.load import parse_dtype
from preftune.models.quiet import quiet_transformers
from preftune.plan.settings import Settings
from preftune.plan.shape import ModelShape
from preftune.plan.work import Rate, useful_flops
from preftune.plan.workload import MicroBatch, RowLengths, Workload
from preftune.training.setup.forecast import without_plan
from preftune.types import TokenizedGroup

_STEPS = 2


class _Clock(TrainerCallback):
    """Measures the seconds of each step, with the optimiser's update."""

    def __init__(self, device: Any) -> None:
        self._device, self._began = device, 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(self._now() - self._began)

    def _now(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def measured_rate(
    trainer: type,
    model: Any,
    args: Any,
    groups: GroupDataset,
    tokenizer: Any,
    *,
    shape: ModelShape,
    load: Workload,
    peft_config: Any = None,
    referenced: bool = False,
) -> Rate:
    """The rate of two steps with the real trainer, which is then discarded.

    Args:
        trainer: the class of the trainer.
        model: a name, or a model that may be changed.
        args: the configuration of the training.
        groups: the training data.
        shape: the sizes of the model.
        load: the workload whose typical micro-batch is timed.
        referenced: whether a step also scores the reference.
    Returns: the useful FLOPs per second of the faster step.
    """
    rows = typical_rows(groups, load, args)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet(), without_plan():
        warnings.simplefilter("ignore")
        made = trainer(
            model=model,
            args=_two_steps(args, folder, len(rows) // _STEPS),
            train_dataset=GroupDataset.from_groups(rows),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        made.remove_callback(PrinterCallback)  # standard output belongs to the caller
        clock = _Clock(made.args.device)
        made.add_callback(clock)
        made.train()
    half = len(rows) // _STEPS
    rates = []
    for step, seconds in enumerate(clock.seconds):
        batch = MicroBatch.of([RowLengths.of(group) for group in rows[step * half : (step + 1) * half]])
        rates.append(useful_flops(shape, batch, reference=int(referenced)) / seconds)
    return Rate(max(rates), f"measured here: {len(rates)} steps of {half} rows, the faster one")


def _two_steps(args: Any, folder: str, batch: int) -> Any:
    """The configuration for two steps of one process that write no checkpoint, log or evaluation."""
    chosen: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": _STEPS,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": "sequential",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "resume_from_checkpoint": None,
        "early_stopping_patience": None,
        "load_best_model_at_end": False,
        "fsdp": None,
        "fsdp_config": None,
        "deepspeed": None,
        "plan_only": False,
    }
    if hasattr(args, "reference_cache"):
        chosen |= {"reference_cache": False, "guard": "off", "precompute_ref_log_probs": False}
    return replace(args, **chosen)


def typical_rows(groups: GroupDataset, load: Workload, args: Any) -> Sequence[TokenizedGroup]:
    """Rows of two micro-batches as large as those of the training. The rows are near the median length, so that the two
    micro-batches are alike.
    """
    budget = load.budget or load.largest.tokens
    mean = max(1, round(load.sampled.tokens / load.sample))
    count = max(1, min(args.per_device_train_batch_size * args.gradient_accumulation_steps, budget // mean))
    count = max(count, 2) if getattr(args, "loss_type", None) == "kto" else count  # its baseline needs two answers
    order = groups.lengths.argsort(kind="stable")
    middle = len(order) // 2
    start = max(0, min(middle - count, len(order) - _STEPS * count))
    chosen = [groups[int(row)] for row in order[start : start + _STEPS * count]]
    while len(chosen) < _STEPS * count:
        chosen.append(chosen[len(chosen) % max(1, len(order))])
    return chosen


def weights_or_random(name: str, options: dict[str, Any], settings: Settings) -> Any:
    """The name, unless it is a folder without weights: then a random model of its config, because neither time nor
    memory depends on the weights. A quantised model needs its weights, so its name is returned.
    """
    folder = Path(name).expanduser()
    if (
        not folder.is_dir()
        or settings.bits is not None
        or any(folder.glob("*.safetensors"))
        or any(folder.glob("*.bin"))
    ):
        return name
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=bool(options.get("trust_remote_code")))
    dtype = parse_dtype(options.get("dtype") or "auto")
    own = getattr(config, "dtype", None) or torch.float32
    with quiet_transformers():
        return AutoModelForCausalLM.from_config(config, dtype=own if dtype == "auto" else dtype)


def stand_in_tokenizer() -> Any:
    """A tokenizer for rows that are already token ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
