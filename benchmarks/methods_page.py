"""Writes docs/methods.md from the registry of losses and the docstrings of their functions."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from preftune import DPOConfig
from preftune.losses import LOSSES, Loss

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"

_HEAD = """\
# Methods

Every loss of pairs that `preftune dpo --loss_type NAME` and `DPOConfig(loss_type=NAME)` train with. Made from
`preftune.losses.registry` by `python benchmarks/methods_page.py`.

Several losses are one objective: `loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.1]`. `beta` and `learning_rate`
default to what the authors of the (first) loss use; an adapter takes ten times the learning rate of full fine-tuning.
Symbols: a and b are log policy - log reference of the chosen and the rejected answer, A and B are beta times these (the
implicit rewards), and `logits` is A - B - margin. Without a reference, p_w and p_l are the policy's probabilities.
Weights of rows hold for every loss, margins where the table says so. Losses without a reference compute none: no
reference pass, no second model, no cache.

"""


def page() -> str:
    """The whole document."""
    header = (
        "| `loss_type` | method | reference | margins | beta | learning rate | options |\n"
        "|---|---|---|---|--:|--:|---|\n"
    )
    sections = "\n\n".join(_section(loss) for loss in LOSSES.values())
    return _HEAD + header + "\n".join(map(_row, LOSSES.values())) + "\n\n" + sections + "\n"


def _row(loss: Loss) -> str:
    margins = "needed" if loss.needs_margins else "yes" if loss.margins else "no"
    beta = f"{loss.beta:g}" if loss.has_beta else ""
    cells = [f"[`{loss.name}`](#{_anchor(loss)})", loss.title, "yes" if loss.reference else "no", margins, beta]
    return f"| {' | '.join([*cells, _rate(loss.learning_rate), ', '.join(f'`{name}`' for name in _options(loss))])} |"


def _section(loss: Loss) -> str:
    paper = f"[arXiv:{loss.paper}](https://arxiv.org/abs/{loss.paper})" if loss.paper[0].isdigit() else loss.paper
    text = inspect.cleandoc(loss.function.__doc__ or "").split("\nArgs:")[0].strip()
    parts = [f"## {loss.title}: `{loss.name}`", text, f"**Paper:** {paper}. **When:** {loss.use}"]
    if loss.traps:
        parts.append(f"**Traps:** {loss.traps}")
    if loss.has_beta:
        low, high = loss.betas
        parts.append(f"beta {loss.beta:g} (usual {low:g} to {high:g}), learning rate {_rate(loss.learning_rate)}.")
    helps = {name: DPOConfig.__dataclass_fields__[name].metadata["help"] for name in _options(loss)}
    listing = "\n".join(f"- `{name}`: {words}" for name, words in helps.items())
    return "\n\n".join([*parts, *([listing] if listing else [])])


def _options(loss: Loss) -> list[str]:
    names = [*loss.options, *([loss.likelihood] if isinstance(loss.likelihood, str) else [])]
    return [name for name in names if name in DPOConfig.__dataclass_fields__]


def _anchor(loss: Loss) -> str:
    return re.sub(r"[^\w\- ]", "", f"{loss.title}: {loss.name}".lower()).replace(" ", "-")


def _rate(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
