"""The rules of the verdict, one by one, and what an evaluation can show before it is run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from preftune.errors import RequestError
from preftune.statistics.intervals import power, power_sentence, prompts_for, win_rate
from preftune.statistics.verdict_rules import BELOW_BAR, Decision, decide

WON = win_rate([1.0] * 140 + [0.0] * 60).to_dict()


def figures(**more: Any) -> dict[str, Any]:
    """A win of 70% on 200 prompts that no rule stands against."""
    return {
        **WON,
        "mean_tokens": {"base": 100.0, "aligned": 140.0},
        "length_controlled": {"win_rate": 0.66, "ci_low": 0.58, "ci_high": 0.73, "extrapolated": False},
        "key_fact_rate": {"difference": {"rate": 0.01, "ci_low": -0.02, "ci_high": 0.04}},
        "degeneration": {"figures": {}, "worse": []},
        "cheats": [],
        "abilities": {},
        **more,
    }


def decided(**more: Any) -> Decision:
    found = decide(figures(**more))
    assert found is not None
    return found


def test_better_where_no_rule_fails() -> None:
    found = decided()
    assert (found.name, found.level, found.tone) == ("better", 4, "good")
    assert [(rule.name, rule.passed) for rule in found.rules] == [
        ("no cheat", True),
        ("win rate", True),
        ("equal length", True),
        ("correct answers", True),
        ("degeneration", True),
        ("general abilities", None),
    ]
    assert "66.0% (interval 58.0% to 73.0%)" in found.rules[2].sentence


def test_a_rate_that_holds_however_often_one_looks() -> None:
    found = decided(anytime={"ci_low": 0.55, "ci_high": 0.81})
    assert (found.name, found.rules[2].name, found.rules[2].passed) == ("better", "repeated looks", True)
    assert "55.0% to 81.0%" in found.rules[2].sentence
    assert decided(anytime=None) == decided()


LENGTHS = {"base": 100.0, "aligned": 40.0}
BELOW = {"win_rate": 0.38, "ci_low": 0.3, "ci_high": 0.46}
ABILITY = {"name": "accuracy, arc", "base": 0.5, "unit": "share", "better": "higher"}
BITS = {"name": "bits per byte", "base": 1.0, "unit": "bits", "better": "lower"}


@pytest.mark.parametrize(
    ("more", "name", "says"),
    [
        ({"length_controlled": BELOW}, "longer, not better", "only 38.0%"),
        ({"length_controlled": BELOW, "mean_tokens": LENGTHS}, "shorter, not better", "only 38.0%"),
        ({"length_controlled": {"extrapolated": True}, "mean_tokens": LENGTHS}, "shorter, not better", "length alone"),
        (
            {"key_fact_rate": {"difference": {"rate": -0.047, "ci_low": -0.15, "ci_high": 0.05}}},
            "preferred, but less correct",
            "-4.7 points",
        ),
        (
            {"key_fact_rate": {"difference": {"rate": -0.02, "ci_low": -0.03, "ci_high": -0.01}}},
            "preferred, but less correct",
            "-2.0 points",
        ),
        (
            {
                "degeneration": {
                    "worse": ["repeats"],
                    "figures": {"repeats": {"base": 0.0, "aligned": 0.2, "difference": 0.2}},
                }
            },
            "preferred, but degenerate",
            "repeat themselves (20% instead of 0%)",
        ),
        ({"abilities": {"compared": [{**ABILITY, "difference": -0.031}]}}, "preferred, but forgetful", "+3.1"),
        ({"abilities": {"compared": [{**BITS, "difference": 0.05}]}}, "preferred, but forgetful", "lost +5.0"),
        ({"abilities": {"budget": 1.0}}, "undecided", "not measured"),
        ({"anytime": {"ci_low": 0.48, "ci_high": 0.83}}, "undecided", "48.0% to 83.0%"),
        ({"anytime": {"ci_low": "x"}}, "undecided", "no interval for repeated looks"),
        (
            {"cheats": [{"name": "constant answers", "sentence": "All are one text."}]},
            "cheat: constant answers",
            "All are one text.",
        ),
    ],
)
def test_each_rule_can_fail(more: dict[str, Any], name: str, says: str) -> None:
    found = decided(**more)
    assert found.name == name
    assert says in found.sentence
    assert "70.0% of 200 comparisons" in found.sentence
    assert found.level < 3


def test_of_several_failed_rules_the_lowest_level_decides() -> None:
    """What is only undecided hides no rule that failed."""
    spoilt = {"worse": ["repeats"], "figures": {"repeats": {"base": 0.0, "aligned": 0.2, "difference": 0.2}}}
    found = decided(anytime={"ci_low": 0.48, "ci_high": 0.83}, degeneration=spoilt)
    assert (found.name, found.level) == ("preferred, but degenerate", 1)
    assert decided(degeneration=spoilt).level == found.level
    assert "48.0% to 83.0%" in found.sentence
    # rules of one level: the first
    assert decided(length_controlled=BELOW, degeneration=spoilt).name == "longer, not better"


def test_an_undecided_win_rate_hides_no_rule_that_failed() -> None:
    """With --fail_under undecided a model that repeats itself, or answers less correctly, passed with exit code 0."""
    even = win_rate([1.0] * 103 + [0.0] * 97).to_dict()
    spoilt = {"worse": ["repeats"], "figures": {"repeats": {"base": 0.0, "aligned": 0.2, "difference": 0.2}}}
    found = decided(**even, degeneration=spoilt)
    assert (found.name, found.level, found.tone) == ("undecided", 1, "bad")
    assert found.sentence.endswith("The answers degenerate: answers repeat themselves (20% instead of 0%).")
    assert found.grounds == "'undecided', but these rules fail: degeneration"
    clean = decided(**even)
    assert (clean.level, clean.grounds) == (2, "'undecided'")
    assert decided().level == 4


def test_a_rule_has_one_line() -> None:
    lines = [rule.line() for rule in decided(length_controlled=BELOW).rules]
    assert lines[0] == "no cheat: holds. No known cheat was found in the answers."
    assert lines[2].startswith("equal length: fails. At equal length it would win only 38.0%")
    assert lines[-1] == "general abilities: not measured. preftune eval --suite general measures them."


def test_what_is_within_its_margin_holds() -> None:
    facts = {"difference": {"rate": -0.02, "ci_low": -0.08, "ci_high": 0.04}}
    assert decided(key_fact_rate=facts).name == "better"
    ability = {**ABILITY, "difference": -0.015, "ci_low": -0.05, "ci_high": 0.02}
    held = decided(abilities={"compared": [ability]})
    assert held.name == "better"
    assert "lost +1.5 (interval -2.0 to +5.0)" in held.rules[-1].sentence
    assert decided(abilities={"compared": [ability], "budget": 1.0}).name == "preferred, but forgetful"
    barely = {"degeneration": {"worse": ["repeats"], "figures": {"repeats": {"difference": 0.02}}}}
    assert decided(**barely).name == "better"
    # more correct answers show that it is not length alone where no rate at equal length can be estimated
    right = {"difference": {"rate": 0.1, "ci_low": 0.04, "ci_high": 0.16}}
    assert decided(length_controlled={"extrapolated": True}, key_fact_rate=right).name == "better"


def test_a_rate_that_is_not_above_half_decides_itself() -> None:
    assert decided(**win_rate([1.0] * 60 + [0.0] * 140).to_dict()).name == "worse"
    assert decided(**win_rate([1.0] * 103 + [0.0] * 97).to_dict(), length_controlled=BELOW).name == "undecided"
    assert decided(**win_rate([1.0] * 1060 + [0.0] * 940).to_dict()).name == BELOW_BAR
    lost = win_rate([1.0] * 60 + [0.0] * 140).to_dict()
    assert decided(**lost, cheats=[{"name": "copies of the prompt"}]).name == "cheat: copies of the prompt"


def test_figures_of_earlier_versions_and_of_strangers() -> None:
    earlier = decide({name: WON[name] for name in ("win_rate", "ci_low", "ci_high", "n", "wins", "losses")})
    assert earlier is not None
    assert (earlier.name, earlier.rules[0].passed) == ("better", None)
    assert decide({}) is None
    odd = figures(cheats="x", degeneration=[], key_fact_rate=3, length_controlled="y", abilities={"compared": 7})
    assert decide({**odd, "mean_tokens": None, "n": "many", "spread": float("inf"), "confidence": 7}) is not None
    assert decide({**odd, "win_rate": True}) is None


def test_power_is_exact_for_wins_and_losses() -> None:
    """By hand: the chance of every number of wins whose interval lies above 50%."""
    for prompts in (1, 5, 6, 7, 20, 33, 64):
        shown = [n for n in range(prompts + 1) if win_rate([1.0] * n + [0.0] * (prompts - n)).ci_low > 0.5]
        for rate in (0.55, 0.7, 0.95):
            by_hand = sum(math.comb(prompts, n) * rate**n * (1 - rate) ** (prompts - n) for n in shown)
            assert power(rate, prompts) == pytest.approx(by_hand, abs=1e-9), (prompts, rate)


@pytest.mark.parametrize("rate", [0.55, 0.6, 0.7])
def test_the_number_of_prompts_has_the_power_and_hardly_fewer_do(rate: float) -> None:
    needed = prompts_for(rate)
    assert needed is not None
    assert power(rate, needed) >= 0.8 > power(rate, needed - 1)
    assert max(power(rate, prompts) for prompts in range(1, round(0.89 * needed))) < 0.8


def test_power_is_what_simulated_evaluations_show() -> None:
    """Of 3,000 simulated evaluations, as many exclude 50% as was computed beforehand."""
    rng = np.random.default_rng(5)
    for prompts, rate in ((20, 0.55), (64, 0.55), (64, 0.65), (200, 0.6)):
        won = rng.random((3000, prompts)) < rate
        shown = np.mean([win_rate(row.astype(float)).ci_low > 0.5 for row in won])
        assert power(rate, prompts) == pytest.approx(shown, abs=0.02), (prompts, rate)
    assert prompts_for(0.5) is None
    assert power(0.55, 0) == power(0.5, 100) == 0.0
    assert power(0.4, 50) == pytest.approx(power(0.6, 50))
    assert power_sentence(64) == (
        "With 64 prompts a true win rate of 55% is shown in 9% of evaluations; take 792 to show it in 80%."
    )
    assert "take" not in power_sentence(2000)
    with pytest.raises(RequestError):
        power(1.5, 10)
