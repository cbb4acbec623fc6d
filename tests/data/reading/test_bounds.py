"""Input without end or measure ends in a message that names it, and with the limit raised it is read."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from preftune.bounds import DEFAULTS, bound
from preftune.data import load_demonstrations, load_pairs, tokenize_demonstrations, tokenize_pairs
from preftune.data.conversion.convert import Input, convert_pairs
from preftune.data.reading import arrow_tables as tables
from preftune.data.tokens.shorten import shortening
from preftune.errors import ConfigError, DatasetError, ModelError, TemplateLimitError
from preftune.models.damage import check_config_size
from tests.data.tiny_bpe import CHATML, make_tokenizer
from tests.data.turns import assistant, user

ROW = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def fails(source: Any, **options: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        load_pairs(source, **options)
    return str(caught.value)


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_limits_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_LIMITS", "line=4GB, field=1.5MB,template_seconds=90")
    assert (bound("line"), bound("field"), bound("template_seconds")) == (4 * 2**30, 1.5 * 2**20, 90)
    assert bound("layers") == DEFAULTS["layers"]
    for wrong in ("lines=4GB", "line", "line=many", "line=4TB"):
        monkeypatch.setenv("PREFTUNE_LIMITS", wrong)
        with pytest.raises(ConfigError, match=f"PREFTUNE_LIMITS holds '{wrong}'"):
            bound("line")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    data = (json.dumps(ROW) + "\n" + json.dumps({**ROW, "chosen": "x" * 3 * 2**20}) + "\n").encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(data) if zipped else data)
    monkeypatch.setenv("PREFTUNE_LIMITS", "line=2MB")
    for streaming in (False, True):
        message = fails(path, streaming=streaming)
        assert f"{path} line 2 is longer than 2 MB" in message
        assert "PREFTUNE_LIMITS=line=8GB raises that limit" in message
    monkeypatch.setenv("PREFTUNE_LIMITS", "line=4MB")
    assert len(load_pairs(path)) == 2


def test_nulls_without_an_end_are_a_binary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as file:
        file.truncate(40 * 2**20)
    assert "is a binary file, not text (line 1)" in fails(path)


def test_a_field_that_is_too_long_names_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ROW, {**ROW, "rejected": [user("p"), assistant("y" * 2000)]}]
    monkeypatch.setenv("PREFTUNE_LIMITS", "field=1kB")
    assert "row 1, column 'rejected': a text of 2,000 characters, more than 1,024" in fails(rows)
    demonstrations = [{"messages": [user("q"), assistant("y" * 2000)]}]
    with pytest.raises(DatasetError, match="row 0, column 'messages': a text of 2,000 characters"):
        load_demonstrations(demonstrations)


def test_values_nested_too_deeply_name_their_row() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    row = {**ROW, "chosen": [{"role": "assistant", "content": "a", "more": deep}]}
    from preftune.data.formats.columns import resolve_columns
    from preftune.data.pairs.row_reader import RowReader

    reader = RowReader(resolve_columns(row, None, name="x"), "x", False)
    assert "row 0, column 'chosen': a value nested too deeply" in reader.attempt(row, 0).problem


def test_a_table_that_is_too_large_for_memory_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**ROW, "prompt": f"p{number}", "chosen": "g" * 100} for number in range(3000)]
    small = list(load_pairs(jsonl(tmp_path / "a.jsonl", *rows)))
    monkeypatch.setattr(tables, "MOST_IN_MEMORY", 100_000)
    for source in (tmp_path / "a.jsonl", rows):
        pairs = load_pairs(source)
        assert list(pairs) == small
        assert pairs.rows.cache_files
    mixed = [*rows[:2500], {**ROW, "chosen": [assistant("a")]}, *rows[2500:]]  # another kind of value, late
    assert len(load_pairs(mixed)) == 3001


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "parquet"])
def test_pipes_are_read(tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"whole.{kind}"
    if kind == "json":
        source.write_text(json.dumps([ROW, ROW]), encoding="utf-8")
    else:
        convert_pairs([Input("x", load_pairs([ROW, {**ROW, "chosen": "better"}]))], source)
    data, pipe = source.read_bytes(), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert list(load_pairs(pipe)) == list(load_pairs(source))
    writer.join()
    assert "is a pipe, which can be read only once" in fails(pipe, streaming=True)


# --- what is tokenised ---


def tokenizer(template: str = CHATML) -> Any:
    made = make_tokenizer(eos_token="<|im_end|>", pad_token="<pad>")
    made.chat_template = template
    return made


@pytest.mark.sample(0)
def test_of_a_huge_text_only_what_max_length_can_need_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer()
    huge = " ".join(f"word {number}" for number in range(200_000))
    rows = [
        {"prompt": [user("Why?")], "chosen": [assistant(huge)], "rejected": [assistant("So.")]},
        {"prompt": [user(huge)], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
        {"prompt": "Why?", "chosen": huge, "rejected": "So."},
    ]
    limits: dict[str, Any] = {"max_length": 64, "max_prompt_length": 32}
    seen: list[int] = []
    plain = type(tok).__call__

    def counting(self: Any, texts: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(max(map(len, texts)) if isinstance(texts, list) else len(texts))
        return plain(self, texts, *args, **kwargs)

    monkeypatch.setattr(type(tok), "__call__", counting)
    groups, report = tokenize_pairs(load_pairs(rows), tok, **limits)
    most = shortening(tok, 64)
    assert most is not None
    assert max(seen) < 2 * most.most + 200 < len(huge) / 10
    assert report.shortened.rows == [0, 1, 2]
    assert "only its two ends were tokenised" in " ".join(report.lines())
    monkeypatch.setattr("preftune.data.tokens.tokenize.shortening", lambda *_: None)
    whole, _ = tokenize_pairs(load_pairs(rows), tok, **limits)
    assert [(list(g.prompt_ids), [list(c) for c in g.completions], g.scored) for g in groups] == [
        (list(g.prompt_ids), [list(c) for c in g.completions], g.scored) for g in whole
    ]


def test_supervised_fine_tuning_shortens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer()
    huge = " ".join(f"word {number}" for number in range(50_000))
    for row in ({"messages": [user("Why?"), assistant(huge)]}, {"prompt": "a", "completion": huge}):
        data = load_demonstrations([row])
        groups, report = tokenize_demonstrations(data, tok, max_length=64)
        assert report.shortened.rows == [0]
        with monkeypatch.context() as patched:
            patched.setattr("preftune.data.tokens.tokenize.shortening", lambda *_: None)
            whole, _ = tokenize_demonstrations(data, tok, max_length=64)
        assert [[list(c) for c in g.completions] for g in groups] == [[list(c) for c in g.completions] for g in whole]


SLOW = r"the dataset row 0: The chat template took more than 0\.2 seconds"
LOOPS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_LIMITS", "template_seconds=0.2")
    rows = [{"prompt": [user("Why?")], "chosen": [assistant("So.")], "rejected": [assistant("No.")]}]
    with pytest.raises(TemplateLimitError, match=SLOW):
        tokenize_pairs(load_pairs(rows), tokenizer(LOOPS))
    with pytest.raises(TemplateLimitError, match=SLOW):
        tokenize_demonstrations(load_demonstrations([{"messages": [user("Why?"), assistant("So.")]}]), tokenizer(LOOPS))


def test_a_template_that_fills_the_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_LIMITS", "template_memory=100MB,template_seconds=60")
    grows = LOOPS.replace("%}{% endfor", "%}{{ messages[0].content }}{{ b }}{% endfor", 1)
    rows = [{"prompt": [user("Why? " * 20)], "chosen": [assistant("So.")], "rejected": [assistant("No.")]}]
    with pytest.raises(TemplateLimitError, match="or 100 MB for one conversation"):
        tokenize_pairs(load_pairs(rows), tokenizer(grows))


def test_a_configuration_with_too_many_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"text_config": {"num_hidden_layers": 10000000}}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"requests num_hidden_layers=10,000,000, more than 10,000.*layers=100000"):
        check_config_size(tmp_path)
    monkeypatch.setenv("PREFTUNE_LIMITS", "layers=20000000,config=10")
    with pytest.raises(ModelError, match="no model's configuration has more than 10 bytes"):
        check_config_size(tmp_path)
    monkeypatch.setenv("PREFTUNE_LIMITS", "layers=20000000")
    check_config_size(tmp_path)
