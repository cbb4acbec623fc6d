"""Ensembles of scorers: by hand, and through the words of --judge."""

from __future__ import annotations

import math

import pytest

from preftune.errors import RequestError
from preftune.judges.ensemble import EnsembleScorer, combined
from preftune.judges.from_scores import ScoreJudge
from preftune.judges.registry import reward_models


class Constant:
    def __init__(self, factor: float, cache_key: str | None = None) -> None:
        self.factor, self.name = factor, f"times {factor:g}"
        if cache_key is not None:
            self.cache_key = cache_key

    def __call__(self, prompt, answer, row):
        return None if answer == "?" else self.factor * len(answer)


def test_by_hand():
    assert combined([1.0, 3.0, 5.0], "mean") == 3.0
    assert combined([1.0, 3.0, 5.0], "min") == 1.0
    assert combined([1.0, 3.0, 5.0], "mean-std") == pytest.approx(3.0 - math.sqrt(8 / 3))
    assert combined([1.0, None], "mean") is None


@pytest.mark.parametrize(("how", "expected"), [("mean", 3.0), ("min", 2.0), ("mean-std", 2.0)])
def test_as_a_scorer_and_as_a_judge(how, expected):
    ensemble = EnsembleScorer([Constant(1.0), Constant(2.0)], how=how)
    seen = []
    assert ensemble.score_all([("p", "ab", {}), ("p", "?", {})], progress=lambda *args: seen.append(args)) == [
        expected,
        None,
    ]
    assert how in ensemble.name
    assert ScoreJudge(ensemble)("p", "abc", "a", {}) == "a"


def test_its_key_is_that_of_its_members():
    def key(*members, how="mean"):
        return getattr(EnsembleScorer(members, how=how), "cache_key", None)

    a, b = Constant(1, "a"), Constant(2, "b")
    assert key(a, b) is not None
    assert len({key(a, b), key(b, a), key(a), key(a, b, how="min")}) == 4
    assert key(a, Constant(3)) is None


def test_wrong_requests_and_names(tmp_path):
    with pytest.raises(RequestError, match="--reward_ensemble median"):
        EnsembleScorer([Constant(1)], how="median")
    assert reward_models("a,b") == ["a", "b"]
    folder = tmp_path / "with,comma"
    folder.mkdir()
    assert reward_models(str(folder)) == [str(folder)]
