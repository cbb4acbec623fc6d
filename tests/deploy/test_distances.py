"""What the distances between three models mean."""

from __future__ import annotations

from dataclasses import replace

import pytest

from preftune.deploy.distances import Figures, Scored, figures_of
from preftune.generation.protocol import Kept

ANSWERS = [Kept("short", 2, finished=True), Kept("brief", 2, finished=True)]
OF_BASE = [Kept("a long answer", 5, finished=True), Kept("brief", 2, finished=True)]
SOUND = Figures(
    prompts=4, same_answers=1.0, as_base=0.0, apart=3, endless=0, pairs=4, moved=0.2, off=0.001,
    from_base=0.2, margin=5.0, served_margin=4.99, agreement=1.0,
)  # fmt: skip


def _stages(figures: Figures, form: str = "", *, proven: bool = False) -> list[str]:
    return [stage for stage, _ in figures.faults(form, proven=proven)]


def test_figures_by_hand() -> None:
    scored = Scored(
        run=[(-2.0, -8.0), (-4.0, -6.0)],
        base=[(-4.0, -6.0), (-5.0, -5.0)],
        served=[(-3.0, -8.0), (-5.0, -4.0)],
        lengths=[(2, 4), (1, 2)],
    )
    found = figures_of(scored, ANSWERS, OF_BASE, [ANSWERS[0], Kept("brie", 1, finished=False)], {1: 0.3})
    assert found.moved == pytest.approx((2 / 2 + 2 / 4 + 1 / 1 + 1 / 2) / 4)
    assert found.off == pytest.approx((1 / 2 + 0 + 1 / 1 + 2 / 2) / 4)
    assert found.from_base == pytest.approx((1 / 2 + 2 / 4 + 0 + 1 / 2) / 4)
    assert found.margin == pytest.approx(((2 + 2) + (1 + 1)) / 2)
    assert found.served_margin == pytest.approx(((1 + 2) + (0 - 1)) / 2)
    assert found.agreement == 0.5
    assert (found.same_answers, found.as_base, found.apart, found.unscored) == (0.5, 0.0, 1, 0)


def test_an_answer_that_differs_first_at_a_tie_counts_as_the_same() -> None:
    other = [Kept("shore", 2, finished=True), ANSWERS[1]]
    assert figures_of(None, ANSWERS, OF_BASE, other, {0: 0.05}).same_answers == 1.0
    assert figures_of(None, ANSWERS, OF_BASE, other, {0: 0.5}).same_answers == 0.5
    assert figures_of(None, ANSWERS, OF_BASE, other, {}).same_answers == 0.5


def test_a_sound_model_has_no_fault() -> None:
    assert _stages(SOUND) == []
    assert SOUND.cost("q8_0") == "What is served is what was aligned."


def test_scores_of_the_base_mean_that_the_adapter_is_missing_in_any_format() -> None:
    served = replace(SOUND, off=0.2, from_base=0.001)
    assert _stages(served) == _stages(served, "q4_0") == ["adapter not applied"]
    assert _stages(served, "bfloat16", proven=True) == ["precision"]  # the weights are the run's, rounded away
    assert _stages(replace(SOUND, moved=0.02, off=0.004, from_base=0.005), "q8_0") == []


def test_a_pair_that_one_model_cannot_score_is_left_out_and_counted() -> None:
    scored = Scored(
        run=[(-2.0, -8.0), (-4.0, -6.0)],
        base=[(-4.0, -6.0), (-5.0, -5.0)],
        served=[(float("nan"), float("nan")), (-5.0, -5.0)],
        lengths=[(2, 4), (1, 1)],
    )
    found = figures_of(scored, ANSWERS, OF_BASE, ANSWERS, {})
    assert (found.pairs, found.unscored) == (1, 1)
    assert _stages(found) == ["adapter not applied"]
    nothing = figures_of(scored._replace(served=[(float("nan"), 0.0)] * 2), ANSWERS, OF_BASE, ANSWERS, {})
    assert (nothing.pairs, nothing.unscored) == (0, 2)


def test_scores_of_neither_mean_other_weights_unless_the_format_explains_them() -> None:
    served = replace(SOUND, off=0.06, from_base=0.17, served_margin=4.0, agreement=0.75)
    assert _stages(served) == ["weights"]
    assert _stages(served, "q4_0") == []
    assert served.cost("q4_0") == (
        "What is served is what was aligned, in q4_0, which changes the reward margin from 5.00 to 4.00 nats (-20%) "
        "and its sign on 25% of 4 pairs; 100% of 4 greedy answers are the same."
    )
    assert _stages(replace(served, off=0.25), "q2_k") == ["precision"]


def test_rounding_of_a_small_effect_is_no_fault_and_no_effect_is_no_evidence() -> None:
    assert _stages(replace(SOUND, moved=0.02, off=0.009, from_base=0.02)) == []
    assert _stages(replace(SOUND, moved=0.0005, off=0.0005, from_base=0.0)) == []


def test_without_scores_the_answers_decide() -> None:
    silent = replace(SOUND, pairs=0)
    assert _stages(silent) == _stages(replace(silent, same_answers=0.9)) == []
    assert _stages(replace(silent, as_base=1.0, same_answers=0.25))[0] == "adapter not applied"
    assert _stages(replace(silent, same_answers=0.25)) == ["generation"]
    assert _stages(replace(silent, same_answers=0.25), "q4_0") == []


def test_answers_count_with_the_right_scores_too() -> None:
    """A penalty or a sampling default of the server changes the answers of the right weights."""
    assert _stages(replace(SOUND, same_answers=0.0)) == ["generation"]
    cut = [Kept("", 0, finished=False)] * 2
    assert _stages(figures_of(None, ANSWERS, OF_BASE, cut, {})) == ["generation"]


def test_an_answer_that_goes_on_where_the_trained_model_ended_is_an_end_token_missing() -> None:
    served = [Kept("short and then", 5, finished=False), ANSWERS[1]]
    found = figures_of(None, ANSWERS, OF_BASE, served, {})
    assert found.endless == 1
    assert _stages(found)[0] == "end token"
