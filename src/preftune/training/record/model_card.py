"""The model card: README.md beside the weights, from what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from preftune.version import __version__


def write(trainer: Any) -> None:
    """Write `README.md` into the output directory of a trainer."""
    Path(trainer.args.output_dir, "README.md").write_text(text(trainer), encoding="utf-8")


def text(trainer: Any) -> str:
    args, base = trainer.args, str(getattr(trainer.model.config, "_name_or_path", "") or "")
    header: dict[str, Any] = {
        "library_name": "transformers" if trainer.full else "peft",
        "tags": ["preftune", "dpo", "preference-optimization"],
        "pipeline_tag": "text-generation",
    }
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    if is_hub_id:
        header["base_model"] = base
    name = (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1]
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    kind = "all weights" if trainer.full else "an adapter"
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {name}",
        "",
        f"{_shown(base)} aligned with direct preference optimisation (arXiv:2305.18290) by preftune {__version__}; "
        f"trained: {kind}.",
        "",
        "| | |",
        "|---|---|",
        f"| loss | {args.loss}, beta {args.beta:g}"
        + (f", label smoothing {args.label_smoothing:g}" if args.label_smoothing else "")
        + " |",
        f"| pairs | {trainer.train_dataset.pairs:,} |",
        f"| learning rate | {args.learning_rate:g}, {schedule} |",
        f"| pairs per step | {_pairs_per_step(trainer)} |",
        f"| steps | {trainer.state.global_step:,} |",
        f"| reference | {trainer.reference.source.description} |",
        f"| {trainer.precision.describe().replace(': ', ' | ', 1)} |",
    ]
    best = trainer.state.best_global_step if args.load_best_model_at_end else None
    return "\n".join([*lines, *_results(trainer.state.log_history, best), *_guard(getattr(trainer, "guard", None)), ""])


def _results(history: list[dict[str, float]], best: int | None) -> list[str]:
    """Of the weights that are saved: the best checkpoint's where that was loaded, else the last."""
    evaluated = [entry for entry in history if "eval_rewards/accuracies" in entry]
    if not evaluated:
        return ["", "Not evaluated on held-out pairs."]
    last = next((entry for entry in evaluated if entry["step"] == best), evaluated[-1])
    return [
        "",
        f"On held-out pairs after step {int(last['step']):,}: reward margin {last['eval_rewards/margins']:.3f}, "
        f"accuracy {last['eval_rewards/accuracies']:.1%}, loss {last['eval_loss']:.4f}. These say that the model tells "
        "the sides apart, not that its answers are better: compare its answers with the base model's.",
    ]


def _guard(guard: Any) -> list[str]:
    """What was raised while training; nothing where nobody watched."""
    if guard is None:
        return []
    lines = ["", "## The guard", ""]
    if not guard.alarms:
        return [*lines, "It watched the training and raised no alarm."]
    lines += [f"- step {alarm.step}, {alarm.name} ({alarm.level}): {alarm.seen}" for alarm in guard.alarms]
    if guard.rolled_back_to is not None:
        at = f"those of step {guard.rolled_back_to}" if guard.rolled_back_to else "those from before the first step"
        lines += ["", f"Training ended there, and the weights were put back: these are {at}."]
    return lines


def _pairs_per_step(trainer: Any) -> str:
    args, data = trainer.args, trainer.train_dataset
    groups = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if data.pairs == len(data):
        return str(groups)
    return f"about {groups * data.pairs / len(data):.0f}, in {groups} groups of pairs with one prompt"


def _shown(base: str) -> str:
    return f"`{base}`" if base else "A model given in memory,"
