"""Repetition after training."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune import DPOConfig
from preftune.errors import ConfigError
from preftune.losses import Pairs
from preftune.losses.pairwise import sigmoid
from preftune.types import Sides
from tiny import tiny_model

from .common_runs import make

ROOT = Path(__file__).parents[2]


def advice(folder: Path, caplog: pytest.LogCaptureFixture, model: Any = None, **options: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "preftune"):
        make(tiny_model() if model is None else model, folder, **options)
    lines = [record.getMessage() for record in caplog.records]
    return [line.removeprefix("advice: ") for line in lines if line.startswith("advice: ")]


LIKELY_TO_REPEAT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a beta too low": ({"beta": 0.01}, ["beta=0.01 is below 0.05", "higher beta stays closer to the reference"]),
    "a learning rate too high": ({"learning_rate": 5e-5}, ["learning_rate=5e-05 is outside 5e-7..5e-6", "damage"]),
    "several epochs": ({"max_steps": -1, "num_train_epochs": 3}, ["3 epochs", "one epoch is usually enough"]),
    "several epochs by steps": ({"max_steps": 8}, ["2 epochs", "one epoch is usually enough"]),
}


@pytest.mark.parametrize("cause", LIKELY_TO_REPEAT)
def test_what_makes_repetition_likely_is_reported_beforehand(cause, tmp_path, caplog):
    options, says = LIKELY_TO_REPEAT[cause]
    given = advice(tmp_path, caplog, **{"learning_rate": 1e-6, **options})
    assert any(all(part in line for part in says) for line in given), given
    usual = advice(tmp_path, caplog, learning_rate=1e-6)
    assert not any(says[0] in line for line in usual), usual


def test_the_defaults_but_for_the_epochs_need_no_such_advice(tmp_path, caplog):
    given = advice(tmp_path, caplog, learning_rate=None, max_steps=-1, num_train_epochs=1)
    assert not any(word in line for line in given for word in ("beta", "learning_rate", "epochs")), given


SENTENCE = re.compile(r"[^.!?:;\n|]*\b[Bb]eta\b[^.!?:;\n|]*")
BACKWARDS = [
    r"\b(higher|larger|greater|bigger|raised?|increas\w+|above)\b.*\bbeta\b.*\b(drift|further|aggressive|stronger|away)",
    r"\bbeta\b.*\b(higher|larger|above)\b.*\b(drift|further|aggressive|away)\b",
    r"\b(lower|smaller|less|decreas\w+|below)\b.*\bbeta\b.*\b(conservative|closer|nearer|stays? near|safer)\b",
    r"\bbeta\b.*\b(lower|smaller|below)\b.*\b(conservative|closer|nearer|stays? near|safer)\b",
]
"""The mistake of some tutorials. Against repetition the wrong direction would make it worse."""


def texts() -> dict[str, str]:
    """All that a user can read, by file: code with its docstrings and messages, documentation, examples."""
    files = [file for folder in ("src", "docs", "examples") for file in (ROOT / folder).rglob("*")]
    readable = [file for file in [*files, *ROOT.glob("*.md")] if file.suffix in (".py", ".md", ".ipynb")]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in readable}


def test_nowhere_is_beta_reported_the_wrong_way_round():
    sentences = [(name, sentence.strip()) for name, text in texts().items() for sentence in SENTENCE.findall(text)]
    assert len(sentences) > 20
    wrong = [(name, s) for name, s in sentences if any(re.search(pattern, s, re.I) for pattern in BACKWARDS)]
    assert wrong == []


def test_the_search_for_it_finds_it():
    for sentence in (
        "Lower beta values: more conservative, closer to the reference",
        "A higher beta lets the policy drift further from the reference",
        "beta: lower stays closer",
    ):
        assert any(re.search(pattern, sentence, re.I) for pattern in BACKWARDS), sentence


def test_higher_is_closer_is_said_where_beta_is_set():
    help_text = DPOConfig.__dataclass_fields__["beta"].metadata["help"]
    assert "higher beta keeps the policy closer to the reference" in help_text
    with pytest.raises(ConfigError, match="a higher beta keeps the policy closer to the reference"):
        DPOConfig(output_dir="unused", beta=0)
    said = texts()
    assert "a higher value keeps the policy closer to the reference" in said["src/preftune/cli/train/dpo.py"]
    assert "A *higher* beta stays closer" in said["docs/errors.md"]


def test_and_it_is_true():
    """With labels that are wrong one time in ten the loss is least where beta times the margin is log 9: the distance
    from the reference at which training comes to rest falls as beta rises."""
    resting = {}
    for beta in (0.05, 0.1, 0.5):
        margin = torch.tensor([torch.log(torch.tensor(9.0)).item() / beta], requires_grad=True)
        zero, one = torch.zeros(1), torch.ones(1)
        policy, reference = Sides(margin, zero, one, one), Sides(zero, zero, one, one)
        loss = sigmoid(Pairs(policy, reference, zero), beta=beta, label_smoothing=0.1)
        (slope,) = torch.autograd.grad(loss.sum(), margin)
        assert slope.item() == pytest.approx(0, abs=1e-6)
        resting[beta] = margin.item()
    assert resting[0.05] > resting[0.1] > resting[0.5]
