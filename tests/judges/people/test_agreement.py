"""A judge against people's labels: every figure by hand, and the biases that were planted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from preftune.data import load_pairs
from preftune.errors import DatasetError, RequestError
from preftune.judges.people.agreement import Agreement, agreement, judge_labels, questions_of
from preftune.judges.people.labels import HumanLabel, load_labels
from preftune.judges.rules import LengthJudge

SHORT, LONG = "brief", "rather long and wordy"


def label(number: int, said: str, *, prompt: str | None = None, a: str = SHORT, b: str = LONG, votes=()) -> HumanLabel:
    return HumanLabel(str(number), prompt or f"p{number}", f"{a} {number}a", f"{b} {number}b", said, {}, tuple(votes))


class Scripted:
    """Says what a table says: row number -> verdict on (a, b), verdict on (b, a)."""

    name = "scripted"

    def __init__(self, table: dict[int, tuple[str | None, str | None]]) -> None:
        self._table = table

    def judge_all(self, questions, *, again=False, progress=None):
        return [self(*question) for question in questions]

    def __call__(self, prompt, answer_a, answer_b, row):
        number, place = int(answer_a.split()[-1][:-1]), answer_a[-1]
        return self._table[number][0 if place == "a" else 1]


def measured(labels, table, **options) -> Agreement:
    judge = Scripted(table)
    return agreement(judge_labels(labels, judge), judge, **options)


def test_by_hand() -> None:
    labels = [label(0, "a"), label(1, "a"), label(2, "b"), label(3, "tie"), label(4, "b")]
    # agrees; says the first place twice (contradiction, a tie); opposes; agrees on the tie; wavers (a tie)
    found = measured(labels, {0: ("a", "b"), 1: ("a", "a"), 2: ("a", "b"), 3: ("tie", "tie"), 4: ("b", "tie")})
    assert found.n == 5
    assert found.agreement.value == pytest.approx((1 + 0.5 + 0 + 1 + 0.5) / 5)
    assert (found.decided.value, found.decided.n) == (0.5, 2)
    assert found.judge_ties == pytest.approx(3 / 5)
    assert found.human_ties == pytest.approx(1 / 5)
    assert found.contradicted.value == pytest.approx(1 / 5)
    assert found.wavered == pytest.approx(1 / 5)
    # preferences: row 0 a first / a second, row 1 first / first, row 2 first / second, row 4 second: 4 of 7 first
    assert (found.first_place.value, found.first_place.n) == (pytest.approx(4 / 7), 7)
    # b is always the longer: the judge took a twice; people took b twice of four
    assert found.judge_longer.value == 0
    assert found.human_longer.value == 0.5
    assert found.length_bias.value == pytest.approx((0 - 0 + 0 - 1) / 2)
    assert found.longer_rule.value == pytest.approx((0 + 0 + 1 + 0.5 + 1) / 5)
    assert found.on_shorter.value == pytest.approx(0.75)
    assert found.on_longer.value == pytest.approx(0.25)
    # kappa: 2 of 5 match exactly; ties 0.6 and 0.2: expected 0.12 + 0.4 * 0.8 / 2
    assert found.kappa.value == pytest.approx((0.4 - 0.28) / (1 - 0.28))
    assert found.two_people is None


def test_a_perfect_judge_and_a_coin() -> None:
    rng = np.random.default_rng(0)
    said = ["a" if x else "b" for x in rng.integers(0, 2, 200)]
    labels = [label(n, s) for n, s in enumerate(said)]
    perfect = measured(labels, {n: (s, "b" if s == "a" else "a") for n, s in enumerate(said)})
    assert perfect.agreement.value == perfect.kappa.value == 1
    assert perfect.sentences()[1].startswith("No position or length bias is shown")
    first = measured(labels, dict.fromkeys(range(200), ("a", "a")))
    assert first.agreement.value == 0.5
    assert first.contradicted.value == first.first_place.value == 1
    text = " ".join(first.sentences())
    assert "not shown to be better than tossing a coin" in text
    assert "Position bias: it contradicts itself in 100%" in text
    assert "prefers the first place" in text


def test_a_judge_that_only_ties_is_no_better_than_length() -> None:
    said = [label(i, "tie" if i % 2 else "ab"[i // 2 % 2]) for i in range(80)]
    text = " ".join(measured(said, dict.fromkeys(range(80), ("tie", "tie"))).sentences())
    assert "prefers no answer in any comparison" in text
    assert "better than the length of the answers" not in text


def test_kappa_does_not_depend_on_what_stands_first() -> None:
    """With the chosen answer always first, the usual kappa would be 0 for every judge."""
    labels = [label(n, "a") for n in range(50)]
    found = measured(labels, {n: ("a", "b") if n < 40 else ("b", "a") for n in range(50)})
    assert found.kappa.value == pytest.approx((0.8 - 0.5) / 0.5)
    assert found.kappa.ci_low < 0.6 < found.kappa.ci_high


def test_a_planted_length_bias_is_found() -> None:
    rng = np.random.default_rng(1)
    labels, table = [], {}
    for n in range(300):
        a_longer = bool(rng.integers(0, 2))
        people = "a" if rng.random() < (0.6 if a_longer else 0.4) else "b"
        labels.append(label(n, people, a=LONG if a_longer else SHORT, b=SHORT if a_longer else LONG))
        said = people if rng.random() < 0.5 else ("a" if a_longer else "b")
        table[n] = (said, "b" if said == "a" else "a")
    found = measured(labels, table)
    assert found.length_bias.ci_low > 0.1
    assert any(line.startswith("Length bias: it takes the longer answer in") for line in found.sentences())
    assert found.judge_longer.value == pytest.approx(0.8, abs=0.05)
    assert found.on_longer.value > found.on_shorter.value + 0.3
    assert found.above_longer.value == pytest.approx(found.agreement.value - found.longer_rule.value)


def test_a_judge_no_better_than_length_is_reported_so() -> None:
    labels = [label(n, "b" if n % 5 else "a") for n in range(60)]
    judge = LengthJudge(prefer="longer")
    found = agreement(judge_labels(labels, judge), judge)
    assert found.contradicted is found.first_place is found.wavered is None
    assert len(questions_of(labels, judge)) == 60
    assert "not shown to be better than taking the longer answer" in found.sentences()[1]


@pytest.mark.parametrize("said", ["a", "b"])
def test_three_judgements_that_are_all_alike_show_nothing(said: str) -> None:
    """No interval of a difference or of kappa is without width, and no bias is reported."""
    labels = [label(n, "a") for n in range(3)]
    found = measured(labels, dict.fromkeys(range(3), (said, "b" if said == "a" else "a")))
    for rate in (found.above_longer, found.length_bias, found.kappa):
        assert rate is not None
        assert rate.ci_high - rate.ci_low > 0.5
        assert rate.ci_low <= rate.value <= rate.ci_high
    text = " ".join(found.sentences())
    assert "not shown to be better than tossing a coin" in text
    assert "Length bias" not in text
    assert "the shorter answer more often" not in text


def test_unread_verdicts_are_left_out_and_said() -> None:
    labels = [label(0, "a"), label(1, "a"), label(2, "a")]
    found = measured(labels, {0: ("a", None), 1: ("a", "b"), 2: ("a", "b")})
    assert (found.n, found.unjudged) == (2, 1)
    assert any("--ask_again" in line for line in found.sentences())
    with pytest.raises(DatasetError, match=r"No verdict of scripted.*--judge_max_tokens"):
        measured(labels[:1], {0: (None, None)})


def test_judgements_of_one_prompt_are_one_cluster() -> None:
    said = ["a" if n % 3 else "b" for n in range(60)]
    table = dict.fromkeys(range(60), ("a", "b"))
    free = measured([label(n, said[n]) for n in range(60)], table)
    tied = measured([label(n, said[n], prompt=f"p{n % 12}") for n in range(60)], table)
    assert (free.prompts, tied.prompts) == (60, 12)
    assert tied.agreement.ci_high - tied.agreement.ci_low > 1.5 * (free.agreement.ci_high - free.agreement.ci_low)


def test_what_annotators_say_of_each_other_is_the_ceiling() -> None:
    # pairs of three votes: all the same 1, two the same 1/3
    labels = [label(0, "a", votes=["a", "a", "a"]), label(1, "a", votes=["a", "a", "b"])]
    found = measured(labels, dict.fromkeys(range(2), ("a", "b")))
    assert found.two_people.value == pytest.approx(2 / 3)
    assert "two people agree in 66.7%" in found.sentences()[0]
    json.dumps(found.to_dict(), allow_nan=False)


PAIRS = [
    {"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "meta": {"votes": [1, 1, 2]}} for n in range(40)
]


def test_pairs_are_judgements_whose_places_are_drawn() -> None:
    labels = load_labels(PAIRS).labels
    assert all((x.answer_a if x.label == "a" else x.answer_b).startswith("good") for x in labels)
    assert 8 < sum(x.label == "a" for x in labels) < 32
    assert labels == load_labels(PAIRS).labels
    assert labels[0].votes == ("1", "1", "2")
    turns = [{"prompt": [{"role": "user", "content": "p"}], "chosen": [{"role": "assistant", "content": "good"}]}]
    (chat,) = load_labels([{**turns[0], "rejected": [{"role": "assistant", "content": "bad"}]}]).labels
    assert {chat.answer_a, chat.answer_b} == {"good", "bad"}


def test_rows_with_a_label_may_hold_ties() -> None:
    rows = [{"prompt": "p", "answer_a": "x", "answer_b": "y", "label": said} for said in ("a", "B", "model_a", "Tie")]
    assert [x.label for x in load_labels(rows).labels] == ["a", "b", "a", "tie"]
    renamed = [{"q": "p", "one": "x", "two": "y", "won": "a", "agreement": 0.75}]
    names = {"prompt": "q", "answer_a": "one", "answer_b": "two", "label": "won"}
    with pytest.raises(DatasetError):
        load_labels(renamed)
    (found,) = load_labels(renamed, columns=names).labels
    assert (found.prompt, found.agreement) == ("p", None if "agreement" not in renamed[0] else 0.75)


def test_a_limit_is_drawn_at_random_and_said() -> None:
    some = load_labels(PAIRS, limit=10, seed=3)
    assert len(some.labels) == 10
    assert some.rows == 40
    assert "10 of 40 judgements, drawn at random (seed 3)" in some.notes[-1]
    assert [x.prompt for x in some.labels] != [f"p{n}" for n in range(10)]


def test_data_without_judgements_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"row 1: 'label' is 'c', which does not name the better.*'a', 'b' or 'tie'"):
        load_labels([{"prompt": "p", "answer_a": "x", "answer_b": "y", "label": said} for said in ("a", "c")])
    with pytest.raises(DatasetError, match="row 0: a judgement needs a prompt and two answers"):
        load_labels([{"prompt": "", "answer_a": "x", "answer_b": "y", "label": "a"}])
    with pytest.raises(RequestError, match="--limit 0"):
        load_labels(PAIRS, limit=0)


def test_two_labelled_outputs_are_judgements_ties_too() -> None:
    """The columns of LLMBar, AlpacaFarm and JudgeBench."""
    llmbar = [
        {"input": "2+2?", "output_1": "4", "output_2": "5", "label": 1},
        {"input": "3+3?", "output_1": "7", "output_2": "6", "label": 2},
        {"input": "1+1?", "output_1": "2", "output_2": "two", "label": 0},
    ]
    labels = load_labels(llmbar).labels
    assert [(one.prompt, one.answer_a, one.answer_b, one.label) for one in labels] == [
        ("2+2?", "4", "5", "a"),
        ("3+3?", "7", "6", "b"),
        ("1+1?", "2", "two", "tie"),
    ]
    farm = [{"instruction": "Add.", "input": "2 and 2", "output_1": "4", "output_2": "5", "preference": 1.02}]
    assert [(one.prompt, one.label) for one in load_labels(farm).labels] == [("Add.\n\n2 and 2", "a")]
    bench = [{"question": "2+2?", "response_A": "5", "response_B": "4", "label": "B>A"}]
    assert [(one.answer_a, one.label) for one in load_labels(bench).labels] == [("5", "b")]


def test_labels_of_0_and_1_alone_are_not_guessed() -> None:
    """0 is the first output in some data, and a tie in others."""
    rows = [{"input": f"{n}?", "output_1": "4", "output_2": "5", "label": n % 2} for n in range(4)]
    for read in (load_labels, load_pairs):
        with pytest.raises(DatasetError, match="'label' holds only 0 and 1"):
            read(rows)
    assert [one.label for one in load_labels(rows, format="labelled-outputs").labels] == ["tie", "a"] * 2
    assert len(load_pairs(rows, format="labelled-outputs")) == 2


def test_what_gives_no_judgement_is_said_once() -> None:
    rated = [{"prompt": f"{i}?", "completions": ["yes", "no"], "scores": [5, 5 if i == 2 else 1]} for i in range(4)]
    notes = load_labels(rated).notes
    assert len([note for note in notes if "two answers have the same rating" in note]) == 1
