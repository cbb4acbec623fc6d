"""Token ids kept on disk: found again when everything is the same, made again when anything is not."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest

from preftune.data import PairDataset, load_pairs
from preftune.data.tokens import cache
from preftune.data.tokens.cache import tokenize_or_recall
from preftune.storage.cache_folder import cache_folder
from tests.data.tiny_bpe import CHATML


@pytest.fixture(autouse=True)
def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data too, which otherwise are tokenised each time."""
    monkeypatch.setattr(cache, "LEAST_PAIRS", 1)


def rows(count: int = 12) -> list[dict[str, Any]]:
    long = {"prompt": "p", "chosen": "good " * 30, "rejected": "bad " * 30}
    same = {"prompt": "p", "chosen": "a", "rejected": "a"}
    turns = [
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Later."},
        {"role": "user", "content": "Why?"},
    ]
    several = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "x"}, *turns, {"role": "assistant", "content": "Because."}],
        "rejected": [{"role": "assistant", "content": "y"}],
    }
    return [
        {"prompt": f"prompt {i}", "chosen": f"good {i}", "rejected": f"bad {i}", "weight": 1 + i, "id": f"é{i}"}
        for i in range(count)
    ] + [long, same, several]


def files() -> list[Path]:
    return sorted((cache_folder() / "tokens").glob("*"))


def recalled(pairs: PairDataset, tokenizer: Any, **options: Any) -> bool:
    return tokenize_or_recall(pairs, tokenizer, **options)[2]


def test_the_second_time_comes_from_disk_and_is_the_same(chat: Any) -> None:
    groups, report, found = tokenize_or_recall(load_pairs(rows()), chat, max_length=60)
    again, report_again, found_again = tokenize_or_recall(load_pairs(rows()), chat, max_length=60)
    assert (found, found_again) == (False, True)
    assert list(again) == list(groups)
    assert any(group.scored for group in again)
    assert report_again == report
    assert report.dropped
    assert report.truncated
    assert len(files()) == 1


def test_rows_from_a_list_and_from_a_file_are_keyed_by_what_is_in_them(chat: Any, tmp_path: Path) -> None:
    import json

    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    first = load_pairs(tmp_path / "a.jsonl")
    assert not recalled(first, chat)
    assert recalled(load_pairs(tmp_path / "b.jsonl"), chat)
    _, report, _ = tokenize_or_recall(load_pairs(tmp_path / "b.jsonl"), chat)
    assert report.name.endswith("b.jsonl")
    assert not recalled(first.select(range(1, len(first))), chat)
    assert not recalled(first.as_chat(), chat)
    changed = rows()
    changed[3]["rejected"] = "worse"
    assert not recalled(load_pairs(changed), chat)


@pytest.mark.parametrize(
    "change",
    [{"max_length": 32}, {"max_prompt_length": 9}, {"truncation": "drop"}, {"chat_template": CHATML + " "}],
)
def test_other_limits_or_templates_are_a_miss(chat: Any, change: dict[str, Any]) -> None:
    pairs, same = load_pairs(rows()), {"max_length": 64}
    tokenize_or_recall(pairs, chat, **same)  # type: ignore[arg-type]
    assert not recalled(pairs, chat, **{**same, **change})
    assert recalled(pairs, chat, **same)


def test_another_tokenizer_is_a_miss(chat: Any, plain: Any) -> None:
    pairs = load_pairs(rows()[:12])
    assert not recalled(pairs, chat)
    assert not recalled(pairs, plain)
    chat.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    assert not recalled(pairs, chat)
    chat.chat_template = CHATML + " "
    assert not recalled(pairs, chat)


@pytest.mark.parametrize("change", [{"split_special_tokens": True}, {"some_flag": True}])
def test_what_is_set_on_a_tokenizer_after_loading_is_a_miss(change: Any, chat: Any) -> None:
    pairs = load_pairs(rows(4))
    assert not recalled(pairs, chat)
    for key, value in change.items():
        setattr(chat, key, value)
    assert not recalled(pairs, chat)
    assert recalled(pairs, chat)


def test_a_tokenizer_of_the_program_s_own_is_keyed_by_its_code(chat: Any) -> None:
    pairs, base = load_pairs(rows(4)), type(chat)

    def louder(mark: str) -> Any:
        class Louder(base):  # type: ignore[misc, valid-type]
            def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
                louder = [{**turn, "content": turn["content"] + mark} for turn in conversation]
                return super().apply_chat_template(louder, **options)

        return Louder

    chat.__class__ = louder("!")
    assert not recalled(pairs, chat)
    chat.__class__ = louder("?")
    assert not recalled(pairs, chat)
    chat.__class__ = louder("!")
    assert recalled(pairs, chat)
    chat.__class__ = base
    chat.apply_chat_template = MethodType(louder("!").apply_chat_template, chat)
    assert not recalled(pairs, chat)


def test_the_side_that_generation_pads_on_is_a_hit(chat: Any) -> None:
    pairs = load_pairs(rows(4))
    assert not recalled(pairs, chat)
    chat.padding_side = "left"
    assert recalled(pairs, chat)


def test_another_day_is_a_miss_for_templates_that_write_the_date(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> Tomorrow:
            return cls(2099, 1, 1)

    pairs = load_pairs(rows())
    dated = "{{ strftime_now('%Y')[:0] }}" + CHATML
    assert not recalled(pairs, chat, chat_template=dated)
    assert recalled(pairs, chat, chat_template=dated)
    monkeypatch.setattr(cache.datetime, "date", Tomorrow)
    assert not recalled(pairs, chat, chat_template=dated)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_file_is_noticed_and_made_again(chat: Any, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    pairs = load_pairs(rows())
    groups = list(tokenize_or_recall(pairs, chat)[0])  # read before their mapped file is harmed
    (file,) = files()
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[len(content) // 3] ^= 1
    half = content[: len(content) // 2]
    wrong = {"cut": half, "flip": content, "empty": b"", "foreign": b"something else " * 99}[harm]
    file.write_bytes(bytes(wrong))
    again, _, found = tokenize_or_recall(pairs, chat)
    assert not found
    assert list(again) == groups
    assert "are damaged" in caplog.text
    assert recalled(pairs, chat)


def test_a_disk_that_cannot_be_written_costs_nothing_but_time(
    chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "file"))
    groups, _, found = tokenize_or_recall(load_pairs(rows()), chat)
    assert not found
    assert len(groups)
    assert "Token ids are not kept for the next run" in caplog.text


def test_the_least_recently_used_make_room(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_BYTES", 1)
    for count in (3, 4, 5):
        tokenize_or_recall(load_pairs(rows(count)), chat)
        assert len(files()) == 1
    assert recalled(load_pairs(rows(5)), chat)


def test_few_pairs_are_not_kept(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PREFTUNE_CACHE", str(cache_folder()))
    tokenize_or_recall(load_pairs(rows()), chat)
    assert len(rows()) < cache.LEAST_PAIRS


def test_what_is_recalled_can_be_rearranged(chat: Any) -> None:
    from preftune.data import group_by_prompt

    pairs = load_pairs([*rows(), *rows()])
    tokenize_or_recall(pairs, chat)
    groups, _, found = tokenize_or_recall(pairs, chat)
    assert found
    assert len(group_by_prompt(groups)) < len(groups)
    assert groups.select([0, 1]).total_tokens > 0
    assert np.array_equal(groups.lengths, [group.tokens for group in groups])
