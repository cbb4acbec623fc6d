"""`preftune convert` as it is typed, and mixtures on the command line of `preftune dpo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.cli.flags.arguments import DataArguments, MixtureEntry
from preftune.cli.train.datasets import open_datasets, open_demonstrations, open_labelled
from preftune.data import load_pairs
from preftune.errors import ConfigError, DatasetError, RequestError

FORMATS = Path(__file__).parents[2] / "data" / "format_rows"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"p{i % 10}", "chosen": "x" * (i + 1), "rejected": "y", "source": "ab"[i % 2]} for i in range(40)
    ]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_format_becomes_a_file_that_trains(preftune, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    result = preftune("convert", FORMATS / "ultrafeedback.jsonl", "-o", output, "--min-margin", 3)
    assert result.code == 0
    assert "2 rows, read as ultrafeedback." in result.out
    assert "1 left out (rows 0): two answers have the same rating, so neither is preferred." in result.out
    assert "5 pairs were read, 4 kept." in result.out
    assert "1 left out (rows 0): below --min-margin." in result.out
    assert len(load_pairs(output)) == 4


@pytest.mark.parametrize("dash", ["-", "_"])
def test_dashes_and_underscores(preftune, many: Path, tmp_path: Path, dash: str) -> None:
    flags = ["--max-length-ratio", "20", "--drop-contradictions", "--balance-length"]
    flags = [flag.replace("-", dash).replace("__", "--") if flag.startswith("--") else flag for flag in flags]
    result = preftune("convert", many, "-o", tmp_path / "out.jsonl", *flags, "--json")
    assert result.code == 0
    manifest = json.loads(result.out)
    assert manifest["filters"] == {"max_length_ratio": 20, "drop_contradictions": True, "balance_length": True}
    assert {left["reason"]: left["count"] for left in manifest["dropped"]} == {
        "max_length_ratio": 20,
        "length_balance": 19,
    }


def test_split_names_both_files_and_the_command_that_trains_on_them(preftune, many: Path, tmp_path: Path) -> None:
    result = preftune(
        "convert", many, "-o", tmp_path / "out.parquet", "--split", "0.2", "--by", "prompt", "--source", "a"
    )
    assert result.code == 0
    held_out = tmp_path / "out.held-out.parquet"
    assert f"Written: {held_out} (4 pairs, " in result.out
    assert f"--data {tmp_path / 'out.parquet'} --eval_dataset_name {held_out}" in result.out
    assert len(load_pairs(tmp_path / "out.parquet")) == 16


def test_a_mixture_in_proportions(preftune, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    other = FORMATS / "ultrafeedback.jsonl"
    result = preftune("convert", f"{many}:0.8", f"{other}:20%", "-o", output, "--as_chat")
    assert result.code == 0
    assert f"{many}: 40 rows, read as trl; 20 of 40 pairs were drawn." in result.out
    assert len(load_pairs(output)) == 25


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{many}"], "The following arguments are required: -o/--output. See preftune convert --help."),
        (["{many}", "-o", "{out}", "--dedup"], "does not know '--dedup'. Did you mean --dedupe?"),
        (["{many}", "-o", "{out}", "--by", "pair"], "--by chooses the unit of --split"),
        (["{many}", "-o", "{out}", "--min-margin", "1"], "min_margin: the data have neither ratings"),
        (["{many}", "-o", "out.csv"], "does not determine the file format"),
        (["{many}x", "-o", "{out}"], "does not exist. Did you mean"),
        (["{many}", "-o", "{many}"], "is an input, and would be overwritten"),
        (["{many}:1", "{many}:1", "-o", "{out}", "--streaming"], "--streaming does not count the rows"),
        (["{many}", "-o", "{out}", "--columns", "chosen"], "write canonical=yours"),
        (["{many}", "-o", "{out}", "--sample", "3", "--seed", "-1"], "seed is -1; give a whole number of 0 or more"),
        (["{many}:1", "{many}:1", "-o", "{out}", "--seed", "-1"], "seed is -1; give a whole number of 0 or more"),
        (["{many}:0.1", "-o", "{out}"], "many.jsonl is a single dataset and has the proportion 0.1"),
    ],
)
def test_wrong_requests(preftune, many: Path, tmp_path: Path, words: list[str], message: str) -> None:
    result = preftune("convert", *(word.format(many=many, out=tmp_path / "out.jsonl") for word in words))
    assert result.code == 2
    assert message in result.message
    assert result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


def test_what_was_held_out_before_does_not_stay_beside_a_file_with_all_pairs(
    preftune, many: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, held_out = tmp_path / "out.jsonl", tmp_path / "out.held-out.jsonl"
    assert preftune("convert", many, "-o", output, "--split", "0.25").code == 0
    before = held_out.read_bytes()
    output.unlink()
    (tmp_path / "out.jsonl.manifest.json").unlink()
    result = preftune("convert", many, "-o", output)
    assert result.code == 2
    assert f"{held_out} exists already, and without --split it would hold out nothing" in result.message
    assert preftune("convert", held_out, "-o", output, "--overwrite").code == 2  # it would be removed, and is the input
    assert preftune("convert", many, "-o", output, "--min-margin", "1", "--overwrite").code == 2
    assert held_out.read_bytes() == before  # nothing is removed unless all is written
    result = preftune("convert", many, "-o", output, "--overwrite")
    assert result.code == 0
    assert f"Removed {held_out}, held out by an earlier run" in caplog.text
    assert not held_out.exists()
    caplog.clear()
    assert preftune("convert", many, "-o", output, "--overwrite").code == 0
    assert caplog.text == ""


def test_strict_and_streaming(preftune, many: Path, tmp_path: Path) -> None:
    with many.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "p", "chosen": 4, "rejected": "b"}\n')
    result = preftune("convert", many, "-o", tmp_path / "out.jsonl", "--strict")
    assert result.code == 2
    assert "row 40, column 'chosen': 4 is an int" in result.message
    result = preftune("convert", many, "-o", tmp_path / "out.jsonl", "--streaming")
    assert result.code == 0
    assert "1 left out (rows 40): the row is not a preference." in result.out


def test_help_fits_a_terminal(preftune) -> None:
    result = preftune("convert", "--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 100


# --- mixtures to train on ---


def open_training(**data: object) -> list[str]:
    train, _ = open_datasets(DataArguments(**data), evaluate=False, seed=0)  # type: ignore[arg-type]
    return [str(pair.prompt) for pair in train]


def test_several_datasets_to_train_on(many: Path) -> None:
    other = str(FORMATS / "ultrafeedback.jsonl")
    assert len(open_training(dataset_name=[str(many), other])) == 45
    assert len(open_training(dataset_name=[f"{many}:0.5", f"{other}:0.5"])) == 10
    assert DataArguments(dataset_name=[f"{many}:0.5", f"{other}:0.5"]).dataset_names == [str(many), other]
    assert DataArguments(dataset_name=[str(many)]).dataset_names == str(many)


def test_the_mixtures_of_trl(many: Path) -> None:
    other = str(FORMATS / "ultrafeedback-trl-lib.jsonl")
    entries = [{"path": str(many), "split": "train[:4]"}, {"path": other, "columns": ["chosen", "rejected"]}]
    assert len(open_training(datasets=[json.dumps(entry) for entry in entries])) == 5
    entries = [{"path": str(many), "proportion": 4}, {"path": other, "proportion": 1}]
    assert len(open_training(datasets=[json.dumps(entry) for entry in entries])) == 5
    with pytest.raises(DatasetError, match="Some of 2 datasets have a proportion"):
        open_training(datasets=[json.dumps(entries[0]), json.dumps({"path": other})])
    with pytest.raises(ConfigError, match="'data_files' of x is not honoured"):
        DataArguments(datasets=['{"path": "x", "data_files": "y"}'])
    with pytest.raises(ConfigError, match="is not an entry with a path"):
        DataArguments(datasets=["x.jsonl"])
    with pytest.raises(ConfigError, match="both name the training data"):
        DataArguments(datasets=['{"path": "x"}'], dataset_name=["y"])
    assert DataArguments(datasets=['{"path": "x", "name": null}']).mixture == [MixtureEntry("x")]


@pytest.mark.parametrize("proportion", [-1, 0, "a lot", "0.5", True, float("nan"), [1]])
def test_a_proportion_in_a_recipe_is_a_number_above_0(proportion: object) -> None:
    entries = [{"path": "a.jsonl", "proportion": proportion}, {"path": "b.jsonl", "proportion": 1}]
    with pytest.raises(DatasetError, match=r"The proportion of a.jsonl is .*Give a number above 0"):
        DataArguments(datasets=[json.dumps(entry) for entry in entries])


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_proportion_of_a_single_dataset(many: Path, evaluate: bool) -> None:
    entry = json.dumps({"path": str(many), "proportion": 0.1})
    for data in (
        DataArguments(dataset_name=[f"{many}:0.1"]),
        DataArguments(dataset_name=[f"{many.parent}:10%"]),
        DataArguments(datasets=[entry]),
    ):
        with pytest.raises(DatasetError, match=r"single dataset and has the proportion 0.1.* 'train\[:10%\]'"):
            open_datasets(data, evaluate=evaluate, seed=0)


def test_evaluation_of_a_mixture_names_what_there_is(many: Path) -> None:
    data = DataArguments(dataset_name=[f"{many}:0.5", f"{many}:0.5"])
    with pytest.raises(RequestError, match=f"but {many} \\+ {many} is one set of pairs without a 'test' part"):
        open_datasets(data, evaluate=True, seed=0)


def test_the_one_entry_of_a_recipe_is_evaluated_as_it_is_trained_on(tmp_path: Path) -> None:
    for split in ("train", "test"):
        row = {"prompt": split, "chosen": "a", "rejected": "b", "margin": 1.5}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    entry = {"path": str(tmp_path), "columns": ["prompt", "chosen", "rejected"]}
    train, held_out = open_datasets(DataArguments(datasets=[json.dumps(entry)]), evaluate=True, seed=0)
    assert held_out is not None
    assert [(pair.prompt, pair.margin) for part in (train, held_out) for pair in part] == [("train", 0), ("test", 0)]


def test_a_negative_seed_to_train_with(many: Path) -> None:
    with pytest.raises(ConfigError, match="seed is -1; give a whole number of 0 or more"):
        open_datasets(DataArguments(dataset_name=[str(many)], eval_fraction=0.5), evaluate=False, seed=-1)


# --- what is held out for evaluation ---


def write(path: Path, rows: list[dict[str, object]]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(path)]


def test_what_opening_counted_is_said_of_the_part_that_is_trained(tmp_path: Path) -> None:
    answers = [{"prompt": f"q{i}", "completion": "a", "label": None if i == 2 else bool(i % 2)} for i in range(12)]
    rated = [{"prompt": f"q{i}", "completions": ["a", "b"], "scores": [5, 5 if i == 2 else 1]} for i in range(12)]
    opened = [(open_labelled, answers, "no_label"), (open_demonstrations, answers, "bad_answer")]
    for open_both, rows, reason in [*opened, (open_datasets, rated, "tied")]:
        data = DataArguments(dataset_name=write(tmp_path / "rows.jsonl", rows), eval_fraction=0.25)
        train, held_out = open_both(data, evaluate=False, seed=0)
        assert held_out is not None
        assert reason in train.left
        assert (held_out.left, held_out.notes) == ({}, ())


def test_text_and_a_turn_are_one_prompt(tmp_path: Path) -> None:
    answers = {"chosen": "a", "rejected": "b"}
    rows = [{"prompt": p, **answers} for i in range(20) for p in (f"q{i}", [{"role": "user", "content": f"q{i}"}])]
    data = DataArguments(dataset_name=write(tmp_path / "mixed.jsonl", rows), eval_fraction=0.25)
    train, held_out = open_datasets(data, evaluate=False, seed=0)
    assert held_out is not None
    questions = [
        {p.prompt if isinstance(p.prompt, str) else p.prompt[0]["content"] for p in x} for x in (train, held_out)
    ]
    assert not questions[0] & questions[1]
    assert (len(train), len(held_out)) == (30, 10)


def test_pairs_without_a_prompt_are_held_out_one_by_one(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}" if i % 2 else "", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(100)]
    rows += [{"prompt": "", "chosen": "a0", "rejected": "b0"}]  # the same once more
    data = DataArguments(dataset_name=write(tmp_path / "half.jsonl", rows), eval_fraction=0.05)
    train, held_out = open_datasets(data, evaluate=False, seed=0)
    assert held_out is not None
    assert len(held_out) in (5, 6)
    assert not {p.chosen for p in train} & {p.chosen for p in held_out}
