"""Model cards of SFT and reward models: README.md beside the weights, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.version import __version__


def sft_card(trainer: Any) -> str:
    """Of a model that was fine-tuned on demonstrations."""
    data = trainer.train_dataset
    rows = [("rows", f"{len(data):,}"), ("trained tokens per epoch", f"{data.scored_tokens:,}")]
    last = _last(trainer, "eval_mean_token_accuracy")
    result = "Not evaluated on held-out rows."
    if last is not None:
        result = (
            f"On held-out rows after step {int(last['step']):,}: loss {last['eval_loss']:.4f} nats per token, "
            f"{last['eval_mean_token_accuracy']:.1%} of the tokens were the likeliest ones."
        )
    what = "fine-tuned on demonstrations (SFT)"
    return card(trainer, what, rows, result, pipeline="text-generation", tags=["sft"])


def reward_card(trainer: Any) -> str:
    """Of a reward model."""
    args, data = trainer.args, trainer.train_dataset
    rows = [("pairs", f"{data.pairs:,}")]
    if args.center_rewards_coefficient:
        rows.append(("centring", f"{args.center_rewards_coefficient:g}"))
    last = _last(trainer, "eval_accuracy")
    result = "Not evaluated on held-out pairs."
    if last is not None:
        result = (
            f"On held-out pairs after step {int(last['step']):,}: accuracy {last['eval_accuracy']:.1%}, calibration "
            f"error {last['eval_calibration_error']:.3f}, loss {last['eval_loss']:.4f}. A reward model is as good as "
            "these pairs are like what it will judge."
        )
    what = "trained as a reward model (Bradley-Terry): one score per answer, in nats, read at its last token,"
    return card(trainer, what, rows, result, pipeline="text-classification", tags=["reward-model"])


def card(
    trainer: Any, what: str, rows: Sequence[tuple[str, str]], result: str, *, pipeline: str, tags: list[str]
) -> str:
    args, base = trainer.args, str(getattr(trainer.model.config, "_name_or_path", "") or "")
    header: dict[str, Any] = {
        "library_name": "transformers" if trainer.full else "peft",
        "tags": ["preftune", *tags],
        "pipeline_tag": pipeline,
    }
    if base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists():
        header["base_model"] = base
    name = (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1]
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    trained = "all weights" if trainer.full else "an adapter"
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    table = [
        *rows,
        ("learning rate", f"{args.learning_rate:g}, {schedule}"),
        ("rows per step", str(per_step)),
        ("steps", f"{trainer.state.global_step:,}"),
        ("trained", trained),
    ]
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    shown = f"`{base}`" if base else "A model given in memory,"
    lines += [f"{shown} {what} by preftune {__version__}.".replace(",,", ","), "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in table]
    precision = trainer.precision.describe().replace(": ", " | ", 1)
    return "\n".join([*lines, f"| {precision} |", "", result, ""])


def _last(trainer: Any, key: str) -> dict[str, float] | None:
    """The evaluation of the weights that are saved: the best checkpoint's where that was loaded, else the last."""
    evaluated = [entry for entry in trainer.state.log_history if key in entry]
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return next((entry for entry in evaluated if entry["step"] == best), evaluated[-1] if evaluated else None)
