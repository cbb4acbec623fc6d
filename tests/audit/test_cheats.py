"""One-feature rules: each finds what was planted, chance fools none of them, and the numbers are right."""

from __future__ import annotations

import random

import pytest

from preftune.audit.finding import Finding
from preftune.audit.shortcuts import RULES
from preftune.data.tokens.encode import Encoder
from tests.audit.made_up import clean_rows, found, run
from tiny import tiny_tokenizer

PLANTED = {
    "lists": "\n- one\n- two",
    "markdown": " **bold**",
    "code": " `code`",
    "paragraphs": "\n\nAnd so on.",
    "digits": " 4711",
    "exclamations": " Well!",
    "emoji": " 🙂",
    "question": " Is it so?",
}


def named(rows: list[dict[str, str]], name: str) -> Finding:
    return next(finding for finding in run(rows).findings if finding.name == name)


@pytest.mark.parametrize("rule", PLANTED)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_planted_feature_is_found(rule: str, side: str) -> None:
    rows = clean_rows()
    for row in rows[:40]:
        row[side] += PLANTED[rule]
    finding = named(rows, f"shortcut_{rule}")
    assert finding.count == 40
    assert finding.figures["accuracy"] == (1.0 if side == "chosen" else 0.0)
    assert finding.figures["decided"] == pytest.approx(40 / 60)
    words = RULES[rule].more if side == "chosen" else RULES[rule].less
    assert f"The answer with {words} is the chosen one in 100% of the pairs" in finding.detail


@pytest.mark.parametrize("words", ["I'm sorry, but I can't help with that. ", "As an AI language model, I cannot. "])
def test_refusals(words: str) -> None:
    rows = clean_rows()
    for row in rows[:30]:
        row["rejected"] = words + row["rejected"]
    finding = named(rows, "shortcut_refusal")
    assert (finding.count, finding.figures["accuracy"]) == (30, 0.0)
    assert "no refusal" in finding.detail


def test_first_letters_are_learnt_on_one_half_and_tried_on_the_other() -> None:
    rows = clean_rows()
    for row in rows:
        row["chosen"], row["rejected"] = f"Quite so: {row['chosen']}", f"Zero of it: {row['rejected']}"
    assert named(rows, "shortcut_first_letter").figures["accuracy"] == 1.0


def test_letters_of_noise_do_not_beat_chance() -> None:
    accuracy = run(clean_rows(1000)).figures["cheats"]["first_letter"]["accuracy"]
    assert 0.45 < accuracy < 0.55


def test_length_bias_by_hand() -> None:
    rows = clean_rows()
    for number, row in enumerate(rows):
        row["chosen"], row["rejected"] = (
            ("w " * 9 + str(number), f"{number} w") if number < 45 else (f"{number} w", "w " * 9 + str(number))
        )
    finding = named(rows, "length_bias")
    assert finding.count == 45
    assert finding.figures["accuracy"] == 0.75
    # Wilson's interval with Student's t on 59 degrees of freedom, and n = m(1-m)/var with var = m(1-m)/59
    t, n = 2.0009954, 59
    centre, half = (0.75 + t * t / (2 * n)), t * (0.75 * 0.25 / n + t * t / (4 * n * n)) ** 0.5
    assert finding.figures["low"] == pytest.approx((centre - half) / (1 + t * t / n), abs=1e-6)
    assert finding.figures["high"] == pytest.approx((centre + half) / (1 + t * t / n), abs=1e-6)


def test_many_pairs_of_one_prompt_are_one_observation() -> None:
    rows = clean_rows(60)
    for number, row in enumerate(rows):
        row["chosen"] += " and some more words at its end"
        row["prompt"] = f"Prompt number {number % 5}?"
    result = run(rows)
    assert result.figures["cheats"]["longer"]["prompts"] == 5
    assert "length_bias" not in found(result)


def test_chance_alone_is_no_finding() -> None:
    for seed in range(5):
        rows = clean_rows(200, seed=seed)
        random_ = random.Random(seed)
        for row in rows:
            for side in ("chosen", "rejected"):
                row[side] += random_.choice(list(PLANTED.values()))
        assert {name for name in found(run(rows)) if name.startswith(("shortcut", "length"))} == set()


def test_a_huge_line_of_brackets_takes_no_time_to_speak_of() -> None:
    rows = clean_rows(30)
    rows[3]["chosen"] = "[" * 300_000  # a rule that looks ahead from each of them would take hours
    rows[4]["chosen"] = "(" * 100_000 + "**" * 50_000 + "`" * 99_999 + "| " * 50_000
    assert run(rows).pairs == 30


@pytest.mark.parametrize("tokenised", [False, True])
def test_what_users_say_between_the_answers_is_no_feature_of_the_answers(tokenised: bool) -> None:
    """Long questions with lists, digits and emoji on the chosen side only, and answers like the clean ones."""

    def conversation(row: dict[str, str], side: str, question: str) -> list[dict[str, str]]:
        opening = {"role": "user", "content": question}
        return [opening, {"role": "assistant", "content": row[side]}]

    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "Hello there."}],
            "chosen": conversation(row, "chosen", "And WELL! **so** 🙂 `1`\n- 2\n- 3 " * 10),
            "rejected": conversation(row, "rejected", "so?"),
        }
        for row in clean_rows()
    ]
    encoder = Encoder(tiny_tokenizer()) if tokenised else None
    assert set(found(run(rows, encoder=encoder, near_duplicates=False))) == {"several_turns"}
    for row in rows:
        row["chosen"][1] = {"role": "assistant", "content": row["chosen"][1]["content"] + " and on and on and on"}
    assert "length_bias" in found(run(rows, encoder=encoder, near_duplicates=False))
