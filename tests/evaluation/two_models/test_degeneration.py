"""Loops, sameness, languages and refusals: what is found, and what must raise no alarm."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from preftune.evaluation.two_models import degeneration
from preftune.evaluation.two_models.degeneration import Degeneration, excerpt
from preftune.evaluation.two_models.types import AnsweredRow
from preftune.text_quality.single_answer import look_at
from tests.text_quality.test_repetition import GERMAN, PROSE


def compare(ids: Any, prompts: Any, base: Any, aligned: Any, **more: Any) -> Degeneration:
    known = {name: more.get(name) or [1] * len(ids) for name in ("base_tokens", "aligned_tokens")}
    known |= {name: more.get(name) or [True] * len(ids) for name in ("base_finished", "aligned_finished")}
    columns = {"id": ids, "prompt": prompts, "base": base, "aligned": aligned, **known}
    return degeneration.compare([AnsweredRow(**{k: v[n] for k, v in columns.items()}) for n in range(len(ids))])


def _pair(rows: int, *, broken: int, base_broken: int = 0) -> Degeneration:
    rng = np.random.default_rng(0)
    vocabulary = PROSE.split()
    good = [" ".join(rng.choice(vocabulary, 40)) for _ in range(rows)]
    also = [" ".join(rng.choice(vocabulary, 40)) for _ in range(rows)]
    loop = "so it goes and goes on " * 10
    return compare(
        [str(n) for n in range(rows)],
        [f"Tell me about number {n}" for n in range(rows)],
        [loop if n < base_broken else text for n, text in enumerate(good)],
        [loop if n < broken else text for n, text in enumerate(also)],
        base_finished=[True] * rows,
        aligned_finished=[n >= broken for n in range(rows)],
        base_tokens=[50] * rows,
        aligned_tokens=[80 if n < broken else 50 for n in range(rows)],
    )


def test_two_models_side_by_side() -> None:
    found = _pair(100, broken=12, base_broken=2)
    repeats = found.figures["repeats"]
    assert (repeats.base, repeats.aligned) == (0.02, 0.12)
    # of 100 differences ten are 1: sd sqrt(.09 * 100/99), t(99) = 1.98422
    assert repeats.ci_high - 0.1 == pytest.approx(1.98422 * (0.09 / 99) ** 0.5, abs=1e-5)
    assert {"repeats", "unfinished", "repeated"} <= set(found.worse)
    assert found.worst["repeats"][0].id == "2"  # the first that the base did not spoil as well
    sentence = found.sentences()[0]
    assert sentence.startswith("The aligned model repeats itself in 12% of its answers, the base model in 2% ")
    assert "worst: “Tell me about number 2”" in sentence
    assert any("does not end 12% of its answers, the base model 0%" in line for line in found.sentences())
    assert any("54 tokens instead of 50" in line for line in found.sentences())
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert kept["figures"]["repeats"]["better"] == "lower"
    assert kept["worst"]["repeats"][0]["prompt"] == "Tell me about number 2"


def test_two_models_alike_are_reported_so() -> None:
    found = _pair(60, broken=0)
    assert found.worse == []
    assert found.sentences()[0].startswith("No sign of degeneration in 60 answers")
    assert "repeats" not in found.worst


def test_one_broken_answer_may_be_chance() -> None:
    found = _pair(60, broken=1)
    assert "repeats" not in found.worse
    assert any("repeats itself in 2%" in line and "can be chance" in line for line in found.sentences())


def test_one_row_has_no_interval() -> None:
    one = compare(["a"], ["Why?"], ["Because it rains."], [""])
    assert "self_similarity" not in one.figures
    assert one.figures["empty"].aligned == 1
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["figures"]["empty"]["ci_low"] is None
    assert any("leaves empty 100%" in line for line in one.sentences())


def test_vowel_signs_are_part_of_their_word() -> None:
    assert look_at("\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e \u0939\u0948\u0964").words == 3
    assert look_at("\u0628\u0650\u0633\u0652\u0645\u0650 \u0627\u0644\u0644\u0651\u064e\u0647\u0650").words == 2
    assert look_at("\U0001f468\u200d\U0001f469").words == 0


def test_what_no_one_sees_is_empty() -> None:
    assert look_at("\u200b \u2060\n").empty
    assert not look_at("\U0001f600").empty


def test_two_answers_are_not_beyond_chance() -> None:
    found = compare(["a", "b"], ["p", "q"], ["", ""], ["It rains.", "It snows."])
    assert not found.figures["empty"].shown
    many = [str(n) for n in range(12)]
    assert compare(many, many, ["It rains."] * 12, [""] * 12).worse == ["empty"]


def test_rounding_is_no_difference() -> None:
    found = compare(["a", "b"], ["p", "q"], ["", ""], ["a b c d"] * 2)
    assert not found.figures["self_similarity"].shown


def test_a_prompt_cannot_command_the_terminal() -> None:
    assert excerpt("a \x1b[31mred\x1b[0m \u202e one") == "\u201ca [31mred[0m  one\u201d"


def test_refusals_and_languages_of_two_models() -> None:
    asked = [f"What should I look at when I visit the city of number {n}?" for n in range(20)]
    answers = [PROSE] * 20
    found = compare(
        [str(n) for n in range(20)],
        [[{"role": "user", "content": text}] for text in asked],
        answers,
        [GERMAN] * 10 + ["I can't help with that."] * 10,
    )
    assert found.figures["language_switch"].difference == 0.5
    assert found.figures["refusals"].difference == 0.5
    assert "language_switch" in found.worse
    assert "refusals" not in found.worse  # wanted or not, only the prompt says
    assert any("refuses in 50% of its answers, the base model in 0%" in line for line in found.sentences())


def test_rows_of_one_prompt_are_one_cluster() -> None:
    once = compare(["a", "b"], ["p", "q"], [PROSE, PROSE], ["", PROSE])
    many = compare(list("abcdef"), list("ppppqq"), [PROSE] * 6, [""] * 4 + [PROSE] * 2)
    assert many.prompts == once.prompts == 2
    assert many.figures["empty"].ci_high - many.figures["empty"].ci_low > 1


def test_the_interval_of_self_similarity_covers_no_difference() -> None:
    """A U-statistic: with the plain standard error about 83% of the intervals would."""
    rng = np.random.default_rng(5)
    words = np.array([f"w{n}" for n in range(6)])
    covered = 0
    for _ in range(150):
        texts = [" ".join(rng.choice(words, 6)) for _ in range(40)]
        found = compare(list(map(str, range(20))), list(map(str, range(20))), texts[:20], texts[20:])
        figure = found.figures["self_similarity"]
        covered += figure.ci_low <= 0 <= figure.ci_high
    assert covered >= 0.9 * 150
