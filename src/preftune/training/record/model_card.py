"""Model cards: README.md next to the weights, with the settings and the measured results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.amounts import counted
from preftune.training.protocol import (
    DPOTrainerView,
    GroupTrainerView,
    OnlineTrainerView,
    ReferencedTrainerView,
    TrainerView,
)
from preftune.version import __version__

Row = tuple[str, str]
_ONLINE = {
    "grpo": "aligned by group relative policy optimisation (arXiv:2402.03300) on its own answers",
    "rloo": "aligned by REINFORCE leave-one-out (arXiv:2402.14740) on its own answers",
    "ppo": "aligned by proximal policy optimisation (arXiv:1707.06347, arXiv:1909.08593) on its own answers",
    "online-dpo": "aligned by online DPO (arXiv:2402.04792) on its own answers, compared by a judge,",
    "xpo": "aligned by exploratory preference optimisation (arXiv:2405.21046) on its own answers and the reference's",
    "nash-md": "aligned by Nash-MD (arXiv:2312.00886) on its own answers, compared with those of a mixture,",
}

_OF_LABELS = {
    "kto": "Kahneman-Tversky optimisation (arXiv:2402.01306)",
    "apo_zero_unpaired": "anchored preference optimisation on labels (arXiv:2408.06266)",
    "bco": "binary classifier optimisation (arXiv:2404.04656)",
}


def dpo_card(trainer: DPOTrainerView) -> str:
    """The card of a model that was aligned with a loss of pairs."""
    args, data = trainer.args, trainer.train_dataset
    terms, has_reference = trainer.objective.terms, trainer.objective.needs_reference
    names = [loss.name if weight == 1 else f"{weight:g} {loss.name}" for loss, weight in terms]
    loss = f"{' + '.join(names)}, beta {args.beta:g}"
    rows = [
        ("loss", f"{loss}, label smoothing {args.label_smoothing:g}" if args.label_smoothing else loss),
        ("pairs", f"{data.pairs:,}"),
        *_steps(trainer, "pairs per step", _pairs_per_step(trainer)),
        ("reference", trainer.reference.source.description if has_reference else "no reference: the loss has none"),
    ]
    last = _last(trainer, "eval_rewards/accuracies")
    result = "Not evaluated on held-out pairs."
    if last is not None:
        result = (
            f"On held-out pairs after step {int(last['step']):,}: reward margin {last['eval_rewards/margins']:.3f}, "
            f"accuracy {last['eval_rewards/accuracies']:.1%}, loss {last['eval_loss']:.4f}. These figures show that "
            "the model distinguishes the sides, not that its answers are better: compare its answers with the base "
            "model's."
        )
    return _card(
        trainer, _aligned_with(trainer), rows, [result, *_guard(trainer.guard)],
        tags=[trainer.method, "preference-optimization"],
        ending=f"; trained: {_trained(trainer)}",
    )  # fmt: skip


def _aligned_with(trainer: DPOTrainerView) -> str:
    first = trainer.objective.terms[0][0]
    if first.name == "sigmoid":
        return "aligned with direct preference optimisation (arXiv:2305.18290)"
    paper = f"arXiv:{first.paper}" if first.paper[0].isdigit() else first.paper
    return f"aligned with {first.title} ({paper})"


def kto_card(trainer: ReferencedTrainerView) -> str:
    """The card of a model that was aligned with a loss of labels, such as KTO."""
    args, (good, bad) = trainer.args, trainer.train_dataset.labels
    rows = [
        ("loss", f"{args.loss}, beta {args.beta:g}"),
        ("answers", f"{good:,} good, {bad:,} bad"),
        *_steps(trainer, "answers per step", str(_per_step(args))),
        ("reference", trainer.reference.source.description),
    ]
    last = _last(trainer, "eval_rewards/accuracies")
    result = "Not evaluated on held-out answers."
    if last is not None:
        result = (
            f"On held-out answers after step {int(last['step']):,}: {last['eval_rewards/accuracies']:.1%} are on the "
            f"right side of the baseline, loss {last['eval_loss']:.4f}. These figures show that the model "
            "distinguishes good answers from bad ones, not that its own are better: compare its answers with the base "
            "model's."
        )
    what = f"aligned with {_OF_LABELS[args.loss]}"
    return _card(
        trainer, what, rows, [result, *_guard(trainer.guard)], tags=["kto", "preference-optimization"],
        ending=f"; trained: {_trained(trainer)}",
    )  # fmt: skip


def sft_card(trainer: GroupTrainerView) -> str:
    """The card of a model that was fine-tuned on demonstrations."""
    data = trainer.train_dataset
    rows = [("rows", f"{len(data):,}"), ("trained tokens per epoch", f"{data.scored_tokens:,}"), *_rows(trainer)]
    last = _last(trainer, "eval_mean_token_accuracy")
    result = "Not evaluated on held-out rows."
    if last is not None:
        result = (
            f"On held-out rows after step {int(last['step']):,}: loss {last['eval_loss']:.4f} nats per token, "
            f"{last['eval_mean_token_accuracy']:.1%} of the tokens were the model's most probable ones."
        )
    return _card(trainer, "fine-tuned on demonstrations (SFT)", rows, [result], tags=["sft"])


def reward_card(trainer: GroupTrainerView, *, centring: float | None) -> str:
    """The card of a reward model.

    Args:
        centring: weight of the centring term; None or 0 leaves it out.
    """
    rows = [("pairs", f"{trainer.train_dataset.pairs:,}")]
    if centring:
        rows.append(("centring", f"{centring:g}"))
    last = _last(trainer, "eval_accuracy")
    result = "Not evaluated on held-out pairs."
    if last is not None:
        result = (
            f"On held-out pairs after step {int(last['step']):,}: accuracy {last['eval_accuracy']:.1%}, calibration "
            f"error {last['eval_calibration_error']:.3f}, loss {last['eval_loss']:.4f}. These figures apply only to "
            "answers like those in these pairs."
        )
    what = "trained as a reward model (Bradley-Terry): one score per answer, in nats, read at its last token,"
    rows += _rows(trainer)
    return _card(trainer, what, rows, [result], tags=["reward-model"], pipeline="text-classification")


def online_card(trainer: OnlineTrainerView) -> str:
    """The card of a model that was trained on its own answers."""
    rows = [
        ("prompts", f"{len(trainer.prompts):,}"),
        ("answers sampled", f"{trainer.sampled:,}"),
        ("rated by", trainer.rated_by),
        ("reference", trainer.reference.description),
        *_rows(trainer),
    ]
    said = []
    for name, what in (("objective/scores", "score"), ("objective/kl", "KL to the reference, nats per answer,")):
        seen = [entry[name] for entry in trainer.state.log_history if name in entry]
        if seen:
            said.append(f"{what} {seen[0]:.3f} at the start and {seen[-1]:.3f} at the end")
    result = f"Its own answers during training had these means: {'; '.join(said)}. " if said else ""
    result += (
        "The model was trained on this score: use another judge to measure whether the answers are better (preftune "
        "eval)."
    )
    return _card(trainer, _ONLINE[trainer.method], rows, [result], tags=[trainer.method])


def _card(
    trainer: TrainerView, what: str, rows: Sequence[Row], results: Sequence[str], *, tags: Sequence[str],
    ending: str = "", pipeline: str = "text-generation",
) -> str:  # fmt: skip
    """The whole page.

    Args:
        what: the training, as the predicate of a sentence about the base model.
        rows: key and value of each row of the table.
        results: paragraphs below the table.
        ending: the end of the sentence, before its full stop.
        pipeline: `pipeline_tag` of the hub.
    """
    args, base = trainer.args, str(getattr(trainer.model.config, "_name_or_path", "") or "")
    header: dict[str, Any] = {
        "library_name": "transformers" if trainer.full else "peft",
        "tags": ["preftune", *tags],
        "pipeline_tag": pipeline,
    }
    if base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists():
        header["base_model"] = base
    name = (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1]
    shown = f"`{base}`" if base else "A model passed in memory,"
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    lines += [f"{shown} {what} by preftune {__version__}{ending}.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows]
    lines.append(f"| {trainer.precision.describe().replace(': ', ' | ', 1)} |")
    for paragraph in results:
        lines += ["", paragraph]
    return "\n".join([*lines, ""])


def _steps(trainer: TrainerView, unit: str, per_step: str) -> list[Row]:
    args = trainer.args
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    rate = ("learning rate", f"{args.learning_rate:g}, {schedule}")
    return [rate, (unit, per_step), ("steps", f"{trainer.state.global_step:,}")]


def _rows(trainer: TrainerView) -> list[Row]:
    return [*_steps(trainer, "rows per step", str(_per_step(trainer.args))), ("trained", _trained(trainer))]


def _per_step(args: Any) -> int:
    return int(args.rows_per_step)


def _trained(trainer: TrainerView) -> str:
    return "all weights" if trainer.full else "an adapter"


def _pairs_per_step(trainer: GroupTrainerView) -> str:
    data, groups = trainer.train_dataset, _per_step(trainer.args)
    if data.pairs == len(data):
        return str(groups)
    return f"about {groups * data.pairs / len(data):.0f}, in {counted(groups, 'group')} of pairs with the same prompt"


def _last(trainer: TrainerView, key: str) -> dict[str, float] | None:
    """The evaluation of the saved weights: with `load_best_model_at_end` that of the best step, otherwise the last.

    Args:
        key: a metric of the evaluation.
    """
    evaluated = [entry for entry in trainer.state.log_history if key in entry]
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return next((entry for entry in evaluated if entry["step"] == best), evaluated[-1] if evaluated else None)


def _guard(guard: Any) -> list[str]:
    """A heading and the guard's alarms, as paragraphs; empty without a guard."""
    if guard is None:
        return []
    if not guard.alarms:
        return ["## The guard", "It watched the training and raised no alarm."]
    alarms = "\n".join(f"- step {alarm.step}, {alarm.name} ({alarm.level}): {alarm.seen}" for alarm in guard.alarms)
    if guard.rolled_back_to is None:
        return ["## The guard", alarms]
    at = f"those of step {guard.rolled_back_to}" if guard.rolled_back_to else "those from before the first step"
    return ["## The guard", alarms, f"Training ended there, and the weights were restored to {at}."]
