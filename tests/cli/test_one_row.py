"""Commands on a single row print `1 pair` and `1 row`, not `1 pairs` and `1 rows`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.command import write_rows
from tests.evaluation.labelling.test_label import write_samples

ROW = {"prompt": "Which city?", "chosen": "Bath.", "rejected": "A long answer about York."}
NOUNS = "answers|calls|comparisons|completions|groups|pairs|prompts|rows|steps|tokens|verdicts"
WRONG = re.compile(rf"(?<![\d.,])1 (?:[a-z-]+ )?(?:{NOUNS})\b")
TRAINING = ["--max_steps", "1", "--per_device_train_batch_size", "1", "--use_cpu", "--output_dir", "run", "--verbose"]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["convert", "one.jsonl", "-o", "out.jsonl"], "1 pair was read, 1 kept."),
        (["audit", "one.jsonl"], "1 row, 1 pair, 1 different prompt"),
        (
            ["label", "samples.jsonl", "--judge", "shorter", "-o", "out.jsonl"],
            "1 pair from 1 prompt with 2 completions.",
        ),
        (["judge-check", "one.jsonl", "--judge", "shorter"], "1 comparison"),
        (["dpo", "--model", "MODEL", "--data", "one.jsonl", *TRAINING], "Done after 1 step."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_counts_of_one(
    words: list[str], printed: str, preftune, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "one.jsonl", [ROW])
    write_samples(tmp_path / "samples.jsonl", {"x": ["one", "a longer one"]})
    done = preftune(*(tiny_model if word == "MODEL" else word for word in words))
    assert done.code == 0, done.err
    assert printed in done.out
    assert not WRONG.findall(done.out + done.err)
