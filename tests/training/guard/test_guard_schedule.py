"""When the guard looks: measured costs against the budget, with a clock that is told what time it is."""

from __future__ import annotations

import pytest

from preftune.training.guard.schedule import (
    LEAST_SECONDS,
    LOOKS_WANTED,
    MOST_LOOKS,
    SIZES,
    Costs,
    Schedule,
    allowed_seconds,
    size_for,
)


def run(
    *, budget: float, steps: int, step_seconds: float, look: float, before: float = 0.0, suspicious: int | None = None
):
    """Steps at which a run is looked at, and the share of its time that took."""
    schedule = Schedule(budget, steps, look_seconds=look)
    schedule.spend(before)
    looked = []
    for step in range(1, steps + 1):
        if schedule.due(step, step * step_seconds, suspicious=suspicious == step):
            schedule.looked(step, look)
            looked.append(step)
    return looked, schedule.spent / (schedule.spent + steps * step_seconds)


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("look", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("steps", [10, 32, 1000])
def test_what_is_spent_stays_within_the_budget(budget, look, steps):
    looked, share = run(budget=budget, steps=steps, step_seconds=2.0, look=look, before=1.0)
    assert share <= budget or not looked
    assert len(looked) <= 2 * MOST_LOOKS


@pytest.mark.parametrize("suspicious", [2, 5, 30])
def test_a_suspicion_is_looked_at_once_and_within_the_budget(suspicious):
    looked, share = run(budget=0.05, steps=100, step_seconds=3.0, look=4.0, suspicious=suspicious)
    assert suspicious in looked
    assert share <= 0.05


def test_the_first_look_comes_early_and_the_rest_ever_further_apart():
    looked, _ = run(budget=0.05, steps=1000, step_seconds=2.0, look=10.0)
    gaps = [b - a for a, b in zip([0, *looked], looked, strict=False)]
    assert looked[0] <= 60
    assert gaps == sorted(gaps)
    assert len(looked) >= 8


def test_a_single_look_comes_in_the_first_half():
    looked, _ = run(budget=0.05, steps=30, step_seconds=3.0, look=4.0)
    assert len(looked) == 1
    assert looked[0] <= 11


def test_cheap_looks_are_not_taken_at_every_step():
    looked, share = run(budget=0.5, steps=2000, step_seconds=2.0, look=0.001)
    assert len(looked) <= MOST_LOOKS
    assert share < 0.001


def test_nothing_is_looked_at_twice_or_without_a_budget():
    schedule = Schedule(0.5, 100, look_seconds=0.1)
    assert schedule.due(50, 100.0)
    schedule.looked(50, 0.1)
    assert not schedule.due(50, 100.0, suspicious=True)
    assert run(budget=0.0, steps=100, step_seconds=2.0, look=0.1)[0] == []


def test_a_look_that_took_longer_than_expected_makes_the_rest_fewer():
    schedule = Schedule(0.05, 100, look_seconds=0.1)
    assert schedule.affordable(10, 20.0) > 20
    schedule.looked(10, 5.0)
    assert schedule.affordable(10, 20.0) == 1
    schedule.looked(20, 1.0)
    assert schedule.look_seconds == pytest.approx(3.0)  # the mean, where the last was cheaper


def test_a_resumed_run_counts_from_where_it_goes_on():
    schedule = Schedule(0.05, 1000, first_step=900, look_seconds=1.0)
    assert schedule.allowance(910, 20.0) == pytest.approx(0.05 / 0.95 * 200)
    assert not schedule.due(901, 2.0)


def costs(**values: float) -> Costs:
    return Costs(
        **{"answers": 1.0, "per_token": 0.002, "tokens_per_pair": 100, "tokens_per_prompt": 40, "spent": 1.0, **values}
    )


def test_the_size_is_the_largest_that_lets_enough_looks_be_paid():
    sizes = [size_for(seconds, 0.05, costs()) for seconds in (30, 120, 600, 3000, 30000)]
    assert sizes[0] is None
    assert sizes[1] == SIZES[-1]
    assert sizes[-1] == SIZES[0]
    order = [len(SIZES) if size is None else SIZES.index(size) for size in sizes]
    assert order == sorted(order, reverse=True)
    for seconds, size in zip((600, 3000, 30000), sizes[2:], strict=True):
        assert size is not None
        spent = 1.0 + costs().before(size) + LOOKS_WANTED * costs().of_look(size)
        assert spent <= allowed_seconds(seconds, 0.05)


def test_a_number_of_prompts_that_is_asked_for_is_kept():
    size = size_for(30000, 0.05, costs(), prompts=20)
    assert size is not None
    assert size.prompts == 20


def test_more_answers_and_longer_ones_cost_more():
    looks = [costs().of_look(size) for size in SIZES]
    assert looks == sorted(looks, reverse=True)
    assert costs().before(SIZES[-1]) == 0.0
    assert LEAST_SECONDS > 0
