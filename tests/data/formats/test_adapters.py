"""Every format, by a small file in its true columns: recognised, and the first pair as a person would write it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from preftune.data import FORMATS, load_pairs
from preftune.data.formats import Sample
from preftune.data.formats.apply import sample_of
from preftune.data.pairs.dataset import PairDataset
from preftune.errors import DatasetError

FILES = Path(__file__).parents[1] / "format_rows"


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def rows_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FILES / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]


def load(file: str, **kwargs: Any) -> PairDataset:
    return load_pairs(FILES / f"{file}.jsonl", **kwargs)


def sides(pairs: PairDataset, index: int = 0) -> tuple[Any, Any, Any]:
    pair = pairs[index]
    return pair.prompt, pair.chosen, pair.rejected


def fails(source: Any, **kwargs: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        load_pairs(source, **kwargs)
    return str(caught.value)


ULTRA = ("Name a river in Peru.", "The Ucayali.", "The Rhine.")
CHAT_ULTRA = ([user(ULTRA[0])], [assistant(ULTRA[1])], [assistant(ULTRA[2])])
PERU = ("A river in Peru?", "The Ucayali.", "The Rhine.")
CHAT_PERU = ([user(PERU[0])], [assistant(PERU[1])], [assistant(PERU[2])])
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}
CALL["tool_calls"][0]["function"] = {"name": "tide", "arguments": {"harbour": "Husum"}}  # type: ignore[index]
EGG = "How do I boil an egg?"
SALT = "Rivers carry dissolved minerals from rock; the water evaporates, the salt stays."
SHORT = {"role": "system", "content": "Be short."}
CAR = ("How do I get into a locked car?", "If it is yours, call a locksmith.", "Break the window.")

FIRST: dict[str, tuple[str, int, Any]] = {
    "trl": ("trl", 2, ([user("When is high water in Husum?")], [CALL], [assistant("At noon, I think.")])),
    "hh-rlhf": (
        "trl",
        1,
        (
            [user("My bread is flat."), assistant("How old is the yeast?"), user("Two years.")],
            [assistant("Then it is dead. Buy fresh yeast.")],
            [assistant("Bread is a food.")],
        ),
    ),
    "ultrafeedback-binarized": ("trl", 1, CHAT_ULTRA),
    "ultrafeedback-trl-lib": ("trl", 1, CHAT_ULTRA),
    "ultrafeedback-argilla": ("alpaca-preference", 1, ULTRA),
    "ultrafeedback": ("ultrafeedback", 5, ("Why is the sea salty?", SALT, "Rivers carry salt.")),
    "oasst": ("oasst", 4, ([user(EGG)], [assistant("Seven minutes in boiling water.")], [assistant("In water.")])),
    "oasst-trees": (
        "oasst-trees",
        2,
        ([user(EGG)], [assistant("Seven minutes in boiling water.")], [assistant("In water.")]),
    ),
    "shp": ("shp", 2, ("My bread is flat. Why?", "Old yeast.", "Bad luck.")),
    "openai": (
        "openai",
        1,
        ([user("When is high water in Husum?")], [assistant("At 14:10.")], [assistant("Later.")]),
    ),
    "sharegpt": (
        "sharegpt",
        1,
        (
            [
                {"role": "system", "content": "Answer in one word."},
                user("A river in Peru?"),
                assistant("Ucayali."),
                user("Another?"),
            ],
            [assistant("Marañón.")],
            [assistant("There are many rivers in Peru, such as ...")],
        ),
    ),
    "alpaca-preference": (
        "alpaca-preference",
        1,
        ("Correct the spelling.\n\nrecieve", "receive", "recieve is fine"),
    ),
    "alpaca-history": (
        "alpaca-preference",
        2,
        (
            [
                {"role": "system", "content": "Be short."},
                user("Say hello in German."),
                assistant("Hallo."),
                user("And in French?"),
            ],
            [assistant("Bonjour.")],
            [assistant("Hola.")],
        ),
    ),
    "orca": ("alpaca-preference", 1, ([SHORT, user(PERU[0])], [assistant(PERU[1])], [assistant(PERU[2])])),
    "swift-query": (
        "alpaca-preference",
        1,
        (
            [SHORT, user("Say hello in German."), assistant("Hallo."), user("And in French?")],
            [assistant("Bonjour.")],
            [assistant("Hola.")],
        ),
    ),
    "ms-swift": ("ms-swift", 1, ([SHORT, user(PERU[0])], [assistant(PERU[1])], [assistant(PERU[2])])),
    "swift-messages": ("ms-swift", 1, CHAT_PERU),
    "arena": ("arena", 1, CHAT_PERU),
    "mt-bench-human": ("arena", 1, CHAT_PERU),
    "arena-prompts": ("arena-prompts", 1, CHAT_PERU),
    "labelled-outputs": ("labelled-outputs", 1, PERU),
    "alpaca-farm": ("labelled-outputs", 1, ("Correct the spelling.\n\nrecieve", "receive", "recieve is fine")),
    "helpsteer2": ("helpsteer2", 1, ULTRA),
    "helpsteer2-preference": ("helpsteer2-preference", 1, PERU),
    "webgpt": ("webgpt", 1, PERU),
    "summaries": (
        "summaries",
        1,
        (
            "SUBREDDIT: Breadit\n\nTITLE: Flat bread\n\n"
            "POST: My bread is flat. The yeast is two years old. What do I do?\n\nTL;DR:",
            " My bread is flat and the yeast is old; what do I do?",
            " Bread is flat.",
        ),
    ),
    "kto": ("kto", 1, CHAT_PERU),
    "kto-sharegpt": ("kto", 2, CHAT_PERU),
    "thumbs": ("thumbs", 1, CHAT_PERU),
    "thumbs-in-turns": ("thumbs", 1, CHAT_PERU),
    "ranked": ("ranked", 3, (ULTRA[0], "The Ucayali.", "The Amazon basin has some.")),
    "ranked-output": ("ranked", 1, ("Correct the spelling.\n\nrecieve", "receive", "recieve is fine")),
    "scored": ("scored", 2, ULTRA),
    "nectar": ("scored", 1, CHAT_ULTRA),
    "safe-rlhf": ("safe-rlhf", 2, CAR),
    "helpsteer3": ("helpsteer3", 1, CHAT_PERU),
    "argilla": ("argilla", 1, PERU),
    "argilla-1": ("argilla", 1, PERU),
    "argilla-choice": ("argilla", 1, PERU),
}
"""File -> its format, its pairs, and the first of them."""


@pytest.mark.parametrize("file", FIRST)
def test_the_first_pair_of_every_format(file: str) -> None:
    format, count, first = FIRST[file]
    pairs = load(file)
    assert (pairs.format, len(pairs)) == (format, count)
    assert sides(pairs) == first
    list(pairs)
    named = load(file, format=format)
    assert list(named) == list(pairs)
    assert not any("are read as" in note for note in named.notes)
    assert any(f"are read as {format}" in note for note in pairs.notes) == (format != "trl")


def listed_sample(rows: list[dict[str, Any]]) -> Sample:
    """A sample of rows that may differ in their keys, which no table holds."""
    return Sample({key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)})


@pytest.mark.parametrize("file", [path.stem for path in sorted(FILES.iterdir())])
def test_no_two_formats_recognise_the_same_rows(file: str) -> None:
    rows = rows_of(file)
    for sample in (listed_sample(rows), sample_of(load_raw(file))):
        fitting = [name for name, adapter in FORMATS.items() if adapter.recognises(sample)]
        assert fitting == [FIRST[file][0] if file in FIRST else file]


def load_raw(file: str) -> Any:
    from preftune.data import load_rows

    return load_rows(FILES / f"{file}.jsonl")


def test_every_format_has_a_file() -> None:
    tried = {format for format, _, _ in FIRST.values()} | {"alpaca", "safe-rlhf-safer"}
    assert tried == set(FORMATS)
    assert {path.stem for path in FILES.iterdir()} == set(FIRST) | {"alpaca"}


@pytest.mark.parametrize("file", FIRST)
def test_lists_on_disk_and_streams_of_columns_give_the_same_pairs(file: str, tmp_path: Path) -> None:
    """A dataset with a schema fills missing keys with null, and lies on disk; a list of dicts does neither."""
    rows = rows_of(file)
    expected = [sides(load(file), index) for index in range(FIRST[file][1])]
    schema = datasets.Dataset.from_list(rows)
    schema.save_to_disk(tmp_path / "saved")
    for source in (rows, schema, tmp_path / "saved", tmp_path / "saved"):  # the last time from the cache
        pairs = load_pairs(source)
        assert [sides(pairs, index) for index in range(len(pairs))] == expected
        assert pairs.raw[0].keys() == dict.fromkeys(key for row in rows for key in row).keys()


def left(pairs: PairDataset) -> list[str]:
    return [note for note in pairs.notes if "left out" in note]


def test_what_gives_no_pair_is_counted() -> None:
    pairs = load("ultrafeedback")
    assert left(pairs) == [
        "1 left out (rows 0): two answers have the same rating, so neither is preferred. Leave them out.",
        "1 left out (rows 1): a prompt has fewer than two rated answers. Rate a second answer, or leave the prompt "
        "out.",
    ]
    assert "2 rows give 5 pairs." in pairs.notes[0]
    assert [note.split(":")[0] for note in left(load("oasst"))] == ["1 left out (rows 7)"]
    assert [note.split(":")[0] for note in left(load("kto"))] == ["1 left out (rows 2)"]
    assert [note.split(":")[0] for note in left(load("thumbs"))] == ["1 left out (rows 2)"]
    assert [note.split(":")[0] for note in left(load("helpsteer3"))] == ["1 left out (rows 1)"]
    assert [note.split(":")[0] for note in left(load("argilla"))] == ["1 left out (rows 1)"]
    assert [note.split(":")[0] for note in left(load("scored"))] == ["1 left out (rows 0)"]
    assert left(load("thumbs-in-turns"))[0].startswith("1 left out (rows 0): no other answer to the same prompt")


def test_strength_is_in_the_units_of_the_data() -> None:
    def strengths(file: str) -> list[float]:
        found = load(file).strengths()
        assert found is not None
        return found.tolist()

    assert strengths("ultrafeedback") == [0.5, 3.5, 3.5, 3.0, 3.0]  # means 4.5, 1.5, 5, 1.5 (N/A does not count)
    assert strengths("ultrafeedback-binarized") == [6.5]
    assert strengths("ultrafeedback-argilla") == [3.25]
    assert strengths("shp") == [pytest.approx(math.log(4)), pytest.approx(math.log(2))]
    assert strengths("oasst") == [1, 2, 1, 1]
    assert strengths("ranked") == [1, 2, 1]
    assert strengths("helpsteer3") == [2]
    assert strengths("argilla") == [pytest.approx(1 / 3)]
    assert strengths("argilla-1") == [3]
    assert load("openai").strengths() is None
    assert load("safe-rlhf").strengths() is None
    chosen = load("ultrafeedback").select([3, 0]).strengths()
    assert chosen is not None
    assert chosen.tolist() == [3.0, 0.5]


def test_agreement_is_the_share_of_annotators() -> None:
    assert load("helpsteer3")[0].agreement == 0.75
    assert load("argilla")[0].agreement == pytest.approx(2 / 3)
    assert load("argilla-1")[0].agreement == 1.0
    assert load("shp")[0].agreement is None


def test_scores_become_margins_only_when_asked() -> None:
    assert [pair.margin for pair in load("ultrafeedback")] == [0.0] * 5
    assert [pair.margin for pair in load("ultrafeedback", margin_from_scores=0.5)] == [0.25, 1.75, 1.75, 1.5, 1.5]
    binarized = load("ultrafeedback-binarized", margin_from_scores=2)
    assert binarized.select([0]).as_chat()[0].margin == 13.0
    against = rows_of("ultrafeedback-binarized")
    against[0]["score_rejected"] = 10.0  # the ratings contradict the label: no margin, never a negative one
    pairs = load_pairs(against, margin_from_scores=2.0)
    assert pairs[0].margin == 0.0
    assert np.array_equal(pairs.strengths(), [-1.0])  # type: ignore[arg-type]
    assert "no ratings of both answers" in fails(FILES / "openai.jsonl", margin_from_scores=1.0)
    assert "margin_from_scores is -1" in fails(against, margin_from_scores=-1)
    against[0]["margin"] = 1.0
    assert "has a column 'margin' and margin_from_scores is given" in fails(against, margin_from_scores=1.0)
    assert load_pairs(against, margin_from_scores=1.0, columns={"margin": None})[0].margin == 0.0


def test_a_row_number_leads_back_to_the_raw_row() -> None:
    pairs = load("safe-rlhf")
    assert [pair.row for pair in pairs] == [0, 1]
    pairs = load("oasst")
    assert pairs.raw[pairs[3].row]["message_id"] == "m5"
    assert sides(pairs, 3)[0] == [user(EGG), assistant("Seven minutes in boiling water."), user("Soft, please.")]
    assert [pair.id for pair in pairs] == ["m0", "m0", "m0", "m4"]
    assert load("ultrafeedback").select([4])[0].row == 0


def test_the_tools_of_openai_and_trl() -> None:
    assert load("openai")[0].tools == load("trl")[0].tools
    assert load("trl")[1].tools is None
    tools = load("trl")[0].tools
    assert tools is not None
    assert tools[0]["function"]["name"] == "tide"


def test_columns_that_hold_for_every_pair_of_a_row() -> None:
    row = {**rows_of("ranked")[0], "weight": 2.0, "system": "Be right.", "chat_template_kwargs": {"thinking": False}}
    pair = load_pairs([row])[2]
    assert (pair.weight, pair.chat_template_kwargs) == (2.0, {"thinking": False})
    assert sides(load_pairs([row]), 2) == (
        [{"role": "system", "content": "Be right."}, user(ULTRA[0])],
        [assistant("The Amazon basin has some.")],
        [assistant("The Rhine.")],
    )


def test_the_safer_answer_instead_of_the_better_one() -> None:
    assert sides(load("safe-rlhf"), 1) == (CAR[0], CAR[2], CAR[1])
    assert sides(load("safe-rlhf", format="safe-rlhf-safer"), 1) == CAR
    old = [{key: value for key, value in row.items() if key != "better_response_id"} for row in rows_of("safe-rlhf")]
    assert load_pairs(old).format == "safe-rlhf-safer"


def test_answers_in_no_known_order_have_to_be_called_ranked() -> None:
    row = {"prompt": "p", "responses": ["a", "b"]}
    assert "--format is one of trl, openai," in fails([row])
    assert sides(load_pairs([row], format="ranked")) == ("p", "a", "b")


def test_every_labelled_answer_is_used_and_pairs_grow_with_the_answers() -> None:
    rows = [{"prompt": "p", "completion": f"{label} {i}", "label": label} for label in (True, False) for i in range(3)]
    pairs = load_pairs(rows[:5])
    assert [sides(pairs, index)[1:] for index in range(3)] == [
        ("True 0", "False 0"),
        ("True 1", "False 1"),
        ("True 2", "False 0"),
    ]
    assert len(load_pairs(rows)) == 3


def test_unpaired_data_say_what_they_are_and_what_to_do() -> None:
    message = fails(rows_of("kto")[1:])
    assert "gives no preference pair, read as kto (single answers with a label). No prompt has both" in message
    assert "2 left out (rows 0, 1)" in message
    message = fails(FILES / "alpaca.jsonl")
    assert "read as alpaca (instructions with one answer each, for supervised fine-tuning). The data hold" in message
    assert "1 left out (rows 0): two answers have the same rating" in fails(rows_of("helpsteer3")[1:])


def test_formats_by_name() -> None:
    message = fails(FILES / "openai.jsonl", format="openay")
    assert "format: 'openay' is not a format that preftune reads. Did you mean 'openai'?" in message
    assert "Known are trl, openai, sharegpt," in fails(FILES / "openai.jsonl", format="xml")
    assert "has no column 'input.messages', which was named as 'prompt'" in fails(
        FILES / "sharegpt.jsonl", format="openai"
    )
    message = fails(FILES / "openai.jsonl", format="ultrafeedback")
    assert "1 left out (rows 0): the row does not have the shape of its format" in message


def test_rows_that_fit_two_formats() -> None:
    both = [{**rows_of("shp")[0], **rows_of("helpsteer3")[0]}]
    message = fails(both)
    assert "fits more than one format: 'shp' (" in message
    assert "and 'helpsteer3' (" in message
    assert load_pairs(both, format="shp").format == "shp"


@pytest.mark.parametrize("first", [0, 1])
def test_labels_of_0_and_1_are_unclear_also_where_rows_are_sorted_by_them(first: int) -> None:
    answers = {"output_1": "x", "output_2": "y"}
    rows = [{"instruction": f"{i}?", **answers, "label": abs(first - i // 200)} for i in range(400)]
    with pytest.raises(DatasetError, match="'label' holds only 0 and 1"):
        load_pairs(rows)
    assert len(load_pairs(rows, format="labelled-outputs")) == 200


@pytest.mark.parametrize("sides", [("response_a", "response_b"), ("B", "A")])
def test_sides_that_name_the_column_of_the_answer_are_no_answers(sides: tuple[str, str]) -> None:
    rows = [{"prompt": "?", "response_a": "x", "response_b": "y", "chosen": sides[0], "rejected": sides[1]}] * 4
    with pytest.raises(DatasetError, match="is the name of another column, not an answer"):
        load_pairs(rows)
    assert len(load_pairs(rows, format="trl")) == 4
    assert len(load_pairs([{"prompt": "?", "chosen": "B", "rejected": "A"}])) == 1
    labelled = [{"prompt": "?", "response_a": "x", "response_b": "y", "label": sides[0]}]
    assert load_pairs(labelled)[0].chosen == ("x" if sides[0] == "response_a" else "y")


def test_named_columns_win_over_the_format() -> None:
    rows = [{**rows_of("openai")[0], "second": [assistant("Never.")]}]
    assert sides(load_pairs(rows, format="openai", columns={"rejected": "second"}))[2] == [assistant("Never.")]
    plain = {"prompt": "input.messages", "chosen": "second", "rejected": "non_preferred_output"}
    pairs = load_pairs(rows, columns=plain)
    assert pairs.format is None
    assert sides(pairs)[1] == [assistant("Never.")]


def test_a_wrong_value_inside_a_made_row_names_the_raw_row() -> None:
    rows = rows_of("scored") * 3
    rows[2] = {**rows[2], "responses": ["a", True, "c"]}
    message = fails(rows)
    assert "the dataset row 2, column 'chosen': True is a bool, neither text nor a list of messages" in message
