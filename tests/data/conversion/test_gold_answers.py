"""Gold answers and margins, through conversion, mixtures, streams and rows with several answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from preftune.data import load_pairs
from preftune.data.pairs.mixture import mix_pairs
from preftune.data.pairs.stream import open_stream
from tests.data.conversion.test_convert import ENDINGS, convert, plain, rows_file

USER, WHOLE = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "best"}
GOLDEN = {
    "texts": {"prompt": "a?", "chosen": " good", "rejected": " bad", "reference": " best"},
    "turns": {
        "prompt": [USER], "chosen": [{**WHOLE, "content": "good"}], "rejected": [{**WHOLE, "content": "bad"}],
        "reference": [USER, WHOLE],
    },
    "list": {"prompt": "a?", "responses": [" good", " bad", " worse"], "scores": [3, 2, 1], "reference": " best"},
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("form", GOLDEN)
def test_gold_answers_go_along_into_files_and_mixtures(form: str, ending: str, tmp_path: Path) -> None:
    """They were left out without a word, and training on them then said that the data had none."""
    source = rows_file(tmp_path, [GOLDEN[form], {**GOLDEN[form], "weight": 2.0}])
    before, output = list(load_pairs(source).with_gold()), tmp_path / f"out.{ending}"
    assert {json.dumps(pair.gold) for pair in before} in ({'" best"'}, {json.dumps([WHOLE])})
    convert(source, output)
    assert plain(load_pairs(output).with_gold()) == plain(before)
    mixture = mix_pairs([load_pairs(source), load_pairs(output)], [0.5, 0.5]).with_gold()
    assert [replace(pair, source=None) for pair in plain(mixture)] == plain(before) * 2
    pairs = [attempt for attempt in open_stream(source).attempts() if attempt.pair is not None]
    assert all(attempt.gold for attempt in pairs)


def test_what_is_no_gold_answer_does_not_stop_a_conversion(tmp_path: Path) -> None:
    rows = [{**GOLDEN["texts"], "reference": value} for value in (float("nan"), 3, None)]
    convert(rows_file(tmp_path, rows), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0]).keys() == {"prompt", "chosen", "rejected"}


def test_a_margin_of_a_row_with_several_answers_is_that_of_its_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "responses": ["b", "c", "d"], "scores": [3, 2, 1], "margin": 0.5}]
    pairs = load_pairs(rows)
    assert [pair.margin for pair in pairs] == [0.5] * 3
    assert any("margin" in note for note in pairs.notes)
