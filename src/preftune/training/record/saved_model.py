"""The dtype and the generation config of a saved model.

Weights train in float32, and checkpoints keep that, so that a run is resumed bit for bit. The final model, which other
programs load, is saved in the dtype in which it was received, or in `save_dtype`. To bfloat16 or float16 it is rounded
stochastically (`models.precision.rounded`): rounded to nearest, most of a small update would be lost. The generation
config ends an answer at the mark of the chat template.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from preftune.data.chat.end_marks import closing_token
from preftune.errors import ConfigError
from preftune.log import detail, say, warn
from preftune.logps import Support
from preftune.models.config_values import check_values
from preftune.models.damage import writing
from preftune.models.load import parse_dtype
from preftune.models.precision import Precision, is_quantized_weight, rounded
from preftune.models.quiet import quiet_transformers
from preftune.storage.jsonl import read_object, write_json
from preftune.training.config.base import PackedConfig
from preftune.training.protocol import TokenLimitView
from preftune.training.record.prompt_encoder import save_prompt_encoder
from preftune.training.record.scaling import saved_scaling
from preftune.training.record.sharded import ShardedTrainer
from preftune.types import TokenizedGroup


class SavingTrainer(ShardedTrainer):
    """transformers' trainer, which saves the final model in the dtype in which it was received. The annotations narrow
    the types of transformers' attributes to those that they have here.
    """

    args: PackedConfig
    model: PreTrainedModel
    """The model, or a `PeftModel` around it, which forwards the attributes of the model."""
    train_dataset: Any
    method: ClassVar[str]
    """Name of the method in run.json and in the default of `output_dir`."""
    full: bool
    precision: Precision
    engine: Any
    support: Support
    cost: Callable[[TokenizedGroup], int]
    step_limit: TokenLimitView
    scoring_limit: TokenLimitView
    step_has_weight: bool
    guard: Any = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call:  # for a checkpoint
            super().save_model(output_dir, _internal_call)
            return
        place = str(output_dir or self.args.output_dir)
        with writing(place, _after_a_full_disk(Path(self.args.output_dir))):
            self._save_final(output_dir, _internal_call)

    def _save_final(self, output_dir: str | None, _internal_call: bool) -> None:
        if self.args.sharding is not None:  # the gathered copies are cast, not the weights
            with casts_what_is_saved(self.model, saved_dtypes(self.model, self.args.save_dtype)):
                super().save_model(output_dir, _internal_call)
            return
        with in_saved_dtype(self.model, self.args.save_dtype):
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        cast = getattr(self.model, "_preftune_saved", None)
        if cast and state_dict is not None:  # gathered before the weights were cast
            state_dict = {name: _as(tensor, cast.get(name), name) for name, tensor in state_dict.items()}
            dtype = next(tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point())
        with saved_scaling(self.model), warnings.catch_warnings(), quiet_transformers():
            # the embedding is saved with the adapter if it must be, and `load_model` reads it
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
            super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        if cast and state_dict is not None:
            write_dtype(folder / "config.json", dtype)
        config = getattr(self.model, "generation_config", None)
        if self.args.should_save:
            save_prompt_encoder(self.model, folder)
        if self.args.should_save and config is not None and hasattr(self.model, "peft_config"):
            config.save_pretrained(folder)  # PEFT does not save it
            keep_head(self.model, folder / "adapter_model.safetensors", state_dict)


def _after_a_full_disk(run: Path) -> str:
    if any(run.glob("checkpoint-*")):
        return "Then complete the run from its last checkpoint: --resume (resume_from_checkpoint=True)."
    return "No checkpoint was written, so only a program that still holds the trainer can save: trainer.save_model()."


def remember_dtypes(model: nn.Module) -> None:
    """Store the dtype in which each weight was received as its attribute `received_dtype`, unless it has one."""
    for parameter in model.parameters():
        if not hasattr(parameter, "received_dtype") and not is_quantized_weight(parameter):
            parameter.received_dtype = parameter.dtype  # type: ignore[attr-defined]


def saved_dtypes(model: nn.Module, save_dtype: str | None) -> dict[str, torch.dtype]:
    """The dtypes of the weights that are saved in another dtype than they train in, by name.

    Args:
        save_dtype: dtype of all saved weights; None for the dtype in which each was received.
    """
    asked = None if save_dtype is None else parse_dtype(save_dtype)
    adapter = hasattr(model, "peft_config")
    found = {}
    for name, parameter in model.named_parameters():
        if is_quantized_weight(parameter) or (adapter and not parameter.requires_grad):
            continue  # the base of an adapter is not saved
        dtype = asked if isinstance(asked, torch.dtype) else getattr(parameter, "received_dtype", parameter.dtype)
        if dtype != parameter.dtype:
            found[name] = dtype
    return found


@contextmanager
def in_saved_dtype(model: Any, save_dtype: str | None) -> Iterator[None]:
    """Within this context, the weights have the dtype in which they are saved. Afterwards they are restored exactly."""
    dtypes = saved_dtypes(model, save_dtype)
    kept: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    try:
        for name, dtype in dtypes.items():
            kept[name] = parameters[name].data
            parameters[name].data = rounded(kept[name], dtype, seed=name)
        with casts_what_is_saved(model, dtypes):
            yield
    finally:
        for name, data in kept.items():
            parameters[name].data = data


@contextmanager
def casts_what_is_saved(model: Any, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Within this context, weights that were gathered for saving are cast to these dtypes."""
    model._preftune_saved = dtypes
    try:
        yield
    finally:
        model._preftune_saved = None


def write_dtype(file: Path, dtype: torch.dtype) -> None:
    """Set the dtype in a saved config to that of the saved weights, because transformers writes that of the model."""
    if file.is_file():
        write_json(file, {**read_object(file), "dtype": str(dtype).removeprefix("torch.")})


def say_saved_dtype(model: nn.Module, save_dtype: str | None) -> None:
    """Log one line if the weights are saved in another dtype than they train in."""
    names = sorted({str(dtype).removeprefix("torch.") for dtype in saved_dtypes(model, save_dtype).values()})
    if names:
        how = "as --save_dtype asks" if save_dtype else "as the model was received (--save_dtype changes it)"
        detail(f"weights trained in float32 are saved in {' and '.join(names)}, {how}; checkpoints keep float32.")


def say_where_adapters_are_saved(model: Any) -> None:
    """A warning where the adapter at the top of output_dir, which is read afterwards, is not the trained model."""
    active = getattr(getattr(model, "base_model", None), "active_adapters", None)
    if "default" not in (getattr(model, "peft_config", None) or {}) or not isinstance(active, list):
        return
    if others := [name for name in active if name != "default"]:
        warn(
            f"the adapters that are active: {', '.join(active)}. PEFT saves 'default' in output_dir and each other one "
            f"in a folder of its name ({', '.join(others)}), and reads output_dir as 'default' alone. Name that folder "
            "afterwards, or combine several adapters before training (model.add_weighted_adapter)."
        )


def end_answers(model: Any, tokenizer: Any) -> None:
    """Add the chat template's end mark of an answer to the `eos_token_id` of the generation config, if it is missing:
    otherwise a model that has learned to write the mark would continue after it.
    """
    config = getattr(model, "generation_config", None)
    if config is None or not getattr(tokenizer, "chat_template", None):
        return
    check_values("the model's generation_config", config.to_dict())
    token = closing_token(tokenizer)
    ends = config.eos_token_id
    ends = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
    if token is None or token == tokenizer.unk_token_id or token in ends:
        return
    config.eos_token_id = [*ends, token] if ends else token
    mark = tokenizer.convert_ids_to_tokens(token)
    detail(f"generation also ends at {mark}, the chat template's end of an answer (generation_config.eos_token_id).")


def keep_savable(model: Any, tokenizer: Any) -> None:
    """Correct a generation config that transformers would refuse to save, in place. It refuses sampling settings
    without do_sample, which many published models have, and only at the first checkpoint, when the training is lost.

    Raises: ConfigError if the config has another error.
    """
    config = getattr(model, "generation_config", None)
    if config is None or not _why_refused(config):
        return
    if config.pad_token_id is not None and config.pad_token_id < 0:
        config.pad_token_id = tokenizer.pad_token_id
    if config.num_beams in (None, 1):  # without beams they have no effect
        config.early_stopping, config.length_penalty = None, None
    if _why_refused(config) and config.do_sample is not True:
        config.do_sample = True
        say("the model's generation config has sampling settings without do_sample; it is saved with do_sample=True.")
    if why := _why_refused(config):
        raise ConfigError(
            f"transformers would refuse to save the model's generation config, and with it every checkpoint: {why} "
            "Correct generation_config.json in the model's folder (in Python: model.generation_config)."
        )


def _why_refused(config: Any) -> str:
    try:
        with quiet_transformers():
            config.validate(strict=True)
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return ""


def keep_head(model: Any, file: Path, gathered: Mapping[str, Tensor] | None = None) -> None:
    """Add the head to an adapter's file if its number of rows differs from that of the base on disk: PEFT leaves the
    head out if the embedding has its own adapter.

    Args:
        file: the saved adapter.
        gathered: whole weights by name, for a model that is divided among ranks.
    """
    head, base = model.get_output_embeddings(), model.get_base_model()
    if type(head) is not nn.Linear or base.get_input_embeddings().weight is head.weight or not file.is_file():
        return
    name = next((f"base_model.model.{key}.weight" for key, module in base.named_modules() if module is head), "")
    saved = load_file(file)
    if name in saved or not any("lora_embedding_" in key for key in saved):
        return
    try:
        received = AutoConfig.from_pretrained(base.name_or_path, local_files_only=True).get_text_config().vocab_size
    except (OSError, ValueError):  # the base exists only in memory, so there is no file to compare with
        return
    if received != head.weight.shape[0]:
        weight = (gathered or {}).get(name, head.weight).detach().cpu().contiguous()
        save_file({**saved, name: weight}, file, metadata={"format": "pt"})


def _as(tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    return tensor if dtype is None else rounded(tensor, dtype, seed=name)
