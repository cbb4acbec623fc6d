"""`ShardedTrainer`: transformers' trainer with a model that preftune has divided among the ranks.

accelerate neither wraps nor divides the model, and gradient norms are over all ranks. Weights, adapters and optimiser
state are saved whole, in the same files as those of other runs, and can be loaded on any number of ranks. With
`Sharding.divided_checkpoints` each rank writes its part of a checkpoint, which can be loaded in the same way.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from preftune.models.locate import WEIGHTS_OF_RANKS
from preftune.models.shards import (
    distinct_weights,
    divided_state,
    flat_state,
    read_parts,
    reads_whole_tensors,
    state_from_parts,
    whole,
    whole_state,
    whole_weights,
    write_parts,
)
from preftune.training.config.base import PackedConfig
from preftune.training.config.sharding import ENABLED

_OPTIMISER = "optimizer_of_ranks"
"""Folder of a checkpoint, in which each rank wrote its part."""


class ShardedTrainer(Trainer):
    """transformers' trainer, unchanged if the model is not sharded."""

    args: PackedConfig
    model: Any
    lr_scheduler: Any

    def create_accelerator_and_postprocess(self) -> None:
        with _unseen_by_accelerate():
            super().create_accelerator_and_postprocess()
        if self.args.sharding is not None:
            self.accelerator.prepare_model = lambda model, *args, **kwargs: model

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self.args.sharding is None:
            super()._move_model_to_device(model, device)

    # --- gradients ---

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return _plain(super()._clip_grad_norm(model))  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return _plain(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[no-untyped-call]

    # --- files ---

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.sharding is None:
            super().save_model(output_dir, _internal_call)
            return
        if _internal_call and self.args.sharding.divided_checkpoints and not hasattr(self.model, "peft_config"):
            write_parts(Path(output_dir or self.args.output_dir, WEIGHTS_OF_RANKS), distinct_weights(self.model))
            if self.args.should_save:
                self._save_all_but_weights(Path(output_dir or self.args.output_dir))
            return
        state = whole_weights(self.model, keep=self.args.should_save, wanted=self._saved_names())
        if self.args.should_save:
            self._save(output_dir or self.args.output_dir, state)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_all_but_weights(self, folder: Path) -> None:
        self.model.config.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _saved_names(self) -> set[str] | None:
        """Names of the weights that are saved; None for all. With an adapter, these are the trained weights and those
        of the embedding and the head, which PEFT may save with it.
        """
        if not hasattr(self.model, "peft_config"):
            return None
        tables = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        kept = {id(parameter) for table in tables if table is not None for parameter in table.parameters()}
        named = self.model.named_parameters(remove_duplicate=False)
        return {name for name, parameter in named if parameter.requires_grad or id(parameter) in kept}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.sharding is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self._torch_optimizer().state_dict()
        if self.args.sharding.divided_checkpoints:
            tensors, state = flat_state(state)
            write_parts(Path(output_dir, _OPTIMISER), tensors)
        else:
            state = whole_state(state, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that the optimiser must be saved too
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both from the files of whole states, through main memory."""
        parts = Path(checkpoint or "", _OPTIMISER)
        if checkpoint is None or (self.args.sharding is None and not parts.is_dir()):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer = self._torch_optimizer()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        saved = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        if parts.is_dir():
            optimizer.load_state_dict(state_from_parts(parts, saved, parameters))
        else:
            optimizer.load_state_dict(divided_state(saved, parameters))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._read_parts(resume_from_checkpoint, model or self.model):
            return
        with reads_whole_tensors(model or self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._read_parts(self.state.best_model_checkpoint, self.model):
            return
        with reads_whole_tensors(self.model):
            super()._load_best_model()

    def _read_parts(self, checkpoint: str | None, model: Any) -> bool:
        """Reads the weights of a checkpoint of which each rank wrote its part; False if it is another one."""
        parts = Path(checkpoint or "", WEIGHTS_OF_RANKS)
        if checkpoint is None or not parts.is_dir():
            return False
        read_parts(parts, distinct_weights(model))
        return True

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer: Any = self.optimizer
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper holds it
        return inner


def _plain(norm: Any) -> Any:
    return whole(norm) if isinstance(norm, Tensor) else norm


@contextmanager
def _unseen_by_accelerate() -> Iterator[None]:
    """Within this context, accelerate does not see the FSDP config of `accelerate launch`: on a CPU it would ignore the
    config, and elsewhere divide the model a second time.
    """
    launched = os.environ.pop(ENABLED, None)
    try:
        yield
    finally:
        if launched is not None:
            os.environ[ENABLED] = launched
