from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.special import stdtrit

from preftune.errors import DatasetError, RequestError
from preftune.statistics.bradley_terry import ELO_PER_NAT, Game, bradley_terry
from preftune.statistics.intervals import win_rate


def games(a: str, b: str, wins: int, losses: int, ties: int = 0) -> list[Game]:
    return [
        *(Game(a, b, 1.0) for _ in range(wins)),
        *(Game(a, b, 0.0) for _ in range(losses)),
        *(Game(a, b, 0.5) for _ in range(ties)),
    ]


def test_two_models_by_hand() -> None:
    """Two models' scores differ by the log-odds of the win rate, ties counted half."""
    found = bradley_terry(games("new", "old", 60, 20, 20), anchor="old")
    assert found["new"].score == pytest.approx(math.log(70 / 30))
    assert found["old"].score == 0
    assert (found["old"].ci_low, found["old"].ci_high) == (0, 0)
    assert found["new"].elo[0] == pytest.approx(1000 + 400 * math.log10(7 / 3))
    assert found["new"].win_rate == pytest.approx(0.7)
    assert found.chance("new", "old") == pytest.approx(0.7)
    assert found["new"].ci_low < found["new"].score < found["new"].ci_high
    assert [model.name for model in found.models] == ["new", "old"]


def test_three_models_fit_exactly_where_the_odds_multiply() -> None:
    """a:b = 2:1, b:c = 2:1, so a:c = 4:1; scores ln 4, ln 2, 0 reproduce every rate."""
    table = [*games("a", "b", 60, 30), *games("b", "c", 60, 30), *games("a", "c", 72, 18)]
    found = bradley_terry(table, anchor="c")
    assert [found[name].score for name in "abc"] == pytest.approx([math.log(4), math.log(2), 0], abs=1e-9)
    mean = bradley_terry(table)
    assert sum(model.score for model in mean.models) == pytest.approx(0, abs=1e-9)
    assert mean.anchor is None


def test_a_model_is_scored_through_another() -> None:
    found = bradley_terry([*games("a", "b", 75, 25), *games("b", "c", 75, 25)], anchor="b")
    assert found["a"].score == pytest.approx(math.log(3))
    assert found.chance("a", "c") == pytest.approx(0.9)


def test_planted_scores_are_recovered_and_covered() -> None:
    rng = np.random.default_rng(0)
    truth = {"a": 0.0, "b": 0.5, "c": 1.0, "d": -0.7}
    names = list(truth)
    inside = total = 0
    for _ in range(25):
        table = []
        for n in range(600):
            a, b = rng.choice(names, 2, replace=False)
            table.append(Game(a, b, float(rng.random() < 1 / (1 + math.exp(truth[b] - truth[a]))), n))
        found = bradley_terry(table, anchor="a")
        inside += sum(found[n].ci_low <= truth[n] <= found[n].ci_high for n in "bcd")
        total += 3
    assert inside / total >= 0.88
    assert [model.name for model in found.models] == ["c", "b", "a", "d"]


def test_winning_everything_is_held_finite_and_said() -> None:
    found = bradley_terry([*games("best", "a", 20, 0), *games("a", "b", 12, 8)], anchor="a")
    assert list(found.unbounded) == ["best"]
    # half a tie more: 20.25 against 0.25
    assert found["best"].score == pytest.approx(math.log(20.25 / 0.25), rel=1e-6)
    assert found.models[0].name == "best"
    assert "best won or lost every comparison" in found.sentences()[-1]
    # nobody below ever beat it: how far above it is, no data say
    assert found["best"].ci_high == math.inf
    assert math.isfinite(found["best"].ci_low)
    assert all(math.isfinite(end) for end in (found["a"].ci_low, found["b"].ci_high))
    assert "to open)" in found.sentences()[0]
    assert found["best"].to_dict()["elo_high"] is None


@pytest.mark.parametrize("wins", [2, 3, 5, 20])
def test_an_unbeaten_model_is_no_better_than_its_games_show(wins: int) -> None:
    """The lower end: the chance p at which as many wins in a row are as rare as 2.5% (or at Student's quantile)."""
    found = bradley_terry(games("new", "old", wins, 0), anchor="old")["new"]
    assert found.ci_high == math.inf
    allowed = math.exp(-max(stdtrit(wins - 1, 0.975) ** 2 / 2, math.log(40)) / wins)
    assert 1 / (1 + math.exp(-found.ci_low)) == pytest.approx(allowed, abs=1e-3)
    assert allowed <= win_rate([1.0] * wins).ci_low + 0.01


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("prompts", "chance", "ties", "each"),
    [
        (2, 0.6, 0, 1),
        (5, 0.6, 0, 1),
        (10, 0.9, 0, 1),
        (20, 0.95, 0, 1),
        (20, 0.6, 0.6, 1),
        (8, 0.6, 0, 6),
        (40, 0.7, 0, 1),
    ],
)
def test_95_of_100_intervals_hold_the_truth(prompts: int, chance: float, ties: float, each: int) -> None:
    rng = np.random.default_rng(3)
    rate = ties / 2 + (1 - ties) * chance
    truth, held = math.log(rate / (1 - rate)), []
    for _ in range(60):
        own = rng.beta(1.5 * chance, 1.5 * (1 - chance), prompts) if each > 1 else np.full(prompts, chance)
        won = (rng.random((each, prompts)) < own).astype(float)
        won[rng.random(won.shape) < ties] = 0.5
        table = [Game("a", "b", float(won[k, n]), n) for n in range(prompts) for k in range(each)]
        model = bradley_terry(table, anchor="b")["a"]
        held.append(model.ci_low <= truth <= model.ci_high)
    assert np.mean(held) >= 0.92


def test_a_circle_has_scores_without_a_prior() -> None:
    found = bradley_terry([*games("a", "b", 5, 0), *games("b", "c", 5, 0), *games("c", "a", 5, 0)])
    assert not found.unbounded
    assert [model.score for model in found.models] == pytest.approx([0, 0, 0], abs=1e-9)


def test_prompts_are_the_unit() -> None:
    few = bradley_terry(
        [Game("a", "b", float(n % 3 > 0), n) for n in range(60)] * 5, anchor="b"
    )  # five judgements of each of 60 prompts
    many = bradley_terry([Game("a", "b", float(n % 3 > 0)) for n in range(300)], anchor="b")
    assert few.prompts == 60
    assert few["a"].ci_high - few["a"].ci_low > 1.7 * (many["a"].ci_high - many["a"].ci_low)


def test_one_prompt_says_nothing() -> None:
    found = bradley_terry([Game("a", "b", 1.0, "p"), Game("a", "b", 0.0, "p")], anchor="b")
    assert found["a"].ci_high == math.inf
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["models"][0]["elo_high"] is None


def test_what_is_written() -> None:
    found = bradley_terry(games("a", "b", 6, 4), anchor="b")
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert kept["models"][0]["elo"] - 1000 == pytest.approx(ELO_PER_NAT * kept["models"][0]["score"])
    assert found.sentences()[0].startswith("a: Elo 1070 (95% interval ")


def test_bad_input_is_refused() -> None:
    with pytest.raises(DatasetError, match="no comparison"):
        bradley_terry([])
    with pytest.raises(DatasetError, match=r"groups: a, b; c, d.*same baseline"):
        bradley_terry([*games("a", "b", 1, 1), *games("c", "d", 1, 1)])
    with pytest.raises(DatasetError, match="Comparison 1"):
        bradley_terry([Game("a", "b", 1.0), Game("a", "a", 1.0)])
    with pytest.raises(RequestError, match="Name one of a, b"):
        bradley_terry(games("a", "b", 1, 1), anchor="base")
    with pytest.raises(RequestError, match="confidence"):
        bradley_terry(games("a", "b", 1, 1), confidence=95)
