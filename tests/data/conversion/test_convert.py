"""Any format to the canonical one: the same pairs when read again, the same bytes when written again, nothing lost."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preftune.data import FORMATS, load_pairs
from preftune.data.conversion.convert import Input, convert_pairs
from preftune.data.conversion.filters import REASONS, Facts, Filters, decide
from preftune.data.pairs.mixture import mix_pairs
from preftune.data.pairs.open import read_pairs
from preftune.data.pairs.stream import open_stream
from preftune.errors import ConfigError, DatasetError
from preftune.types import PreferencePair
from tests.data.formats.test_adapters import FILES as FORMAT_FILES
from tests.data.formats.test_adapters import FIRST

ENDINGS = ("jsonl", "jsonl.gz", "parquet")


def rows_file(folder: Path, rows: list[dict[str, Any]], name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def convert(source: Path, output: Path, filters: Filters | None = None, **options: Any) -> dict[str, Any]:
    pairs = read_pairs(source, tolerant=not options.get("strict"))
    return convert_pairs([Input(str(source), pairs)], output, filters, **options)


def plain(pairs: Any) -> list[PreferencePair]:
    """Pairs without the number of their row."""
    return [replace(pair, row=-1) for pair in pairs]


def reasons(manifest: dict[str, Any]) -> dict[str, list[Any]]:
    return {left["reason"]: left["rows"] for left in manifest["dropped"]}


@pytest.mark.sample(30)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("file", FIRST)
def test_every_format_reads_back_as_the_same_pairs(file: str, ending: str, tmp_path: Path) -> None:
    source, output = FORMAT_FILES / f"{file}.jsonl", tmp_path / f"out.{ending}"
    manifest = convert(source, output)
    before, after = load_pairs(source), load_pairs(output)
    assert after.format == "trl"
    assert plain(after) == plain(before)
    assert manifest["pairs_written"] == len(before)
    strengths = before.strengths(), after.strengths()
    assert (strengths[0] is None) == (strengths[1] is None)
    if strengths[0] is not None and strengths[1] is not None:
        assert strengths[0].tolist() == strengths[1].tolist()


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_input_and_flags_give_the_same_bytes(ending: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 20}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(60)]
    source = rows_file(tmp_path, rows)
    filters = Filters(dedupe=True, sample=40, balance_length=True, split=0.2)
    written = []
    for folder in ("one", "two"):
        manifest = convert(source, tmp_path / folder / f"out.{ending}", filters)
        assert [entry["file"] for entry in manifest["written"]] == [f"out.{ending}", f"out.held-out.{ending}"]
        written.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 3


def test_no_prompt_is_on_both_sides_of_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 20}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(60)]
    source = rows_file(tmp_path, rows)
    convert(source, tmp_path / "out.jsonl", Filters(split=0.25))
    kept, held_out = load_pairs(tmp_path / "out.jsonl"), load_pairs(tmp_path / "out.held-out.jsonl")
    prompts = {pair.prompt for pair in kept}, {pair.prompt for pair in held_out}
    assert not prompts[0] & prompts[1]
    assert (len(prompts[1]), len(held_out), len(kept)) == (5, 15, 45)
    convert(source, tmp_path / "by-pair.jsonl", Filters(split=0.05, by="pair"))
    assert len(load_pairs(tmp_path / "by-pair.held-out.jsonl")) == 3
    other = convert(source, tmp_path / "seed.jsonl", Filters(split=0.25, seed=1))
    assert other["written"][1]["sha256"] != sha_of(tmp_path / "out.held-out.jsonl")


def test_a_prompt_is_one_however_it_is_asked(tmp_path: Path) -> None:
    """Template options, tools and the shape it is written in make no other prompt of it; nor do they of a duplicate."""
    answers = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
    rows: list[dict[str, Any]] = []
    for index in range(40):
        chat = {"prompt": [{"role": "user", "content": f"q{index}"}], **answers}
        rows += [{**chat, "chat_template_kwargs": {"enable_thinking": thinks}} for thinks in (True, False)]
        rows += [{**chat, "tools": [{"name": "f"}]}, {"prompt": f"q{index}", "chosen": "a", "rejected": "b"}]
    source = rows_file(tmp_path, rows)
    manifest = convert(source, tmp_path / "out.jsonl", Filters(split=0.25, dedupe=True))
    assert manifest["dropped"] == []
    sides = [load_pairs(tmp_path / f"out{word}.jsonl") for word in ("", ".held-out")]
    questions = [{p.prompt if isinstance(p.prompt, str) else p.prompt[-1]["content"] for p in side} for side in sides]
    assert not questions[0] & questions[1]
    assert [len(side) for side in sides] == [120, 40]


def test_pairs_without_a_prompt_are_no_single_prompt() -> None:
    facts = facts_of(*(("" if i % 2 else f"q{i}", f"a{i}", f"b{i}") for i in range(100)))
    assert decide(facts, Filters(split=0.05)).held_out.sum() == 5
    facts = facts_of(("", "a", "b"), (" \n", "b", "a"), ("", "c", "d"))
    held_out = decide(facts, Filters(split=0.5)).held_out.tolist()
    assert held_out[0] == held_out[1] != held_out[2]


def sha_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_no_preference_is_counted_with_its_reason(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    rows = [
        good,
        {**good, "chosen": True},
        {**good, "rejected": None},
        {**good, "rejected": "good"},
        {**good, "chosen": " \n"},
        {**good, "chosen": [{"role": "assistant", "content": "good"}]},
    ]
    source = rows_file(tmp_path, rows)
    manifest = convert(source, tmp_path / "out.jsonl")
    assert reasons(manifest) == {"no_preference": [1, 2], "empty": [4], "identical": [3]}
    assert "in.jsonl row 1, column 'chosen': True is a bool" in manifest["problems"][0]
    assert (manifest["rows_read"], manifest["pairs_read"], manifest["pairs_written"]) == (6, 4, 2)
    with pytest.raises(DatasetError, match="row 2 has no 'rejected'"):
        convert(source, tmp_path / "strict.jsonl", strict=True)
    assert not (tmp_path / "strict.jsonl").exists()


def test_a_manifest_says_what_became_of_every_row(tmp_path: Path) -> None:
    source = FORMAT_FILES / "ultrafeedback.jsonl"
    output = tmp_path / "out.jsonl"
    manifest = convert(source, output, Filters(min_margin=3.25), options={"format": "ultrafeedback"})
    assert json.loads((tmp_path / "out.jsonl.manifest.json").read_text(encoding="utf-8")) == manifest
    (entry,) = manifest["inputs"]
    assert entry["sha256"] == {"ultrafeedback.jsonl": sha_of(source)}
    assert {left["reason"]: left["count"] for left in entry["gave_no_pair"]} == {"tied": 1, "one_completion": 1}
    assert manifest["filters"] == {"min_margin": 3.25}
    assert manifest["options"] == {"format": "ultrafeedback"}
    assert manifest["min_margin_is_of"] == "strength"
    assert reasons(manifest) == {"min_margin": [0]}
    assert manifest["written"] == [
        {"file": "out.jsonl", "pairs": 2, "bytes": output.stat().st_size, "sha256": sha_of(output)}
    ]
    assert [row["strength"] for row in map(json.loads, output.read_text().splitlines())] == [3.5, 3.5]


def facts_of(*pairs: tuple[str, str, str], **more: list[Any]) -> Facts:
    facts = Facts()
    for index, (prompt, chosen, rejected) in enumerate(pairs):
        strength = more["strength"][index] if "strength" in more else None
        extra = {name: values[index] for name, values in more.items() if name != "strength"}
        facts.add(PreferencePair(prompt, chosen, rejected, **extra), strength)
    return facts


def dropped(facts: Facts, **filters: Any) -> dict[str, list[int]]:
    return {reason: rows.tolist() for reason, rows in decide(facts, Filters(**filters)).dropped.items()}


ABC = ("p", "aa", "b"), ("p", "b", "aa"), ("p", "aa", "b"), ("q", "aa", "b"), ("q", "c", "dddd")


def test_filters_that_look_at_all_pairs() -> None:
    assert dropped(facts_of(*ABC), dedupe=True) == {"duplicate": [2]}
    assert dropped(facts_of(*ABC), drop_contradictions=True) == {"contradiction": [0, 1, 2]}
    assert dropped(facts_of(*ABC), drop_contradictions=True, dedupe=True) == {"contradiction": [0, 1, 2]}
    assert dropped(facts_of(*ABC), max_length_ratio=2) == {"max_length_ratio": [4]}
    (surplus,) = dropped(facts_of(*ABC), balance_length=True).values()
    assert len(surplus) == 1
    assert surplus[0] in (0, 2, 3)
    assert len(dropped(facts_of(*ABC), sample=2)["sample"]) == 3
    assert dropped(facts_of(*ABC), sample=9) == {}


def test_filters_by_what_pairs_say() -> None:
    facts = facts_of(*ABC, strength=[1.0, 2.0, None, 3.0, -1.0], agreement=[1.0, None, 0.5, 0.75, 0.75])
    assert dropped(facts, min_margin=2) == {"no_strength": [2], "min_margin": [0, 4]}
    assert dropped(facts, min_agreement=0.75) == {"no_agreement": [1], "min_agreement": [2]}
    facts = facts_of(*ABC, margin=[0.0, 2.0, 1.0, 3.0, 0.0], source=["web", "book", None, "web", "web"])
    decision = decide(facts, Filters(min_margin=1))
    assert decision.margin_from == "margin"
    assert decision.kept.tolist() == [False, True, True, True, False]
    assert dropped(facts, sources=("web",)) == {"source": [1, 2]}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"min_margin": 1.0}, "neither ratings, ranks or votes nor a column of margins"),
        ({"min_agreement": 0.5}, "no pair states how many annotators agree"),
        ({"sources": ("webb",)}, r"No pair is of the source 'webb' \(found: 'web'\). Did you mean 'web'\?"),
        ({"split": 0.5, "dedupe": True}, "there is only one prompt"),
    ],
)
def test_a_filter_on_what_the_data_do_not_have(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        decide(facts_of(("p", "a", "b"), source=["web"]), Filters(**filters))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_margin": -1},
        {"min_agreement": 1.5},
        {"max_length_ratio": 0.5},
        {"sample": 0},
        {"split": 1.0},
        {"seed": -1},
    ],
)
def test_impossible_filters(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Filters(**wrong)


def test_reasons_are_decided_in_their_order() -> None:
    """A pair that fails twice is counted once, under the first reason."""
    facts = facts_of(("p", "a", "bbbbbb"), ("p", "a", "bbbbbb"), strength=[1.0, 1.0])
    assert dropped(facts, min_margin=2, max_length_ratio=2, dedupe=True) == {"min_margin": [0, 1]}
    assert list(REASONS).index("min_margin") < list(REASONS).index("duplicate")


def test_nothing_left_names_the_reasons(tmp_path: Path) -> None:
    source = rows_file(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    with pytest.raises(DatasetError, match=r"Nothing is left to write \(1: chosen and rejected are the same\)"):
        convert(source, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    source = rows_file(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(ConfigError, match="does not determine the file format"):
        convert(source, tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="is an input"):
        convert(source, source, overwrite=True)
    convert(source, tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match="exists already"):
        convert(source, tmp_path / "out.jsonl")
    convert(source, tmp_path / "out.jsonl", overwrite=True)
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        convert(source, tmp_path / "dir.jsonl")


@pytest.mark.parametrize("ending", ENDINGS)
def test_answers_that_look_like_json_stay_texts(ending: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": "2+2?", "responses": ["4", "null", '{"a": 1}', "true", '"x"', "1e999"], "scores": [6, 5, 4, 3, 2, 1]}
    ]
    source = rows_file(tmp_path, rows)
    before = load_pairs(source)
    assert (before[0].chosen, before[0].rejected) == ("4", "null")
    convert(source, tmp_path / f"out.{ending}")
    assert plain(load_pairs(tmp_path / f"out.{ending}")) == plain(before)
    assert plain(load_pairs(rows)) == plain(before)


def test_mixed_kinds_of_sides_in_one_file(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "hi", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "weight": 2.0},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": [turn], "rejected": "b", "id": 7},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{**turn, "tool_calls": [{"name": "f", "arguments": {"x": 0.5}}]}],
            "rejected": "c",
        },
    ]
    source = rows_file(tmp_path, rows)
    before = load_pairs(source)
    assert before[1].chosen[0]["tool_calls"][0]["function"]["arguments"] == {"x": 1}  # type: ignore[index]
    for ending in ENDINGS:
        convert(source, tmp_path / f"out.{ending}")
        assert plain(load_pairs(tmp_path / f"out.{ending}")) == plain(before)


@pytest.mark.sample(10)
@pytest.mark.parametrize("file", [file for file in FIRST if FORMATS[FIRST[file][0]].table is None])
def test_a_stream_gives_the_same_pairs(file: str, tmp_path: Path) -> None:
    source = FORMAT_FILES / f"{file}.jsonl"
    stream = load_pairs(source, streaming=True)
    loaded = load_pairs(source)
    for _ in range(2):  # a stream may be read again
        assert list(stream) == list(loaded)
    assert {reason: left.count for reason, left in stream.left.items()} == {
        reason: left.count for reason, left in loaded.left.items()
    }
    convert_pairs([Input(str(source), stream)], tmp_path / "stream.jsonl")
    convert(source, tmp_path / "whole.jsonl")
    assert (tmp_path / "stream.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="read as oasst, whose rows belong together"):
        open_stream(FORMAT_FILES / "oasst.jsonl")
    rows = [{"prompt": "p", "chosen": "a", "rejected": f"b{i}"} for i in range(1001)]
    stream = open_stream(rows_file(tmp_path, [*rows, {**rows[0], "system": "Be kind."}]))
    with pytest.raises(DatasetError, match="row 1001 has the column 'system', which none of the first 1,000 rows has"):
        list(stream)
    late = open_stream(rows_file(tmp_path, [*rows, {**rows[0], "weight": 3.0}]))
    assert [pair.weight for pair in late][-2:] == [1.0, 3.0]
    with pytest.raises(DatasetError, match="reads one dataset"):
        load_pairs(["a.jsonl", "b.jsonl"], streaming=True)


def test_a_chat_stream(tmp_path: Path) -> None:
    source = rows_file(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert list(open_stream(source).as_chat()) == list(load_pairs(source).as_chat())


def test_zipped_output_is_zipped(tmp_path: Path) -> None:
    source = rows_file(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    convert(source, tmp_path / "out.jsonl.gz")
    assert json.loads(gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes())) == {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
    }


# --- mixtures ---


def mixture_files(folder: Path) -> tuple[Path, Path]:
    rows = [
        [{"prompt": f"{n} {i}", "chosen": "a", "rejected": "b"} for i in range(count)]
        for n, count in (("x", 30), ("y", 10))
    ]
    return rows_file(folder, rows[0], "x.jsonl"), rows_file(folder, rows[1], "y.jsonl")


def test_a_mixture_has_its_proportions_and_no_row_twice(tmp_path: Path) -> None:
    x, y = mixture_files(tmp_path)
    mixed = load_pairs([f"{x}:0.6", f"{y}:0.4"])
    from_x = [pair.prompt for pair in mixed if pair.source == str(x)]
    from_y = [pair.prompt for pair in mixed if pair.source == str(y)]
    assert (len(from_x), len(from_y)) == (15, 10)
    assert len(set(from_x)) == 15
    assert [pair.row for pair in mixed] == list(range(25))
    assert mixed.raw[3]["source_row"] == int(str(mixed[3].prompt).split()[1])
    assert any("15 of 30 pairs are in the mixture (60% of it)" in note for note in mixed.notes)
    assert [p.prompt for p in load_pairs([f"{x}:60%", (y, 0.4)])] == [p.prompt for p in mixed]
    assert [p.prompt for p in load_pairs([f"{x}:6", f"{y}:4"], seed=1)] != [p.prompt for p in mixed]
    assert len(load_pairs([x, y])) == 40


def test_a_mixture_of_formats_is_one_dataset() -> None:
    files = [FORMAT_FILES / f"{name}.jsonl" for name in ("openai", "ultrafeedback", "hh-rlhf")]
    mixed = load_pairs(files)
    assert [(p.prompt, p.chosen, p.rejected, p.tools) for p in mixed] == [
        (p.prompt, p.chosen, p.rejected, p.tools) for file in files for p in load_pairs(file)
    ]
    assert sum(left.count for left in mixed.left.values()) == 2
    assert len(mixed.select([0, 1]).as_chat()) == 2
    strengths = mixed.strengths()
    assert strengths is not None
    assert strengths[1:6].tolist() == [0.5, 3.5, 3.5, 3.0, 3.0]
    one = load_pairs(files[0])
    assert mix_pairs([one], [None]) is one


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["{x}:0.5", "{y}"], "Some of 2 datasets have a proportion, but .*y.jsonl does not"),
        (["{x}:0", "{y}:1"], "The proportion of .*x.jsonl is 0"),
        ([("{x}", -1.0), ("{y}", 1.0)], "The proportion of .* is -1.0"),
        (["{x}:0.1"], r"x.jsonl is a single dataset and has the proportion 0.1, .*'train\[:10%\]'"),
    ],
)
def test_wrong_proportions(sources: list[Any], message: str, tmp_path: Path) -> None:
    x, y = mixture_files(tmp_path)
    filled = [(s[0].format(x=x, y=y), s[1]) if isinstance(s, tuple) else s.format(x=x, y=y) for s in sources]
    with pytest.raises(DatasetError, match=message):
        load_pairs(filled)


def test_a_mixture_with_a_negative_seed(tmp_path: Path) -> None:
    x, y = mixture_files(tmp_path)
    with pytest.raises(ConfigError, match="seed is -1; give a whole number of 0 or more"):
        load_pairs([f"{x}:0.6", f"{y}:0.4"], seed=-1)


def test_a_file_may_be_called_like_a_proportion(tmp_path: Path) -> None:
    path = rows_file(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}], "pairs:0.5")
    path = path.rename(path.with_name("pairs.jsonl:0.5"))
    assert len(load_pairs([path])) == 1
