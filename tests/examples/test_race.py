"""The race of many methods on made-up reviews: its labels, its noise, a run of each kind, and its page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import race
import race_page
from corpus import load_corpus
from experiment import SMOKE
from preferences import Preferences

from preftune.data import GroupDataset
from preftune.types import Preference, TokenizedGroup

TINY = replace(
    SMOKE,
    model=replace(SMOKE.model, sentences=400, epochs=1),
    new_tokens=6,
    train_prompts=16,
    test_prompts=8,
    samples_per_test_prompt=1,
    best_of=(2,),
    points=(0.5, 1.0),
    dpo=replace(SMOKE.dpo, prompts_per_step=8),
    ppo=replace(SMOKE.ppo, kl_targets=(6.0,), rounds=1, answers_per_step=8),
)
GROUP = TokenizedGroup([1], ([2], [3], [4]), (Preference(0, 1), Preference(0, 2), Preference(1, 2)), id="a")


def test_a_completion_that_wins_more_than_it_loses_is_good():
    found = list(race.labelled(GroupDataset.from_groups([GROUP])))
    assert [(group.completions[0], group.labels[0].desirable) for group in found] == [([2], True), ([4], False)]


def test_noise_turns_a_share_of_the_labels_round_and_nothing_else():
    groups = [replace(GROUP, id=str(number)) for number in range(400)]
    clean = Preferences(GroupDataset.from_groups(groups), {})
    noisy = race.with_noise(clean, 0.2, seed=0)
    pairs = [zip(a.pairs, b.pairs, strict=True) for a, b in zip(clean.groups, noisy.groups, strict=True)]
    turned = [(one.chosen, one.rejected) == (two.rejected, two.chosen) for part in pairs for one, two in part]
    assert sum(turned) / len(turned) == pytest.approx(0.2, abs=0.03)
    assert [group.pairs for group in race.with_noise(clean, 0.2, seed=0).groups] == [g.pairs for g in noisy.groups]
    assert race.with_noise(clean, 0.0, seed=0) is clean


@pytest.mark.sample(0)
def test_every_method_runs_and_the_page_has_them(corpora: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    made = race.Race(TINY, load_corpus(corpora), tmp_path / "race", lambda line: None)
    race.write_json(tmp_path / "race" / "baseline.json", made.baseline)
    names = ("dpo", "simpo", "kto", "grpo", "ppo")
    for run in race.runs(TINY):
        if run.method in names or run.noise == 0.3:
            record = made.race(run)
            assert [point["share"] for point in record["points"]] == [0.5, 1.0]
            assert record["noise"] == run.noise
            race.write_json(tmp_path / "race" / "runs" / f"{run.name}.json", record)
    here = tmp_path / "here"
    (here / "results").mkdir(parents=True)
    shutil.copy(Path(race_page.__file__).parent / "README.md", here)
    monkeypatch.setattr(race_page, "SETTINGS", TINY)
    race_page.keep(tmp_path / "race", here)
    text = (here / "README.md").read_text()
    for name in names:
        assert f"| {race.METHODS[name].title}, " in text
    assert (here / "results" / "race.svg").stat().st_size > 1000
    kept = json.loads((here / "results" / "race.json").read_text())
    assert all("texts" not in point for run in kept["runs"] for point in run["points"])


def test_robust_losses_know_the_share_of_wrong_labels(corpora: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(race, "train_dpo", lambda *args, after_step, **loss: seen.append(loss) or {})
    made = race.Race(TINY, load_corpus(corpora), tmp_path / "race", lambda line: None)
    for run in race.runs(TINY):
        if run.method in ("cdpo", "robust", "ipo") and run.noise in (0.0, 0.2):
            made.race(run)
    ipo = {"loss_type": "ipo"}
    robust = {"loss_type": "robust", "label_smoothing": 0.2}
    assert seen == [ipo, ipo, {"label_smoothing": 0.2}, robust]
