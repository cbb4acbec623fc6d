"""One PPO run: all weights of the language model, rewarded by the gold reward itself, measured on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_runs import Measure, after_every_step
from experiment import PPO, Run
from preferences import Reward

from preftune.training.ppo.config import PPOConfig
from preftune.training.ppo.trainer import PPOTrainer


class TextReward:
    """A reward of whole texts as PPOTrainer asks it: for prompts and answers."""

    name = "gold reward"

    def __init__(self, reward: Reward) -> None:
        self._reward = reward

    def __call__(self, prompt: Any, answer: str, row: Mapping[str, Any]) -> float:
        return self.score_all([(prompt, answer, row)])[0]

    def score_all(self, items: Sequence[tuple[Any, str, Mapping[str, Any]]], **_: Any) -> list[float]:
        """One reward per prompt and answer."""
        return [float(score) for score in self._reward([f"{prompt}{answer}" for prompt, answer, _ in items])]


def train_ppo(
    run: Run, settings: PPO, model: Any, tokenizer: Any, reward: Reward, prompts: Sequence[str], folder: Path, *,
    new_tokens: int, after_step: Measure,
) -> dict[str, Any]:  # fmt: skip
    """Trains `model`; returns what the trainer said at the end.

    Args:
        model: the language model, in memory; its state now is the reference.
        prompts: texts whose tokens are the prompts.
        folder: for the trainer's own run directory.
    """
    from transformers import PrinterCallback

    trainer = PPOTrainer(
        model,
        PPOConfig(
            output_dir=str(folder),
            engine="packed",
            learning_rate=settings.learning_rate,
            value_learning_rate=settings.value_learning_rate,
            per_device_train_batch_size=settings.answers_per_step,
            num_mini_batches=settings.steps_per_epoch,
            num_ppo_epochs=settings.epochs_per_round,
            total_episodes=settings.rounds * settings.answers_per_step * settings.steps_per_epoch,
            kl_coef=settings.first_penalty / run.strength,
            kl_target=run.strength,
            kl_horizon=settings.horizon,
            max_new_tokens=new_tokens,
            generation_batch_size=256,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=0.05,
            max_grad_norm=1.0,
            weight_decay=0.0,
            logging_steps=settings.steps_per_epoch * settings.epochs_per_round,
            save_strategy="no",
            seed=run.seed,
            report_to="none",
            disable_tqdm=True,
        ),
        [{"prompt": prompt} for prompt in prompts],
        reward=TextReward(reward),
        processing_class=tokenizer,
        callbacks=[after_every_step(after_step)],
    )
    trainer.remove_callback(PrinterCallback)  # its figures are in the run directory
    result = trainer.train()
    return {
        "train_loss": round(float(result.training_loss), 5),
        "steps": trainer.state.global_step,
        "last_coefficient": round(trainer.penalty.coefficient, 5),
    }
