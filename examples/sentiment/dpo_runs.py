"""One DPO run: all weights of the language model, measured on its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiment import DPO, Run
from preferences import Preferences

from preftune import DPOConfig, DPOTrainer

Measure = Callable[[Any, int, int], None]
"""Called with the policy, the step and the number of all steps, after every step."""


def after_every_step(measure: Measure) -> Any:
    """A callback of transformers' Trainer that measures."""
    from transformers import TrainerCallback

    class AfterStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            measure(model, state.global_step, state.max_steps)

    return AfterStep()


def train_dpo(
    run: Run, settings: DPO, model: Any, tokenizer: Any, preferences: Preferences, folder: Path, *,
    after_step: Measure, **loss: Any,
) -> dict[str, Any]:  # fmt: skip
    """Trains `model`; returns what the trainer said at the end.

    Args:
        loss: fields of DPOConfig, where it is another loss than DPO's.
        model: the language model, in memory; its state now is the reference.
        folder: for the trainer's own run directory.
    """
    from transformers import PrinterCallback

    trainer = DPOTrainer(
        model,
        args=DPOConfig(
            output_dir=str(folder),
            engine="packed",
            beta=run.strength,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.prompts_per_step,
            num_train_epochs=settings.epochs,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=0.05,
            max_grad_norm=1.0,
            weight_decay=0.0,
            logging_steps=8,
            save_strategy="no",
            seed=run.seed,
            report_to="none",
            disable_tqdm=True,
            **loss,
        ),
        train_dataset=preferences.groups,
        processing_class=tokenizer,
        callbacks=[after_every_step(after_step)],
    )
    trainer.remove_callback(PrinterCallback)  # its figures are in the run directory
    result = trainer.train()
    return {"train_loss": round(float(result.training_loss), 5), "steps": trainer.state.global_step}
