"""What decides which prompts are asked, and which answers are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.errors import ConfigError

from .ppo_runs import letters_and_noise, logged, trainer


def test_the_order_of_prompts_has_a_seed_of_its_own(tmp_path: Path) -> None:
    asked = []
    for number, seeds in enumerate(({"seed": 3}, {"seed": 3, "data_seed": 8}, {"seed": 8})):
        run = trainer(tmp_path / str(number), **seeds)
        run.fresh_steps()
        asked.append(sorted(one.group.id.split("#")[0] for one in run._experience.values()))
    assert asked[0] != asked[1] == asked[2]


def test_an_ensemble_in_python_may_disagree(tmp_path: Path) -> None:
    def other(prompt: Any, answer: str, row: Any) -> float:
        return -letters_and_noise(prompt, answer, row)

    run = trainer(tmp_path, reward=[letters_and_noise, other], max_disagreement=3.2, max_steps=1, logging_steps=1)
    run.train()
    assert 0 < logged(tmp_path)[0]["objective/filtered"] < 1
    with pytest.raises(ConfigError, match="needs an ensemble"):
        trainer(tmp_path, max_disagreement=1.0)
