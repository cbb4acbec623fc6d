"""What the demo shows at its end: answers before and after, side by side, and the numbers of both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from preftune.amounts import counted
from preftune.log import printable

if TYPE_CHECKING:
    from preftune.demo.run import DemoResult
    from preftune.evaluation.two_models.summary import Summary
    from preftune.evaluation.two_models.types import AnsweredRow
    from preftune.statistics.intervals import MeanInterval

_LONGEST = 260
"""Characters of an answer that the table shows; eval/generations.jsonl has the whole."""


def answers_table(answered: Sequence[AnsweredRow], prompts: Mapping[str, str]) -> Table:
    """One row per prompt: the question, the base model's answer, the aligned model's.

    Args:
        prompts: the question of each row, by its id.
    """
    table = Table(title="Before and after, on held-out prompts", show_lines=True, expand=True, title_justify="left")
    table.add_column("prompt", ratio=3, style="bold")
    table.add_column("before", ratio=5)
    table.add_column("after", ratio=4)
    for answer in answered:
        table.add_row(
            Text(printable(prompts[answer.id])),
            _shortened(answer.base, answer.base_tokens, finished=answer.base_finished),
            _shortened(answer.aligned, answer.aligned_tokens, finished=answer.aligned_finished),
        )
    return table


def results_table(result: DemoResult) -> Group:
    """Key-fact rate and length at each stage, then win rates, margin and accuracy, then the verdicts in words."""
    summary, over_sft = result.summary, result.over_sft
    table = Table(title=f"{counted(summary.win_rate.n, 'held-out prompt')}", title_justify="left")
    for heading in ("", "before", "after SFT", "after DPO"):
        table.add_column(heading, justify="right" if heading else "left")
    if summary.key_facts is not None and over_sft.key_facts is not None:
        facts = (summary.key_facts.base, over_sft.key_facts.base, summary.key_facts.aligned)
        table.add_row("contains the key fact", *map(_rate, facts))
    for name, form, before in (
        ("tokens per answer", "{:.0f}", "mean_tokens"),
        ("ended by the model", "{:.0%}", "finished"),
    ):
        overall, stages = getattr(summary, before), getattr(over_sft, before)
        table.add_row(name, *(form.format(value) for value in (overall["base"], stages["base"], overall["aligned"])))
    metrics = result.metrics
    lines = [
        _win_rate("win rate", summary, "over the model as received"),
        _win_rate("  SFT alone", result.sft, "over the model as received"),
        _win_rate("  DPO after SFT", over_sft, "over SFT alone"),
        Text.assemble(
            ("held-out pairs ", "bold"),
            f"margin {metrics['eval_rewards/margins']:.2f}, accuracy {metrics['eval_rewards/accuracies']:.1%}",
        ),
        Text.assemble(("verdict ", "bold"), (summary.verdict.name, "bold")),
        Text(""),
        *(Text(sentence) for sentence in summary.sentences()),
    ]
    return Group(table, *lines)


def _win_rate(name: str, summary: Summary, over: str) -> Text:
    rate = summary.win_rate
    return Text.assemble(
        (f"{name} ", "bold"),
        (f"{rate.win_rate:.1%} ", "bold"),
        f"{over} (95% interval {rate.ci_low:.1%} to {rate.ci_high:.1%}; {counted(rate.wins, 'win')}, "
        f"{counted(rate.ties, 'tie')}, {counted(rate.losses, 'loss', 'losses')})",
    )


def _rate(interval: MeanInterval) -> str:
    return f"{interval.mean:.0%} ({interval.low:.0%}-{interval.high:.0%})"


def _shortened(answer: str, tokens: int, *, finished: bool) -> Text:
    """The beginning of an answer, and how long the whole is."""
    text = " ".join(printable(answer).split())
    shown = text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    length = f"{tokens} tokens" if finished else f"cut off at {tokens} tokens"
    return Text.assemble(shown, "\n", (f"({length})", "dim"))
