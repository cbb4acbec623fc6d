"""The common part of the commands that train on freshly sampled answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.arguments import column_names, option
from preftune.cli.train.train_command import Request

if TYPE_CHECKING:
    from preftune.training.trainers.recorded import RecordedTrainer

PROMPT_WORDS = {
    "data": (
        "rows with a prompt or messages, a .txt file with one prompt per line, or pairs, of which the prompts are used"
    ),
    "guard": "reaction to a run that goes wrong: off, warn, stop or rollback (warn)",
}
"""Flags whose text on the help page differs from that of other training commands."""


@dataclass
class PromptArguments:
    """The source of the prompts."""

    dataset_name: str | None = option(
        None,
        "Prompts: rows with a prompt or messages, one prompt per line (.txt), or pairs, of which the prompts are "
        "used; a path, a folder, a hub id, or -.",
        aliases=["--data"],
    )
    dataset_train_split: str = option("train", "Split to take the prompts from; slices work: train[:1000].")
    columns: list[str] = option([], "Renames: prompt=question (canonical name = your column).")
    format: str | None = option(None, "Format of the data, if it cannot be recognised.")
    as_chat: bool = option(False, "Plain prompts become messages of a conversation, for chat models.")

    def __post_init__(self) -> None:
        column_names(self.columns)

    @property
    def dataset_names(self) -> str | None:
        """The names of the datasets, for the model card."""
        return self.dataset_name


@dataclass
class GroupPromptArguments(PromptArguments):
    """The source of the prompts, and the held-out prompts."""

    eval_dataset_name: str | None = option(
        None, "Held-out prompts; their answers are rated during training (--eval_strategy) and at the end."
    )
    dataset_test_split: str = option("test", "Split of eval_dataset_name, if it is a hub id or a folder with splits.")


def open_prompts_of(request: Request) -> tuple[Any, Any]:
    """Opens the prompts, and the held-out prompts if they are named. The reward or judge is checked before, so that a
    missing one is not found an hour later.
    """
    from preftune.cli.train.datasets import has_splits
    from preftune.models.locate import locate
    from preftune.training.online.prompts import open_prompts
    from preftune.training.online.scoring import as_spec, open_score

    data = request.data
    for spec in map(as_spec, request.config.reward_model):
        if spec.startswith("reward:"):
            locate(spec.partition(":")[2])
        elif not spec.startswith(("openai:", "local:")):
            open_score([spec], ExitStack())
    options = {"columns": column_names(data.columns), "format": data.format, "as_chat": data.as_chat}
    prompts = open_prompts(data.dataset_name, split=data.dataset_train_split, **options)
    held_out = getattr(data, "eval_dataset_name", None)
    if held_out is None:
        return prompts, None
    split = data.dataset_test_split if has_splits(held_out) else "train"  # the rows of a file
    return prompts, open_prompts(held_out, split=split, **options)


def report(trainer: RecordedTrainer, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    """Prints the summary at the end."""
    lines = []
    for name, what, form in (
        ("objective/scores", "Score of the model's answers", "{:.3f}"),
        ("objective/kl", "KL to the reference, nats per answer", "{:.2f}"),
    ):
        seen = [entry[name] for entry in trainer.state.log_history if name in entry]
        if seen:
            lines.append(f"{what}: {form.format(seen[0])} at the start, {form.format(seen[-1])} at the end.")
    if metrics is not None and "eval_reward" in metrics:
        lines.append(f"Reward of answers to held-out prompts: {metrics['eval_reward']:.3f}.")
    lines.append(
        "The model was trained on this score. To measure whether the answers are better, use another judge: preftune "
        "eval."
    )
    return lines + request.next_steps()


FRESH: dict[str, Any] = {
    "aim": "align",
    "wanted": "prompts to train on",
    "open_data": open_prompts_of,
    "report": report,
    "data_arguments": PromptArguments,
    "needs": ("reward_model",),
    "needs_what": "name the reward with --reward_model RM (or rule:MODULE:FUNCTION, openai:MODEL@URL)",
    "holds_out": False,
    "guarded": True,
}
"""The fields of `Method` that these commands share."""
