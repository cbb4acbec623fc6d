"""Lengths by hand, and what limits and chat templates do to rows. The tiny tokenizer has one token a byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preftune.audit.checks.lengths import CutRow
from preftune.audit.summaries import histogram, percentiles
from preftune.data.tokens.encode import Encoder
from tests.audit.made_up import Row, clean_chats, clean_rows, found, run
from tiny import CHAT_TEMPLATE, tiny_tokenizer


def tokens(rows: list[Row], *, template: str | None = CHAT_TEMPLATE, **options: Any) -> Any:
    tokenizer = tiny_tokenizer(chat=template is not None)
    tokenizer.chat_template = template
    return run(rows, encoder=Encoder(tokenizer), tokenizer_name="tiny", **options)


def test_words_by_hand() -> None:
    rows = [
        {"prompt": f"p {i}", "chosen": " ".join(["w"] * n), "rejected": f"r {i}"}
        for i, n in enumerate([1, 2, 3, 4, 10])
    ]
    figures = run(rows).figures["lengths"]
    assert figures["unit"] == "words"
    assert (
        figures["percentiles"]["chosen"] | {"mean": 4, "min": 1, "p50": 3, "p25": 2, "p75": 4, "max": 10}
        == (figures["percentiles"]["chosen"])
    )
    assert figures["percentiles"]["pair"]["max"] == 12
    assert "cut" not in figures


def test_limits_row_by_row() -> None:
    rows = [
        {"prompt": f"ask {i:02}", "chosen": f"yes it is {i:02}", "rejected": f"no it is {i:02}."} for i in range(30)
    ]
    rows[1]["chosen"] = "y" * 60  # 6 of prompt, 60, eos
    rows[2]["prompt"] = "q" * 50
    rows[3]["chosen"], rows[3]["rejected"] = "s" * 60 + "a", "s" * 60 + "b"
    result = tokens(rows, template=None, max_length=40, near_duplicates=False)
    assert result.cut_rows == (
        CutRow(1, 6, 61, 13, 0, 6 + 61 - 40, 0, "cut"),
        CutRow(2, 50, 13, 13, 0, 13, 13, "no_room"),
        CutRow(3, 6, 62, 62, 0, 28, 28, "same_when_cut"),
    )
    names = found(result)
    assert names["answers_cut"] == (1, [1])
    assert names["no_room"] == (1, [2])
    assert names["same_when_cut"] == (1, [3])
    assert result.figures["lengths"]["cut"] == {"cut": 1, "left_out": 2}
    (cut,) = [finding for finding in result.findings if finding.name == "answers_cut"]
    assert cut.detail == "max_length=68 would keep every row whole."


def test_prompts_cut() -> None:
    rows = clean_rows(30)
    rows[2]["prompt"] = "q" * 300
    result = tokens(rows, template=None, max_length=1000, max_prompt_length=250)
    assert found(result) == {"prompts_cut": (1, [2])}
    assert result.cut_rows[0].cut_prompt == 50


def test_clean_rows_are_clean_with_a_tokenizer_too() -> None:
    assert found(tokens(clean_chats(system="Be kind."), max_length=2000)) == {}


def test_a_template_that_drops_the_system_prompt() -> None:
    template = CHAT_TEMPLATE.replace("for m in messages %}", "for m in messages if m['role'] != 'system' %}")
    rows = clean_chats()
    for row in rows[10:14]:
        row["prompt"] = [{"role": "system", "content": "Answer in French."}, *row["prompt"]]
    assert found(tokens(rows, template=template)) == {"system_prompt_dropped": (4, [10, 11, 12])}


def test_a_template_that_drops_thoughts() -> None:
    template = CHAT_TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")
    rows = clean_chats()
    for row in rows[10:14]:
        (answer,) = row["chosen"]
        row["chosen"] = [{**answer, "content": f"<think>Hm, is it so?</think>{answer['content']}"}]
    assert found(tokens(rows, template=template))["text_not_written"] == (4, [10, 11, 12])


def test_a_template_that_drops_the_system_prompt_once_an_answer_follows() -> None:
    """As Mistral v0.3's: the system turn stands in the last question while that is the last turn."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ (messages[0]['content'] if loop.last and messages[0]['role'] == 'system' else '') + '[Q]' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ '[A]' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    rows = clean_chats()
    for row in rows[10:14]:
        row["prompt"] = [{"role": "system", "content": "Answer in French."}, *row["prompt"]]
    assert found(tokens(rows, template=template))["system_prompt_dropped"] == (4, [10, 11, 12])


def test_pairs_that_tokenising_leaves_out() -> None:
    """The template answers in reverse and changes the question; another row answers with special tokens alone."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ m['content'] if loop.last or 'odd' not in m['content'] else 'asked' }}"
        "{% else %}{{ m['content'] if 'odd' not in messages[0]['content'] else m['content'] | reverse }}"
        "{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    rows = clean_chats()
    for number in (7, 9):
        rows[number]["prompt"] = [{"role": "user", "content": f"An odd question, number {number}, of its own"}]
    rows[20]["chosen"] = [{"role": "assistant", "content": "<|im_end|>"}]
    result = tokens(rows, template=template, near_duplicates=False, max_length=2000)
    (finding,) = [finding for finding in result.findings if finding.name == "left_out_by_tokenizing"]
    assert (finding.severity, finding.count) == ("error", 3)
    assert finding.figures == {"answers_not_found": 2, "empty_completion": 1}
    assert finding.detail.startswith("2: the assistant's turns cannot be located in the text of the chat template.")
    assert [example.row for example in finding.examples] == [7, 9, 20]


def test_what_other_checks_report_is_not_reported_again() -> None:
    rows = clean_chats()
    rows[1]["chosen"] = rows[1]["rejected"]
    rows[2]["chosen"] = [{"role": "assistant", "content": " "}]
    rows[3]["chosen"] = [*rows[3]["chosen"], {"role": "user", "content": "and then?"}]
    names = found(tokens(rows, max_length=60, near_duplicates=False))
    assert names["identical"] == (1, [1])
    assert names["empty"] == (1, [2])
    assert names["no_answer"] == (1, [3])
    assert "left_out_by_tokenizing" not in names


def test_sides_of_which_the_limit_leaves_no_answer() -> None:
    """The sides differ before the cut, in what the user says, and no scored token is left of the second."""
    rows = clean_chats(20)
    first = [{"role": "assistant", "content": "Same here."}]

    def more(question: str) -> list[dict[str, str]]:
        return [*first, {"role": "user", "content": question}, {"role": "assistant", "content": "Fine."}]

    for number in (3, 5):
        rows[number] = {"prompt": [{"role": "user", "content": f"Why {number}?"}]}
        rows[number] |= {"chosen": more("So?"), "rejected": more("And then what? " * 40)}
    result = tokens(rows, max_length=450, near_duplicates=False)
    assert found(result)["no_answer_left"] == (2, [3, 5])
    assert {(row.row, row.outcome) for row in result.cut_rows} == {(3, "no_answer_left"), (5, "no_answer_left")}
    assert result.figures["lengths"]["cut"] == {"cut": 0, "left_out": 2}


def test_a_template_that_refuses() -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
    )
    rows = clean_chats()
    rows[5]["prompt"] = [{"role": "system", "content": "Answer in French."}, *rows[5]["prompt"]]
    result = tokens(rows, template=template)
    assert found(result) == {"template_refused": (1, [5])}
    assert "no system role" in result.examples["template_refused"][0]["note"]


def test_conversations_without_a_template() -> None:
    assert found(tokens(clean_chats(), template=None)) == {"no_chat_template": (60, [0, 1, 2])}


def test_answers_that_the_template_does_not_end() -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    assert found(tokens(clean_chats(), template=template))["eos_missing"] == (60, [0, 1, 2])


def test_a_tokenizer_without_eos() -> None:
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.eos_token = None
    assert found(run(clean_rows(), encoder=Encoder(tokenizer)))["no_eos"] == (60, [])


def test_percentiles_and_histograms() -> None:
    assert percentiles(np.array([])) == {}
    assert percentiles(np.arange(101))["p95"] == 95
    made = histogram(np.array([1, 1, 2, 5]), bins=10)
    assert (made["edges"], made["counts"]) == ([1, 2, 3, 4, 5, 6], [2, 1, 0, 0, 1])
    assert sum(histogram(np.array([0.0] * 999 + [1e9]))["counts"]) == 1000
    assert histogram(np.array([3])) == {"edges": [2, 3, 4, 5], "counts": [0, 1, 0]}
    assert histogram(np.array([])) is None
    assert sum(histogram(np.array([0.5, 0.5]))["counts"]) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_data_have_figures(count: int) -> None:
    assert run(clean_rows(count)).figures["lengths"]["pairs"] == count
