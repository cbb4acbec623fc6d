"""Bad input as a new user would try it: one paragraph, exit code 2 or 1, and nothing lost."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import Result, pair, write_rows

Run = Callable[..., Result]


@pytest.fixture
def dpo(preftune, tiny_model, pairs_file, tmp_path) -> Run:
    """`preftune dpo` with everything right, but for what a test changes."""

    def call(**changes: object) -> Result:
        words = {"model": tiny_model, "data": pairs_file, "output_dir": tmp_path / "run", "max_steps": 1, **changes}
        return preftune("dpo", *(f"--{name}={value}" for name, value in words.items() if value is not None))

    return call


@pytest.fixture
def no_loading(monkeypatch) -> None:
    """Weights must not be touched: what is wrong is told before."""
    import preftune.models.load as load

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "load_pretrained", refuse)


def check(result: Result, *says: str, code: int = 2) -> None:
    assert result.code == code, result.err
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert result.err.startswith("preftune: ")
    assert "Traceback" not in result.err
    for part in says:
        assert part in result.err


pytestmark = pytest.mark.usefixtures("no_loading")


def test_missing_file(dpo, tmp_path) -> None:
    check(dpo(data=tmp_path / "pars.jsonl"), "does not exist", "Did you mean", "pairs.jsonl")


def test_empty_file(dpo, tmp_path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    check(dpo(data=tmp_path / "empty.jsonl"), "empty.jsonl")


def test_wrong_columns(dpo, tmp_path) -> None:
    rows = [{"prompt": "a", "good": "b", "bad": "c"}]
    result = dpo(data=write_rows(tmp_path / "wrong.jsonl", rows))
    check(result, "'good'", "'bad'", "--columns")


def test_columns_flag_fixes_them(preftune, tiny_model, tmp_path) -> None:
    """The cure that the message names is the one that works (told here by getting past the data)."""
    names = {"prompt": "prompt", "chosen": "good", "rejected": "bad"}
    rows = [{names[key]: value for key, value in pair(0).items()}]
    data = write_rows(tmp_path / "wrong.jsonl", rows)
    words = ["--model", tiny_model, "--data", data, "--output_dir", str(tmp_path / "run")]
    result = preftune("dpo", *words, "--columns", "chosen=good", "rejected=bad")
    assert "AssertionError: a model was loaded" in result.message


def test_directory_without_data(dpo, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    check(dpo(data=tmp_path / "folder"), "folder")


@pytest.mark.parametrize(
    "name", ["noise.jsonl", "noise.json", "noise.parquet", "noise.csv", "noise.jsonl.gz", "noise.bin"]
)
def test_binary_file(dpo, tmp_path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    check(dpo(data=tmp_path / name), name)


def test_torn_gzip(dpo, tmp_path) -> None:
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 400)[:40])
    check(dpo(data=tmp_path / "torn.jsonl.gz"), "torn.jsonl.gz")


def test_model_folder_with_a_typo(dpo, tiny_model) -> None:
    wrong = str(Path(tiny_model).with_name("tiny-lama"))
    check(dpo(model=wrong), "There is no model at", "tiny-llama")


def test_model_id_that_does_not_exist(dpo) -> None:
    check(dpo(model="HuggingFaceTB/SmolLM2-135M-Instuct"), "SmolLM2-135M-Instuct")


def test_folder_that_is_no_model(dpo, tmp_path) -> None:
    (tmp_path / "nothing").mkdir()
    check(dpo(model=tmp_path / "nothing"), "no config.json")


@pytest.mark.parametrize("beta", ["-1", "0", "nan", "inf"])
def test_impossible_beta(dpo, beta: str) -> None:
    check(dpo(beta=beta), "--beta ", "above 0")


def test_beta_that_is_no_number(dpo) -> None:
    check(dpo(beta="high"), "--beta", "'high'")


@pytest.mark.parametrize("rate", ["nan", "-1e-6"])
def test_impossible_learning_rate(dpo, rate: str) -> None:
    check(dpo(learning_rate=rate), "--learning_rate ")


def test_unknown_loss(dpo) -> None:
    check(dpo(loss_type="sigmoyd"), "sigmoyd", "sigmoid")


def test_misspelt_flag(dpo) -> None:
    check(dpo(learnig_rate="1e-6"), "There is no flag --learnig_rate. Did you mean --learning_rate?")


def test_unwritable_output(dpo, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    check(dpo(output_dir=tmp_path / "file" / "run"), "cannot be written")
    check(dpo(output_dir=tmp_path / "file"), "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_named(preftune, pairs_file, tiny_model) -> None:
    check(preftune("dpo", "--data", pairs_file), "There is no model to align", "--model")
    for method in ("dpo", "kto", "sft", "reward", "ppo", "grpo", "online"):
        check(preftune(method), "There is no model to", f"See preftune {method} --help")
    check(preftune("dpo", "--model", tiny_model), "no preference pairs", "--data")


def test_evaluation_without_held_out_pairs(dpo) -> None:
    check(dpo(eval_strategy="epoch"), "--eval_fraction", "--eval_dataset_name")


def test_one_prompt_cannot_be_split(dpo, tmp_path) -> None:
    data = write_rows(tmp_path / "one.jsonl", [pair(0), pair(8)])
    check(dpo(data=data, eval_fraction=0.5), "only one prompt")


def test_nothing_to_resume(dpo, tmp_path) -> None:
    check(dpo(resume=tmp_path / "nowhere"), "not a checkpoint")
    check(dpo(resume_from_checkpoint="true"), "no checkpoint in")


def test_a_bad_request_leaves_an_earlier_run_alone(dpo, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    for changes in ({"beta": -1}, {"data": tmp_path / "no.jsonl"}, {"model": tmp_path / "no"}, {"loss_type": "x"}):
        assert dpo(**changes).code == 2
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "run.json"]
    assert (run / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "flag",
    [
        "adam_beta1=2", "optim_args=x", "lr_scheduler_kwargs=5", "dataloader_num_workers=-1",
        "accelerator_config=nofile", "config=recipe.yaml",
    ],
)  # fmt: skip
def test_values_that_other_libraries_refuse_are_reported_with_their_flag(dpo, tmp_path, monkeypatch, flag: str) -> None:
    """They ended in an error of torch or transformers, after the earlier run was moved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cyc: 3}\n")
    name, _, value = flag.partition("=")
    check(dpo(**{name: value}), f"--{name} " if name != "config" else "--lr_scheduler_kwargs {'num_cyc': 3}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["chat", "--model", "no-such-folder/"], "no-such-folder"),
        (["chat"], "--model"),
        (["chat", "--model", "x", "--temprature", "1"], "Did you mean --temperature?"),
        (["chat", "--model", "x", "--temperature", "-1"], "--temperature"),
        (["merge"], "ADAPTER"),
        (["merge", "a", "--ouput", "b", "-o", "c"], "Did you mean --output?"),
        (["env", "--jsn"], "Did you mean --json?"),
        (["demo", "--max_pairs", "0"], "--max_pairs 0"),
        (["demo", "--sed", "0"], "Did you mean --seed?"),
        (["demo", "--output", "/dev/null/x"], "Nothing can be written"),
    ],
)
def test_other_commands(preftune, words: list[str], says: str) -> None:
    check(preftune(*words), says)


def test_merge_of_no_adapter(preftune, tiny_model, tmp_path) -> None:
    check(preftune("merge", tiny_model, "-o", tmp_path / "out"), "no adapter")
    assert not (tmp_path / "out").exists()
