from __future__ import annotations

import pytest

from preftune.errors import DatasetError
from preftune.evaluation.two_models.correctness import compare_key_facts, correctness_verdict, length_word


def _rates(*, both: int, gained: int, lost: int, neither: int):
    base = [True] * both + [False] * gained + [True] * lost + [False] * neither
    aligned = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return compare_key_facts(base, aligned)


def wilson(rate: float, trials: int = 9, z: float = 2.26216) -> tuple[float, float]:
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (rate * (1 - rate) / trials + z * z / (4 * trials**2)) ** 0.5
    return centre - half, centre + half


def test_unchanged_prompts_have_an_interval() -> None:
    found = compare_key_facts([True] * 15 + [False] * 5, [True] * 15 + [False] * 5).difference
    assert (found.mean, found.low < -0.05, found.high > 0.05) == (0.0, True, True)


def test_rates_and_difference_by_hand() -> None:
    rates = _rates(both=5, gained=3, lost=1, neither=1)
    assert (rates.base.mean, rates.aligned.mean) == (0.6, 0.8)
    assert rates.difference.mean == pytest.approx(0.2)
    # Newcombe's interval of gained (3 of 10) minus lost (1 of 10), each Wilson's at 9 trials with t(9) = 2.26216
    (low_3, high_3), (low_1, high_1) = wilson(0.3), wilson(0.1)
    correlation = -0.3 * 0.1 / (0.3 * 0.7 * 0.1 * 0.9) ** 0.5
    up, down = high_3 - 0.3, 0.1 - low_1
    assert rates.difference.high == pytest.approx(
        0.2 + (up**2 + down**2 - 2 * correlation * up * down) ** 0.5, abs=1e-4
    )
    up, down = 0.3 - low_3, high_1 - 0.1
    below = (up**2 + down**2 - 2 * correlation * up * down) ** 0.5
    assert rates.difference.low == pytest.approx(0.2 - below, abs=1e-4)
    assert (rates.gained, rates.lost, rates.p_value) == (3, 1, 0.625)
    assert set(rates.to_dict()) == {"base", "aligned", "difference", "gained", "lost", "p_value", "n"}


def test_a_prompt_with_several_rows_changes_once() -> None:
    rates = compare_key_facts([False, False, True], [True, True, True], ["p", "p", "q"])
    assert (rates.gained, rates.lost) == (1, 0)


def test_few_gains_are_not_shown_even_where_the_t_interval_is_optimistic() -> None:
    rates = _rates(both=20, gained=5, lost=0, neither=23)
    assert rates.difference.low > 0
    assert rates.p_value == 0.0625
    assert not rates.shown
    assert _rates(both=20, gained=6, lost=0, neither=22).shown


MORE = {"both": 20, "gained": 12, "lost": 1, "neither": 15}
LESS = {"both": 20, "gained": 1, "lost": 12, "neither": 15}
LESS_BY_ONE = {"both": 30, "gained": 2, "lost": 3, "neither": 13}
SAME = {"both": 30, "gained": 3, "lost": 3, "neither": 12}
MORE_BY_ONE = {"both": 30, "gained": 3, "lost": 2, "neither": 13}


@pytest.mark.parametrize(
    ("counts", "tokens", "name", "says"),
    [
        (MORE, 40, "more correct", "by more than chance"),
        (MORE, 100, "more correct", "by more than chance"),
        (MORE, 150, "more correct but longer", "by more than chance"),
        (LESS, 40, "shorter and less correct", "by more than chance"),
        (LESS, 100, "less correct", "by more than chance"),
        (LESS, 150, "longer and less correct", "by more than chance"),
        (LESS_BY_ONE, 40, "shorter and less correct", "can be chance"),
        (SAME, 40, "only shorter", "no difference in correctness is shown"),
        (MORE_BY_ONE, 40, "only shorter", "no difference in correctness is shown"),
        (MORE_BY_ONE, 150, "only longer", "no difference in correctness is shown"),
        (SAME, 100, "no difference shown", "no difference in correctness is shown"),
    ],
)
def test_every_verdict(counts: dict[str, int], tokens: float, name: str, says: str) -> None:
    verdict = correctness_verdict(_rates(**counts), base_tokens=100, aligned_tokens=tokens)
    assert verdict.name == name
    assert says in verdict.sentence
    assert f"{tokens} tokens per answer instead of 100" in verdict.sentence


def test_without_key_facts_nothing_is_claimed() -> None:
    assert correctness_verdict(None, base_tokens=10, aligned_tokens=5).name == "not measured"


def test_length_words() -> None:
    assert length_word(100, 90) == "shorter"
    assert length_word(100, 91) == "as long"
    assert length_word(100, 109) == "as long"
    assert length_word(100, 111) == "longer"
    assert length_word(0, 0) == "as long"
    assert length_word(0, 5) == "longer"


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(DatasetError, match="same rows"):
        compare_key_facts([True], [])


def test_the_sentence_names_what_the_baseline_is() -> None:
    for called in ("the base model", "the dataset"):
        sentence = correctness_verdict(_rates(**SAME), base_tokens=5, aligned_tokens=5, baseline=called).sentence
        assert f"of {called}'s (" in sentence
