"""The same token ids as TRL 1.16, for the shapes that TRL reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from preftune.data import load_pairs, tokenize_pairs
from tests.data.tiny_bpe import THINKING

pytest.importorskip("trl")

Ids = list[tuple[list[int], list[int], list[int]]]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


STANDARD = [
    {"prompt": "What is the capital of France?", "chosen": " Paris.", "rejected": " It is not Lyon, and never was."},
    {"prompt": "What is the cap", "chosen": "ital", "rejected": "s"},
    {"prompt": "ends with a space ", "chosen": "yes", "rejected": "no"},
    {"prompt": "Why?", "chosen": "\nBecause yeast makes gas.", "rejected": "\nBe"},
]
CHAT = [
    {"prompt": [user("What is the capital of France?")], "chosen": [assistant("Paris.")], "rejected": [assistant("P")]},
    {
        "prompt": [{"role": "system", "content": "You are"}, user("a"), assistant("b"), user("c")],
        "chosen": [assistant("d")],
        "rejected": [assistant("e"), user("f"), assistant("g")],
    },
]
IMPLICIT = [{"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in CHAT]


def trl_ids(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, max_length: int | None) -> Ids:
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    args = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    dataset = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer), datasets.Dataset.from_list(rows), tokenizer, args, "train"
    )
    collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length)
    found: Ids = []
    for row in dataset:
        batch = collate([{key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}])
        ids = [
            line[mask.bool()].tolist() for line, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
        ]
        found.append((row["prompt_ids"], ids[0], ids[1]))
    return found


def preftune_ids(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, max_length: int | None) -> Ids:
    groups, _ = tokenize_pairs(load_pairs(rows), tokenizer, max_length=max_length)
    return [(list(group.prompt_ids), *map(list, group.completions)) for group in groups]


@pytest.mark.parametrize("max_length", [None, 30, 20, 12])
@pytest.mark.parametrize("shape", ["standard", "chat", "implicit", "thinking"])
def test_the_same_ids_as_trl(
    shape: str,
    max_length: int | None,
    chat: PreTrainedTokenizerFast,
    plain: PreTrainedTokenizerFast,
) -> None:
    tokenizer = plain if shape == "standard" else chat
    rows = {"standard": STANDARD, "chat": CHAT, "implicit": IMPLICIT, "thinking": CHAT}[shape]
    if shape == "thinking":
        tokenizer.chat_template = THINKING
    if shape != "standard" and max_length == 12:
        max_length = 80
    ours, theirs = preftune_ids(rows, tokenizer, max_length), trl_ids(rows, tokenizer, max_length)
    if max_length is not None:  # what truncation makes identical, TRL trains in silence
        theirs = [ids for ids in theirs if ids[1] != ids[2]]
    assert ours == theirs
    assert ours
