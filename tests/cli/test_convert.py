"""`preftune convert` as it is typed, and mixtures on the command line of `preftune dpo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.cli.arguments import DataArguments, MixtureEntry
from preftune.cli.datasets import open_datasets
from preftune.data import load_pairs
from preftune.errors import ConfigError, DatasetError

FORMATS = Path(__file__).parent.parent / "data" / "formats"


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
    assert "1 left out (rows 0): two answers that are rated the same prefer nothing." in result.out
    assert "5 pairs were read, 4 are kept." in result.out
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
        (["{many}", "-o", "{out}", "--by", "pair"], "--by says what --split is a share of"),
        (["{many}", "-o", "{out}", "--min-margin", "1"], "min_margin: the data have neither ratings"),
        (["{many}", "-o", "out.csv"], "does not say how it is to be written"),
        (["{many}x", "-o", "{out}"], "does not exist. Did you mean"),
        (["{many}", "-o", "{many}"], "is an input, and would be overwritten"),
        (["{many}:1", "{many}:1", "-o", "{out}", "--streaming"], "--streaming reads what it does not count"),
        (["{many}", "-o", "{out}", "--columns", "chosen"], "write canonical=yours"),
    ],
)
def test_wrong_requests(preftune, many: Path, tmp_path: Path, words: list[str], message: str) -> None:
    result = preftune("convert", *(word.format(many=many, out=tmp_path / "out.jsonl") for word in words))
    assert result.code == 2
    assert message in result.message
    assert result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


def test_strict_and_streaming(preftune, many: Path, tmp_path: Path) -> None:
    with many.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "p", "chosen": 4, "rejected": "b"}\n')
    result = preftune("convert", many, "-o", tmp_path / "out.jsonl", "--strict")
    assert result.code == 2
    assert "row 40, column 'chosen': 4 is a int" in result.message
    result = preftune("convert", many, "-o", tmp_path / "out.jsonl", "--streaming")
    assert result.code == 0
    assert "1 left out (rows 40): the row is no preference." in result.out


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
    assert DataArguments(dataset_name=[f"{many}:0.5"]).dataset_names == str(many)


def test_the_mixtures_of_trl(many: Path) -> None:
    other = str(FORMATS / "ultrafeedback-trl-lib.jsonl")
    entries = [{"path": str(many), "split": "train[:4]"}, {"path": other, "columns": ["chosen", "rejected"]}]
    assert len(open_training(datasets=[json.dumps(entry) for entry in entries])) == 5
    entries = [{"path": str(many), "proportion": 4}, {"path": other, "proportion": 1}]
    assert len(open_training(datasets=[json.dumps(entry) for entry in entries])) == 5
    with pytest.raises(DatasetError, match="some have a proportion"):
        open_training(datasets=[json.dumps(entries[0]), json.dumps({"path": other})])
    with pytest.raises(ConfigError, match="'data_files' of x is not honoured"):
        DataArguments(datasets=['{"path": "x", "data_files": "y"}'])
    with pytest.raises(ConfigError, match="is no entry with a path"):
        DataArguments(datasets=["x.jsonl"])
    with pytest.raises(ConfigError, match="both name the training data"):
        DataArguments(datasets=['{"path": "x"}'], dataset_name=["y"])
    assert DataArguments(datasets=['{"path": "x", "name": null}']).mixture == [MixtureEntry("x")]
