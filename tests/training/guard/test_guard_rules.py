"""The guard's rules on made-up figures: each alarm where it belongs, none where it does not, one cause told once."""

from __future__ import annotations

import json
import math

import pytest

from preftune.training.guard.alarms import Alarm
from preftune.training.guard.figures import Facts, Glance, History, Look, Verdicts, history_of, pooled
from preftune.training.guard.rules import COVERS, RULES, new_alarms, suspicious

LN2 = math.log(2)
STEPS = 100
START = Glance(
    step=1, steps=1, pairs=8, loss=LN2, loss_change=0, margin=0, margin_rms=0, accuracy=0, chosen=0, rejected=0,
    chosen_tokens=50, rejected_tokens=50, copies=0, known=0, margin_known=0, longer=0.4, shorter=0.4, contained=0.3,
    accuracy_alike=0,
)  # fmt: skip
HEALTHY = {
    "loss": 0.4,
    "loss_change": 0.1,
    "margin": 8.0,
    "margin_rms": 10.0,
    "accuracy": 0.85,
    "chosen": 2.0,
    "rejected": -6.0,
}
"""Of steps after the first."""
LOOK = Look(
    step=20, answers=8, repeated=0.05, repeated_reference=0.05, looping=0.0, looping_reference=0.0, distinct_2=0.95,
    distinct_2_reference=0.95, tokens=50, tokens_reference=50, length_ratio=1.0, finished=0.9, finished_reference=0.9,
    self_similarity=0.05, self_similarity_reference=0.05, empty=0.0, empty_reference=0.0, refusals=0.0,
    refusals_reference=0.0, kl_per_token=0.05, kl_error=0.01, pairs=32, margin_held_out=0.8, margin_error=0.1,
    accuracy_held_out=0.85,
)  # fmt: skip


def history(*, steps: int = 20, look: Look | None = None, facts: Facts | None = None, **figures: float) -> History:
    """A run of `steps` steps, healthy but for what is said."""
    of_data = ("longer", "shorter", "contained", "chosen_tokens", "rejected_tokens")
    start = START._replace(**{name: figures[name] for name in of_data if name in figures})
    glances = [start._replace(step=step) for step in (1, 2)]
    glances += [START._replace(**{**HEALTHY, "step": step, **figures}) for step in range(3, steps + 1)]
    made = History(facts or Facts(beta=0.1, learning_rate=1e-5, full=False, steps=STEPS), glances)
    if look is not None:
        made.looks.append(look._replace(step=steps))
    return made


def judged(*high: float) -> History:
    """A healthy run whose evaluations have win rates with these upper ends of their intervals."""
    made = history()
    made.verdicts = [Verdicts(10 * number, "eval_", 0.3, 0.2, end) for number, end in enumerate(high)]
    return made


def names(made: History, raised: frozenset[str] = frozenset()) -> list[str]:
    return [alarm.name for alarm in new_alarms(made, raised)]


def facts(**values: float) -> Facts:
    return Facts(**{"beta": 0.1, "learning_rate": 1e-5, "full": False, "steps": STEPS, **values})


CASES = {
    "learning-rate-too-high": history(chosen=-80, rejected=-140, margin=60, margin_rms=200, loss=4.0, accuracy=0.6),
    "beta-too-low": history(
        facts=facts(beta=0.001), loss=0.685, loss_change=0.001, margin=15, margin_rms=16, chosen=2, rejected=-13
    ),
    "labels-look-random": history(
        steps=60, loss=0.7, margin=0.1, margin_rms=4, accuracy=0.51, chosen=0.2, rejected=0.1
    ),
    "duplicated-data": history(copies=0.9, known=0.9, margin_known=12.0, look=LOOK),
    "only-length-differs": history(longer=1.0, shorter=0.0, contained=0.97, chosen_tokens=80, rejected_tokens=40),
    "overfitting": history(
        known=1.0, margin_known=30, accuracy=0.99, loss=0.05, look=LOOK._replace(accuracy_held_out=0.6)
    ),
    "far-from-reference": history(look=LOOK._replace(kl_per_token=1.2)),
    "oscillating-loss": history(loss=1.2, loss_change=1.1),
    "repetition": history(look=LOOK._replace(looping=0.5, repeated=0.4)),
    "answers-alike": history(look=LOOK._replace(self_similarity=0.8)),
    "empty-answers": history(look=LOOK._replace(empty=0.5)),
    "missing-eos": history(look=LOOK._replace(finished=0.25)),
    "length-drift": history(look=LOOK._replace(tokens=120, length_ratio=2.4)),
    "judged-worse": judged(0.45, 0.4),
    "chosen-falls": history(chosen=-30, rejected=-45, margin=15, margin_rms=18, loss=0.3),
    "too-little-change": history(
        steps=40, loss=0.692, loss_change=0.001, margin=0.01, margin_rms=0.05, accuracy=0.55, chosen=0.02, rejected=0.01
    ),
    "flat-margin": history(steps=80, loss=0.67, margin=0.9, margin_rms=4, accuracy=0.6, chosen=0.5, rejected=-0.4),
}


def test_there_is_a_case_for_every_rule():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_each_trouble_raises_its_own_alarm_and_no_other(name):
    assert names(CASES[name]) == [name]


def test_one_evaluation_that_is_judged_worse_may_be_chance():
    assert names(judged(0.4)) == names(judged(0.4, 0.6)) == names(judged(0.4, 0.5, 0.4)) == []


def test_the_verdicts_of_a_resumed_run_are_those_of_its_metrics():
    made = judged(0.45, 0.4)
    lines = [
        {"step": one.step, "eval_loss": 1.0, "eval_win_rate": one.rate, "eval_win_rate_low": one.low,
         "eval_win_rate_high": one.high, "eval_win_rate_seconds": 2.0}
        for one in made.verdicts
    ]  # fmt: skip
    assert history_of(made.facts, lines).verdicts == made.verdicts


def test_a_loss_that_begins_near_zero_does_not_oscillate_by_chance():
    """SimPER is a difference of probabilities, and reward_aware a distance to ratings: neither begins at ln 2."""
    made = history(loss=0.002, loss_change=0.05, facts=facts(loss="simper", reference=False))
    made.glances[0] = made.glances[0]._replace(loss=0.003)
    assert names(made) == []


def test_without_a_reference_a_preference_for_short_answers_was_there_before():
    made = history(shorter=1.0, longer=0.0, contained=0.97, facts=facts(loss="cpo", reference=False))
    assert names(made) == []


@pytest.mark.parametrize("name", CASES)
def test_an_alarm_says_what_was_seen_the_cause_and_one_change_in_plain_sentences(name):
    (alarm,) = new_alarms(CASES[name], frozenset())
    for part in (alarm.seen, alarm.cause, alarm.remedy):
        assert part.endswith(".")
        assert part[0].isupper() or part[0].isdigit()
        assert "  " not in part
        assert "nan" not in part
    assert alarm.step == CASES[name].step
    assert all(math.isfinite(value) for value in alarm.figures.values())
    again = Alarm.from_dict(json.loads(json.dumps(alarm.to_dict())))
    assert again.sentence() == alarm.sentence()
    assert again.to_dict() == alarm.to_dict()


@pytest.mark.parametrize("look", [None, LOOK], ids=["no look", "a look"])
@pytest.mark.parametrize("steps", [1, 3, 10, 50, STEPS])
def test_a_healthy_run_raises_nothing(steps, look):
    made = history(steps=steps, look=look)
    assert names(made) == []
    assert not suspicious(made)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_reported_twice_and_what_an_alarm_explains_is_not_reported(name):
    assert names(CASES[name], frozenset({name})) == []
    for cause, covered in COVERS.items():
        if name in covered:
            assert names(CASES[name], frozenset({cause})) == []


def test_every_name_that_covers_or_is_covered_is_a_rule():
    assert set(COVERS) <= set(RULES)
    assert set().union(*COVERS.values()) <= set(RULES)


# --- directions that tutorials have the wrong way round ---


def test_a_low_beta_is_answered_with_a_higher_one_and_too_little_change_with_a_lower_one():
    assert "Raise beta" in new_alarms(CASES["beta-too-low"], frozenset())[0].remedy
    assert ("a lower beta also lets the policy move further") in new_alarms(CASES["too-little-change"], frozenset())[
        0
    ].remedy
    repetition = new_alarms(CASES["repetition"], frozenset())[0]
    assert "Halve the learning rate first" in repetition.remedy
    assert "raise beta to 0.2 to 0.5" in repetition.remedy


# --- what must not be an alarm ---


def test_a_usual_beta_far_apart_is_not_too_low():
    assert names(history(margin=60, margin_rms=65, loss=0.02, chosen=-5, rejected=-65)) == []


def test_long_answers_may_be_apart_by_as_much_with_a_low_beta():
    long = {"chosen_tokens": 400.0, "rejected_tokens": 400.0}
    made = history(facts=facts(beta=0.005), loss=0.66, margin=14, margin_rms=15, chosen=-10, rejected=-24, **long)
    assert names(made) == []


def test_weak_but_real_preferences_are_not_taken_for_random_labels():
    """58% of the pairs, over many: each pair alone says little, together they say enough."""
    made = history(steps=90, loss=0.66, margin=1.0, margin_rms=5, accuracy=0.58, chosen=0.5, rejected=-0.5)
    assert "labels-look-random" not in names(made)


def test_random_labels_are_not_asked_after_before_anything_moved():
    assert names(history(steps=30, loss=0.69, margin=0.0, margin_rms=0.4, accuracy=0.5, chosen=0, rejected=0)) == []


def test_a_second_epoch_is_no_duplicated_data():
    made = history(steps=80, facts=facts(epochs=2.0), copies=0.0, known=1.0, margin_known=8.0)
    assert names(made) == []


def test_copies_in_a_later_epoch_are_not_counted():
    made = history(steps=80, facts=facts(epochs=2.0))
    made.glances[60:] = [glance._replace(copies=1.0) for glance in made.glances[60:]]
    assert names(made) == []


def test_some_copies_are_a_note():
    made = history(steps=60, copies=0.2, known=0.2, margin_known=8.0)
    (alarm,) = new_alarms(made, frozenset())
    assert (alarm.name, alarm.level) == ("duplicated-data", "note")


def test_one_sided_lengths_with_other_differences_are_a_note_and_only_if_answers_follow():
    assert names(history(longer=0.0, shorter=1.0, look=LOOK)) == []
    (alarm,) = new_alarms(history(longer=0.0, shorter=1.0, look=LOOK._replace(length_ratio=0.6)), frozenset())
    assert (alarm.name, alarm.level) == ("only-length-differs", "note")
    assert "shorter" in alarm.seen


def test_answers_between_the_references_length_and_the_chosen_ones_do_not_drift():
    short = {"chosen_tokens": 10.0}
    assert names(history(look=LOOK._replace(tokens=12, length_ratio=0.24), **short)) == []


def test_a_reference_that_repeats_itself_excuses_the_policy():
    assert names(history(look=LOOK._replace(looping=0.5, looping_reference=0.4))) == []


def test_one_odd_answer_is_no_alarm():
    assert names(history(look=LOOK._replace(answers=4, looping=0.25, empty=0.25, finished=0.65))) == []


def test_a_distance_within_its_error_is_no_alarm():
    assert names(history(look=LOOK._replace(kl_per_token=0.9, kl_error=0.2))) == []


def test_a_few_pairs_are_not_looked_at():
    glances = [START._replace(pairs=2), START._replace(step=2, pairs=2, loss=9.0, chosen=-900, margin_rms=900)]
    assert names(History(facts(), glances)) == []


def test_half_of_an_alarm_is_suspicious():
    assert suspicious(history(chosen=-30, margin_rms=30))
    assert suspicious(history(loss=1.2))


# --- figures ---


def test_pooling_weighs_by_pairs_and_gives_back_what_was_split():
    one = START._replace(pairs=3, margin=1.0, margin_rms=2.0, known=1.0, margin_known=1.0, loss=1.0, loss_change=0.3)
    two = START._replace(step=2, pairs=1, margin=5.0, margin_rms=6.0, loss=0.0, loss_change=0.4)
    both = pooled([one, two])
    assert both is not None
    assert (both.step, both.steps, both.pairs) == (2, 2, 4)
    assert both.margin == pytest.approx(2.0)
    assert both.margin_rms == pytest.approx(math.sqrt((3 * 4 + 36) / 4))
    assert (both.known, both.margin_known) == (0.75, 1.0)
    assert both.loss == 0.5  # by steps
    assert both.loss_change == pytest.approx(math.sqrt((0.09 + 0.16) / 2))
    assert pooled([]) is None


def test_the_error_of_the_margin_is_that_of_a_mean():
    margins = [1.0, 2.0, 4.0, 9.0]
    mean, rms = sum(margins) / 4, math.sqrt(sum(m * m for m in margins) / 4)
    spread = math.sqrt(sum((m - mean) ** 2 for m in margins) / 3)
    assert START._replace(pairs=4, margin=mean, margin_rms=rms).margin_error == pytest.approx(spread / 2)


def test_what_is_written_to_metrics_is_read_again():
    made = history(look=LOOK._replace(seconds=1.5, share_of_time=0.03))
    lines = [{"step": g.step, "time": 0.0, **g.to_metrics()} for g in made.glances]
    lines += [{"step": look.step, **look.to_metrics()} for look in made.looks]
    lines += [{"step": 7, "loss": 0.3}, {"loss": 1.0}, {"step": "x"}]
    again = history_of(made.facts, json.loads(json.dumps(lines)))
    for one, other in zip([*again.glances, *again.looks], [*made.glances, *made.looks], strict=True):
        measured = {name: value for name, value in other._asdict().items() if value is not None}
        assert {name: value for name, value in one._asdict().items() if value is not None} == pytest.approx(
            measured, rel=1e-5
        )
    assert Facts.from_dict({**made.facts.to_dict(), "new": 1}) == made.facts
