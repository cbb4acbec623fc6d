"""`RecordedTrainer`: what training on given data and on fresh answers share.

How a model is computed is settled before transformers' trainer is made; a step that is not finite ends the run; every
log, checkpoint, run.json and model card is written from the same attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from preftune.evaluation.two_models.verdict_record import with_section_of
from preftune.logps.batch import PackedBatch
from preftune.models.locate import run_of_weights
from preftune.reference import MovingCopy
from preftune.reference.fingerprint import FINGERPRINT_VERSION
from preftune.reference.sources import Source
from preftune.storage import trained_prompts
from preftune.storage.jsonl import write_atomically
from preftune.training.config.base import PackedConfig
from preftune.training.record import checkpoint
from preftune.training.record.run_record import facts_of
from preftune.training.record.saved_model import end_answers, keep_savable
from preftune.training.record.whole_checkpoint import readable
from preftune.training.setup import model as assemble
from preftune.training.setup.reference import MoveReference
from preftune.training.step.memory import TokenLimit
from preftune.training.step.metrics import Averages, MetricWindow, peak_memory
from preftune.training.step.micro_batches import cost_of, token_budget
from preftune.training.step.optimizer_step import non_finite
from preftune.training.trainers.resumable import ResumableTrainer

_REFERENCE_FILE = "reference.safetensors"


class RecordedTrainer(ResumableTrainer):
    """The base of `PackedTrainer` and `OnlineTrainer`. A subclass calls `settle` before transformers' constructor and
    `begin_record` after it.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by what the whole step holds
    tag: ClassVar[str] = ""
    """Of the model on the hub, where the method's name is not it."""
    step_limit: TokenLimit
    scoring_limit: TokenLimit
    _window: MetricWindow | Averages
    _step: list[PackedBatch]
    """What the optimiser step at hand is made of."""

    # --- what a subclass says ---

    def settle_engine(self, model: Any, args: PackedConfig) -> tuple[Any, Any]:
        """The engine, and whether it is exact."""
        return assemble.settle_engine(model, args)

    @property
    def reference_source(self) -> Source | None:
        """The reference model; None for a method without one."""
        return None

    def data_facts(self) -> dict[str, Any]:
        """What run.json says of the data."""
        raise NotImplementedError

    def figures(self) -> dict[str, float]:
        """Means and rates since the last log."""
        raise NotImplementedError

    def card(self) -> str:
        """README.md of the output directory."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        """The counterpart of what a subclass adds to `checkpoint_facts`."""

    # --- before training ---

    def settle(self, model: Any, args: PackedConfig, tokenizer: Any) -> None:
        """Decide how the model is computed: learning rate, precision, engine, compilation, tokens at a time."""
        end_answers(model, tokenizer)
        keep_savable(model, tokenizer)
        self.full = not hasattr(model, "peft_config")
        assemble.settle_learning_rate(args, full=self.full)
        self.precision = assemble.settle_precision(model, args)
        self.engine, self.support = self.settle_engine(model, args)
        assemble.settle_compilation(model, args)
        self.cost, budget = cost_of(self.engine), token_budget(args, args.device)
        self.step_limit, self.scoring_limit = TokenLimit(budget), TokenLimit(budget)
        self._step, self.step_has_weight = [], True

    def begin_record(self) -> None:
        """The model is where it will be trained, and the reference is known."""
        self.attach_record(facts_of(self))
        if getattr(self.args, "sync_ref_model", False):
            self.add_callback(MoveReference(self, lambda: self.reference_source))
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(["preftune", self.tag or self.method])

    def record_facts(self) -> dict[str, Any]:
        """What run.json and checkpoints say of the reference."""
        source = self.reference_source
        if source is None:
            return {}
        facts = {"source": source.description, "fingerprint": source.fingerprint}
        return {"reference": {**facts, "fingerprint_version": FINGERPRINT_VERSION}}

    # --- training ---

    def keep_prompts(self, keys: Iterable[int] | None, *, resumed: bool) -> None:
        """Writes which prompts are trained on, those of the model's earlier trainings among them.

        Args:
            keys: `prompt_key` of each; None where the texts are not known (groups of token ids), and then nothing is
                written.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        if keys is None:
            (folder / trained_prompts.FILE).unlink(missing_ok=True)
            return
        earlier = [Path(str(getattr(self.model.config, "_name_or_path", ""))), *([folder] if resumed else [])]
        if resumed and self._resumed_from is not None:
            earlier.append(Path(self._resumed_from))  # a stream's rows until then were read by that run
        trained_prompts.write_trained_prompts(folder, keys, earlier=earlier)

    def write_more(self, folder: Path) -> None:
        if isinstance(self.reference_source, MovingCopy):
            self.reference_source.save(folder / _REFERENCE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_reference(Path(resume_from_checkpoint))

    def load_reference(self, folder: Path) -> None:
        source = self.reference_source
        if isinstance(source, MovingCopy) and (folder / "trainer_state.json").is_file():
            source.load(folder / _REFERENCE_FILE)

    def lose_reference(self, step: int) -> None:
        source = self.reference_source
        if isinstance(source, MovingCopy) and step >= getattr(self.args, "ref_model_sync_steps", 1):
            source.lose()

    def check_resumable(self, state: Mapping[str, Any] | None, folder: Path) -> None:
        if self.reference_source is not None:
            checkpoint.check_same_reference(state, self.reference_source.fingerprint, folder)

    def go_on(self) -> None:
        """Before the first step of a resumed run: what the checkpoint's run knew."""
        state, self._resume_state = self._resume_state, None
        if state is None:
            return
        self.step_limit.resume(state.get("step_limit"))
        with readable(self._resumed_from):
            self._restore_sums(state)
            self.recall(state)
            self.restore(state)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of the run."""
        dtype = self.precision.autocast
        with torch.autocast(self.args.device.type, dtype, enabled=dtype is not None):
            yield

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once per optimiser step, before it: the place for the one finite check."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        watched = self._tr_loss if norm is None or self.precision.grad_scaling else self._tr_loss + norm
        if not bool(torch.isfinite(torch.as_tensor(watched))):
            raise non_finite(self, self._step)
        return norm

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator  # groups have no columns to remove

    # --- logging and saving ---

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.model.training:
            logs |= self.figures() | peak_memory(self.args.device)
        super().log(logs, start_time)

    def checkpoint_facts(self) -> dict[str, Any]:
        guard = None if self.guard is None else self.guard.state()
        return {
            "window": self._window.state(),
            "step_limit": self.step_limit.fell_to,
            "guard": guard,
            **self.record_facts(),
        }

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """README.md of the output directory: what was trained, on what, with which measured result. The section that
        `preftune eval` added is kept as long as the weights in the directory are those that it judged.
        """
        if not self.is_world_process_zero():
            return
        folder, text = Path(self.args.output_dir), self.card()
        if run_of_weights(folder) == (self._record.facts.get("id"), self.state.global_step):
            text = with_section_of(folder / "README.md", text)
        write_atomically(folder / "README.md", text)
