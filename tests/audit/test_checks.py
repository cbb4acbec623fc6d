"""Every check finds all that was planted for it, and nothing in clean data."""

from __future__ import annotations

import math
from typing import Any

import pytest

from preftune.audit import KINDS
from preftune.audit.checks.registry import CHECKS
from preftune.audit.checks.size import held_out_pairs, smallest_change
from preftune.audit.checks.text import damage_of
from tests.audit.made_up import Row, clean_chats, clean_rows, found, run


def test_clean_data_have_no_finding() -> None:
    assert found(run(clean_rows())) == {}
    assert found(run(clean_chats())) == {}
    assert found(run(clean_chats(system="Answer in English."))) == {}


def test_a_small_dataset_is_called_small() -> None:
    (finding,) = run(clean_rows(60)).findings
    assert (finding.name, finding.count) == ("few_pairs", 60)
    (finding,) = run(clean_rows(1100)).findings
    assert (finding.name, finding.severity) == ("fewer_than_recommended", "info")


def test_every_kind_of_finding_is_whole_and_has_a_name_of_its_own() -> None:
    kinds = [kind for check in CHECKS for kind in check.kinds]
    assert len({kind.name for kind in kinds}) == len(kinds) == len(KINDS)
    for kind in kinds:
        assert kind.severity in ("error", "warning", "info")
        assert kind.name == kind.name.lower()
        for sentence in (kind.effect, kind.fix):
            assert sentence.rstrip("=").endswith((".", "weight")), kind


def set_(rows: list[Row], column: str, values: dict[int, Any]) -> list[Row]:
    return [{**row, column: values[i]} if i in values else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "column", "planted", "shown"),
    [
        ("empty", "chosen", {4: "", 7: "  \n"}, [4, 7]),
        ("empty", "rejected", {0: "", 1: "", 2: "", 59: ""}, [0, 1, 2]),
        ("empty_prompt", "prompt", {3: "", 9: " "}, [3, 9]),
        ("unreadable", "chosen", {8: 12, 30: True}, [8, 30]),
        ("special_tokens", "rejected", {5: "Well <|im_end|> then", 6: "[INST] so [/INST]", 7: "Ends</s>"}, [5, 6, 7]),
        ("role_marks", "chosen", {2: "An answer here.\n\nHuman: and a question"}, [2]),
        (
            "encoding",
            "prompt",
            {1: "schÃ¶n und gÃ¼nstig", 2: "broken \ufffd character", 3: "a bell \x07 rings"},
            [1, 2, 3],
        ),
    ],
)
def test_planted_in_one_column(name: str, column: str, planted: dict[int, Any], shown: list[int]) -> None:
    result = found(run(set_(clean_rows(), column, planted)))
    assert result[name] == (len(planted), shown)
    assert set(result) <= {name, "refused"}


def test_a_null_is_an_unreadable_row_and_reported_to_stop_training() -> None:
    result = run(set_(clean_rows(), "rejected", {11: None}))
    assert found(result)["unreadable"] == (1, [11])
    (refused,) = [finding for finding in result.findings if finding.name == "refused"]
    assert "row 11 has no 'rejected'" in refused.detail
    assert result.pairs == 59


def test_identical_and_nearly_identical() -> None:
    rows = clean_rows()
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[4]["rejected"] = rows[4]["chosen"].replace(".", " !").upper()
    long = " ".join(f"word{i}" for i in range(100))
    rows[5]["chosen"], rows[5]["rejected"] = f"{long} right", f"{long} wrong"
    rows[6]["chosen"], rows[6]["rejected"] = "The capital of France is Paris.", "The capital of France is Lyon."
    rows[7]["chosen"], rows[7]["rejected"] = long, " ".join(reversed(long.split()))  # the same words, another order
    result = found(run(rows))
    assert result == {"identical": (1, [3]), "nearly_identical": (2, [4, 5])}


def test_duplicates_and_contradictions() -> None:
    rows = clean_rows()
    rows[20] = dict(rows[3])
    rows[21] = dict(rows[3])
    rows[30] = {**rows[4], "chosen": rows[4]["rejected"], "rejected": rows[4]["chosen"]}
    result = run(rows)
    names = found(result)
    assert names["duplicate_pairs"] == (2, [20, 21])
    assert names["contradictions"] == (2, [4, 30])
    assert names["repeated_prompts"] == (3, [20, 21, 30])
    assert set(names) == {"duplicate_pairs", "contradictions", "repeated_prompts"}
    assert [example["note"] for example in result.examples["contradictions"]] == [
        "the opposite in row 30",
        "the opposite in row 4",
    ]


def test_near_duplicates_of_prompts_and_pairs() -> None:
    rows = clean_rows()
    prompt = "Explain in a few words how a bridge of copper and walnut carries a silver dragon over the river at night"
    rows[10] = {**rows[10], "prompt": prompt}
    rows[40] = {**rows[40], "prompt": f"{prompt}, please"}
    rows[41] = {key: text.replace(".", "!").replace("?", " ?!") for key, text in rows[9].items()}
    names = found(run(rows))
    assert names["near_duplicate_prompts"] == (2, [40, 41])
    assert names["near_duplicate_pairs"] == (1, [41])
    assert found(run(rows, near_duplicates=False)) == {}


def test_pairs_of_one_prompt_are_no_near_duplicates_of_each_other() -> None:
    rows = clean_rows()
    for row in rows[1:4]:
        row["prompt"] = rows[0]["prompt"]
    rows[1]["chosen"] = rows[0]["chosen"]  # one answer, two rejected ones: ratings of several completions
    assert found(run(rows)) == {"repeated_prompts": (3, [1, 2, 3])}


def test_prompts_of_the_evaluation_data() -> None:
    rows, other = clean_rows(), clean_rows(50, seed=9)
    other[5]["prompt"] = rows[12]["prompt"]
    other[6]["prompt"] = rows[13]["prompt"].replace("How do I", "how, do I").upper()
    result = run(rows, other)
    names = found(result)
    assert names["eval_overlap"] == (1, [5])
    assert names["eval_near_overlap"] == (1, [6])
    assert set(names) == {"eval_overlap", "eval_near_overlap", "small_eval"}
    assert "training row 12" in result.examples["eval_overlap"][0]["note"]
    assert result.examples["eval_overlap"][0]["prompt"]["text"] == rows[12]["prompt"]
    assert set(found(run(rows, clean_rows(50, seed=9)))) == {"small_eval"}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_turns_out_of_order() -> None:
    rows = clean_chats()
    rows[1]["prompt"] = [turn("user", "one"), turn("user", "two")]
    rows[2]["prompt"] = [turn("user", "one"), turn("assistant", "two"), turn("system", "late"), turn("user", "three")]
    rows[3]["prompt"] = [turn("assistant", "I speak first"), turn("user", "do you")]
    rows[4]["chosen"] = [*rows[4]["chosen"], turn("user", "and then?")]
    rows[5]["prompt"] = [turn("user", "one"), turn("assistant", "It begins")]
    more = [turn("user", "what else?"), turn("assistant", "that")]
    rows[6]["chosen"], rows[6]["rejected"] = [*rows[6]["chosen"], *more], [*rows[6]["rejected"], *more]
    names = found(run(rows))
    assert names == {
        "roles_out_of_order": (3, [1, 2, 3]),
        "no_answer": (1, [4]),
        "continued_turn": (1, [5]),
        "several_turns": (1, [6]),
    }


def test_a_side_that_goes_on_with_a_question_continues_no_answer() -> None:
    rows = clean_chats()
    rows[5]["prompt"] = [*rows[5]["prompt"], turn("assistant", "It is so.")]
    for side, words in (("chosen", "Really?"), ("rejected", "Sure?")):
        rows[5][side] = [turn("user", words), *rows[5][side]]
    assert found(run(rows)) == {"several_turns": (1, [5])}


def test_a_held_out_set_of_few_prompts_is_small_however_many_pairs_it_has() -> None:
    other = [{**row, "prompt": f"Held-out prompt {i % 20}?"} for i, row in enumerate(clean_rows(4000, seed=9))]
    result = run(clean_rows(), other, near_duplicates=False)
    (finding,) = [finding for finding in result.findings if finding.name == "small_eval"]
    assert finding.detail.startswith("4,000 pairs of 20 different prompts can show a change of at least 23.")
    held_out = result.figures["size"]["held_out"]
    assert (held_out["pairs"], held_out["prompts"]) == (4000, 20)
    assert held_out["smallest_change"] == smallest_change(20)


def test_agreement_strength_and_weight() -> None:
    rows = set_(clean_rows(), "agreement", dict.fromkeys(range(60), 0.9) | {7: 0.55, 8: 0.5})
    rows = [{**row, "score_chosen": 8, "score_rejected": 3, "weight": 1.0} for row in rows]
    rows[9]["score_chosen"] = 1
    rows[10]["score_chosen"] = 3
    rows[11]["weight"] = 0.0
    result = run(rows)
    assert found(result) == {
        "low_agreement": (2, [7, 8]),
        "strength_against_label": (1, [9]),
        "no_strength": (1, [10]),
        "zero_weight": (1, [11]),
    }
    assert result.figures["labels"]["agreement"]["mean"] == pytest.approx((58 * 0.9 + 1.05) / 60)
    assert result.figures["labels"]["strength"]["max"] == 5


def test_sources_are_counted_and_a_lonely_one_is_reported() -> None:
    rows = [{**row, "topic": "cooking" if i < 55 else "law", "id": str(i)} for i, row in enumerate(clean_rows())]
    result = run(rows)
    assert result.figures["sources"]["topic"]["counts"] == {"cooking": 55, "law": 5}
    assert found(result)["one_source"][0] == 55
    even = [{**row, "meta": {"source": f"s{i % 3}", "note": str(i)}} for i, row in enumerate(clean_rows())]
    result = run(even)
    assert result.figures["sources"]["meta.source"]["counts"] == {"s0": 20, "s1": 20, "s2": 20}
    assert found(result) == {}


def test_what_a_format_leaves_out_is_counted_by_reason() -> None:
    rows: list[Row] = []
    for row in clean_rows(40):
        rows.append({"prompt": row["prompt"], "completion": row["chosen"], "label": True})
        rows.append({"prompt": row["prompt"], "completion": row["rejected"], "label": False})
    rows.append({"prompt": "Alone?", "completion": "Quite alone in here", "label": True})
    result = run(rows)
    assert (result.rows, result.pairs) == (81, 40)
    assert result.figures["rows"]["format"] == "kto"
    assert found(result) == {"left_out_unpaired": (1, [80])}


def test_rows_without_any_pair_are_a_finding_and_no_end() -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in clean_rows(30)]
    result = run(rows)
    assert (result.rows, result.pairs) == (30, 0)
    assert found(result)["no_pairs"] == (30, [])
    assert found(result)["left_out_unpaired"] == (30, [0, 1, 2])


@pytest.mark.parametrize(
    "text",
    ["plain", "naïve café, “quoted” – dashed…", "日本語の文章です。", "emoji 🙂👍", "مرحبا", "tab\tand\nline\r\n"],
)
def test_sound_text_is_not_called_damaged(text: str) -> None:
    assert damage_of(text) is None


def test_held_out_pairs_by_hand() -> None:
    # (1.959964 + 0.841621)^2 = 7.848879; times (0.2 - 0.0004) / 0.0004 = 499
    assert held_out_pairs() == math.ceil(7.848879 * 499) == 3917
    assert smallest_change(3917) == pytest.approx(0.02, rel=1e-3)
    assert smallest_change(100) > 0.1
