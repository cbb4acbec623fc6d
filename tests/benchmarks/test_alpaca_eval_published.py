"""The published rates are found again, on a made-up repository of the same form."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import alpaca_eval_published as published
import numpy as np
import pytest
from record import RESULTS

from tests.stats.test_published_length_control import INSTRUCTIONS, Made, sigmoid

MODELS = {"plain": (0.2, 1.0), "brief": (-1.0, 0.6), "long": (-0.4, 1.6), "weak": (-2.5, 0.8)}
VERBOSE, CONCISE = published.GAMEABLE


def table(path: Path, columns: list[str], rows: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["", *columns], *([name, *values] for name, values in rows.items())])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Judgements of four models, two with predictions; of the gameable baselines only outputs and coefficients."""
    made = Made(3)
    made.reference = np.round(made.reference)
    data = {name: made.model(*how) for name, how in MODELS.items()}
    data |= {VERBOSE: made.baselines[0], CONCISE: made.baselines[1]}
    data = {name: (np.round(letters), outcomes) for name, (letters, outcomes) in data.items()}
    rates = {name: made.rate(*one) for name, one in data.items()}
    table(
        tmp_path / published.WEIGHTS,
        ["length", "difficulty", "model"],
        {name: list(rate.coefficients) for name, rate in rates.items()},
    )
    table(
        tmp_path / published.LEADERBOARD,
        ["length_controlled_winrate"],
        {name: [100 * rate.win_rate] for name, rate in rates.items()},
    )
    for name, (letters, outcomes) in {**data, published.REFERENCE: (made.reference, None)}.items():
        folder = tmp_path / "results" / name
        (folder / published.JUDGE).mkdir(parents=True)
        texts = [f"{n} {name} ".ljust(int(size), "x") for n, size in enumerate(letters)]
        (folder / "model_outputs.json").write_text(json.dumps([{"output": text} for text in texts]))
        if name not in MODELS:
            continue
        found = rates[name].coefficients
        predicted = sigmoid(found.model + found.difficulty * made.difficulty)
        rows = [
            {
                "instruction": f"Instruction {n}",
                "output_1": "y" * int(made.reference[n]),
                "output_2": text,
                "preference": 1 + outcomes[n],
                **({"glm_preference": predicted[n]} if name in ("plain", "weak") else {}),
            }
            for n, text in enumerate(texts)
        ]
        (folder / published.JUDGE / "annotations.json").write_text(json.dumps(rows))
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "made up"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def test_rates_of_a_repository(clone: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(published, "INSTRUCTIONS", INSTRUCTIONS)
    assert published.main([str(clone), "-o", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "alpaca_eval_published.json").read_text())
    assert (result["models"], result["difficulty_from"]) == (4, 2)
    assert result["difficulty_spread"] < 1e-6
    assert result["largest_difference"] < 0.5
    assert result["spearman"] == 1.0
    assert "4 models: 100% within 1 point" in capsys.readouterr().out


def test_the_kept_result_meets_the_goal() -> None:
    """Of the public judgements of 56 models."""
    kept = json.loads((RESULTS / "alpaca_eval_published.json").read_text(encoding="utf-8"))
    away = np.abs([one["ours"] - one["published"] for one in kept["rates"]])
    assert len(away) == kept["models"] > 50
    assert (away <= 1.0).mean() >= 0.95
    assert away.max() <= 2.5
    assert kept["spearman"] > 0.99
    cheats = {one["model"]: one["cheats"] for one in kept["rates"] if one["cheats"]}
    assert cheats == {
        "NullModel": ["constant answers", "copies of the judge's instructions"],
        "gpt4_gamed": ["answers cut off"],
    }
