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


def results_table(summary: Summary, metrics: Mapping[str, float]) -> Group:
    """Key-fact rate and length of both models, then win rate, margin and accuracy, then the verdicts in words."""
    table = Table(title=f"{counted(summary.win_rate.n, 'held-out prompt')}", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    if summary.key_facts is not None:
        table.add_row("contains the key fact", _rate(summary.key_facts.base), _rate(summary.key_facts.aligned))
    tokens, finished = summary.mean_tokens, summary.finished
    table.add_row("tokens per answer", f"{tokens['base']:.0f}", f"{tokens['aligned']:.0f}")
    table.add_row("ended by the model", f"{finished['base']:.0%}", f"{finished['aligned']:.0%}")
    rate = summary.win_rate
    lines = [
        Text.assemble(
            ("win rate ", "bold"),
            (f"{rate.win_rate:.1%}", "bold"),
            f" (95% interval {rate.ci_low:.1%} to {rate.ci_high:.1%}; {counted(rate.wins, 'win')}, "
            f"{counted(rate.ties, 'tie')}, {counted(rate.losses, 'loss', 'losses')})",
        ),
        Text.assemble(
            ("held-out pairs ", "bold"),
            f"margin {metrics['eval_rewards/margins']:.2f}, accuracy {metrics['eval_rewards/accuracies']:.1%}",
        ),
        Text.assemble(("verdict ", "bold"), (summary.verdict.name, "bold")),
        Text(""),
        *(Text(sentence) for sentence in summary.sentences()),
    ]
    return Group(table, *lines)


def _rate(interval: MeanInterval) -> str:
    return f"{interval.mean:.0%} ({interval.low:.0%}-{interval.high:.0%})"


def _shortened(answer: str, tokens: int, *, finished: bool) -> Text:
    """The beginning of an answer, and how long the whole is."""
    text = " ".join(printable(answer).split())
    shown = text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    length = f"{tokens} tokens" if finished else f"cut off at {tokens} tokens"
    return Text.assemble(shown, "\n", (f"({length})", "dim"))
