"""Which columns another tool's recipe reads, and which adapter it continues: carried over, or named."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.cli.flags.recipe import read_recipe
from preftune.cli.recipes.convert_recipe import run
from preftune.cli.train.train_command import read_request
from preftune.errors import RequestError

AXOLOTL = "base_model: some/model\nsequence_len: 512\n"
FACTORY = "model_name_or_path: some/model\ntemplate: qwen\nfinetuning_type: lora\n"


def converted(folder: Path, text: str, capsys: Any) -> tuple[dict[str, Any], str]:
    """The settings, which the command reads, and what was said."""
    (folder / "theirs.yaml").write_text(text)
    assert run([str(folder / "theirs.yaml"), "-o", str(folder / "ours.yaml")]) == 0
    said = capsys.readouterr().out
    method = importlib.import_module(f"preftune.cli.train.{said.split('preftune ')[-1].split()[0]}").METHOD
    read_request(method, [], read_recipe(str(folder / "ours.yaml")))
    return yaml.safe_load((folder / "ours.yaml").read_text()), said


def axolotl(folder: Path, entry: dict[str, Any], capsys: Any, *, rl: str = "rl: dpo\n") -> tuple[dict[str, Any], str]:
    return converted(folder, AXOLOTL + rl + yaml.safe_dump({"datasets": [{"path": "p.jsonl", **entry}]}), capsys)


SWAPPED = {"field_prompt": "prompt", "field_chosen": "rejected", "field_rejected": "chosen"}


@pytest.mark.parametrize(
    ("entry", "columns"),
    [
        ({"type": SWAPPED}, ["chosen=rejected", "rejected=chosen"]),
        (
            {"type": "chat_template.default", "field_messages": "conv", "field_chosen": "a", "field_rejected": "b"},
            ["chosen=a", "rejected=b", "prompt=conv"],
        ),
        (  # the column of the messages is Axolotl's default
            {"type": "chat_template.default", "field_chosen": "a", "field_rejected": "b"},
            ["chosen=a", "rejected=b", "prompt=messages"],
        ),
        ({"type": {**SWAPPED, "prompt_format": "{prompt}"}}, ["chosen=rejected", "rejected=chosen"]),
        ({"type": "chat_template.argilla_chat"}, None),
    ],
)
def test_the_columns_of_axolotl_are_those_of_the_training(entry, columns, tmp_path, capsys):
    """Without them, a recipe that swaps chosen and rejected trained the opposite."""
    settings, said = axolotl(tmp_path, entry, capsys)
    assert settings.get("columns") == columns
    assert settings["dataset_name"] == ["p.jsonl"]
    assert "WITHOUT" not in said
    assert ("is recognised" in said) == (columns is None)


@pytest.mark.parametrize(
    ("rl", "entry", "columns"),
    [
        ("", {"type": "chat_template", "field_messages": "conv"}, ["messages=conv"]),
        ("", {"type": "completion", "field": "body"}, ["text=body"]),
        (
            "",
            {"type": {"field_instruction": "q", "field_input": "more", "field_output": "a", "field_system": "s"}},
            ["completion=a", "system=s", "prompt=q+more"],
        ),
        (
            "rl: kto\n",
            {"type": {"field_prompt": "q", "field_completion": "a", "field_label": "good"}},
            ["prompt=q", "completion=a", "label=good"],
        ),
    ],
)
def test_columns_of_demonstrations_and_of_labels(rl, entry, columns, tmp_path, capsys):
    settings, _ = axolotl(tmp_path, entry, capsys, rl=rl)
    assert settings["columns"] == columns


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"type": {"prompt_format": "Q: {prompt}\n"}}, ["prompt_format 'Q: {prompt}\\n'", "WITHOUT this text"]),
        ({"type": {"field_system": "s"}}, ["field_system s", "no effect without {system}"]),
        ({"type": "chat_template", "message_property_mappings": {"role": "who", "content": "what"}},
         ["message_property_mappings", "rename other keys in the rows"]),
        ({"type": "chat_template", "roles": {"user": ["kunde"]}}, ["p.jsonl: roles."]),
        ({"type": "chat_template", "shards": 4}, ["p.jsonl: shards."]),
        ({"type": "chat_template", "no_such_thing": 4}, ["p.jsonl: no_such_thing."]),
        ({"type": "my_module.rows"}, ["type my_module.rows", "its changes to the rows are not applied"]),
        ({"type": {"field_completion": "a"}}, ["completion=a", "preftune dpo reads no column of this kind"]),
        ({"data_files": "part.jsonl"}, ["path p.jsonl", "part.jsonl (data_files) is read as a path"]),
    ],
)  # fmt: skip
def test_what_changes_the_rows_and_cannot_be_carried_over_is_named(entry, words, tmp_path, capsys):
    _, said = axolotl(tmp_path, entry, capsys)
    for word in words:
        assert word in said


def test_values_that_change_nothing_are_not_named(tmp_path, capsys):
    turns = {"role": "from", "content": "value"}
    entry = {"ds_type": "json", "message_property_mappings": turns, "train_on_eos": "turn", "shards": None}
    _, said = axolotl(tmp_path, entry, capsys)
    assert "Not carried over" not in said


def test_the_name_of_one_file_is_not_a_list(tmp_path, capsys):
    settings, said = axolotl(tmp_path, {"path": "json", "data_files": "part.jsonl"}, capsys)
    assert (settings["dataset_name"], "data_files" in said) == (["part.jsonl"], False)
    settings, _ = axolotl(tmp_path, {"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}, capsys)
    assert settings["dataset_name"] == ["a.jsonl", "b.jsonl"]


def test_datasets_that_are_read_differently_are_entries(tmp_path, capsys):
    entries = [
        {"path": "a.jsonl", "split": "train"},
        {"path": "some/b", "name": "en", "type": {"field_chosen": "good", "field_rejected": "bad"}},
    ]
    settings, _ = converted(tmp_path, AXOLOTL + "rl: dpo\n" + yaml.safe_dump({"datasets": entries}), capsys)
    assert settings["datasets"] == [
        {"path": "a.jsonl", "split": "train"},
        {"path": "some/b", "name": "en", "columns": {"chosen": "good", "rejected": "bad"}},
    ]
    assert "dataset_name" not in settings


def test_other_columns_of_the_data_to_evaluate_on_are_named(tmp_path, capsys):
    recipe = {"datasets": [{"path": "a", "type": SWAPPED}], "test_datasets": [{"path": "b", "split": "held"}]}
    settings, said = converted(tmp_path, AXOLOTL + "rl: dpo\n" + yaml.safe_dump(recipe), capsys)
    assert (settings["eval_dataset_name"], settings["dataset_test_split"]) == ("b", "held")
    assert "test_datasets: columns as they are called" in said


@pytest.mark.parametrize(
    ("stage", "columns", "expected"),
    [
        ("dpo", {"prompt": "q", "query": "more", "chosen": "a", "rejected": "b"},
         ["prompt=q+more", "chosen=a", "rejected=b"]),
        ("rm", {"messages": "conversations", "system": "rule"}, ["prompt=conversations", "system=rule"]),
        ("kto", {"messages": "conv", "kto_tag": "tag"}, ["messages=conv", "label=tag"]),
        ("sft", {"prompt": "q", "response": "a"}, ["prompt=q", "completion=a"]),
    ],
)  # fmt: skip
def test_the_columns_of_a_dataset_by_name(stage, columns, expected, tmp_path, capsys):
    """`query`, `response`, `system` and the messages of pairs were dropped, or made the training fail."""
    entry = {"file_name": "p.json", "columns": {**columns, "images": "pictures"}, "tags": {"user_tag": "kunde"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    settings, said = converted(tmp_path, FACTORY + f"stage: {stage}\ndataset: mine\n", capsys)
    assert settings["columns"] == expected
    assert "Not carried over: dataset mine: column images." in said
    assert "Not carried over: dataset mine: user_tag kunde." in said


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (FACTORY + "stage: dpo\ndataset: p\nadapter_name_or_path: rl\nquantization_bit: 4\n", "adapter_name_or_path"),
        (AXOLOTL + "rl: dpo\nadapter: qlora\nlora_r: 8\nlora_model_dir: rl\ndatasets: [{path: p}]\n", "lora_model_dir"),
    ],
)
def test_an_adapter_is_trained_further(text, key, tmp_path, capsys):
    """The key was dropped, and a new adapter was trained on the base."""
    settings, said = converted(tmp_path, text, capsys)
    assert (settings["model_name_or_path"], settings["base_model"]) == ("rl", "some/model")
    assert settings["model_init_kwargs"] == {"load_in_4bit": True}
    assert not {"use_peft", "lora_r", "load_in_4bit"} & set(settings)
    assert f"{key}: as a key of its own. rl is trained further as model_name_or_path" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("adapter_name_or_path: rl\ncreate_new_adapter: true\n", "merge rl -o MERGED.* leave out adapter_name_or_path"),
        ("adapter_name_or_path: one,two\n", "merge one -o MERGED.* keep adapter_name_or_path: two"),
        ("adapter_name_or_path: rl\nfinetuning_type: full\n", "merge rl -o MERGED"),
    ],
)
def test_adapters_that_have_to_be_merged_first_are_refused(more, words, tmp_path):
    text = yaml.safe_dump({**yaml.safe_load(FACTORY), "stage": "dpo", "dataset": "p", **yaml.safe_load(more)})
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RequestError, match=words):
        run([str(tmp_path / "r.yaml")])


def test_another_reference_is_named(tmp_path, capsys):
    text = FACTORY + "stage: dpo\ndataset: p\nref_model: other\nref_model_adapters: sft\n"
    _, said = converted(tmp_path, text, capsys)
    assert "Not carried over: ref_model. other is NOT the reference" in said
    assert "Not carried over: ref_model_adapters. sft is NOT part of the reference" in said
    _, said = converted(tmp_path, FACTORY + "stage: dpo\ndataset: p\nref_model: some/model\n", capsys)
    assert "ref_model" not in said


def test_the_data_of_llama_factory_are_those_of_the_folder_its_commands_run_in(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its examples are two folders below the one of `dataset_dir: data`."""
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"chosen": "good", "rejected": "bad"}}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (recipes := tmp_path / "examples" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    settings, said = converted(recipes, FACTORY + "stage: dpo\ndataset: pairs\ndataset_dir: data\n", capsys)
    assert settings["dataset_name"] == [str(tmp_path / "data" / "pairs.json")]
    assert settings["columns"] == ["chosen=good", "rejected=bad"]
    assert "dataset_info.json" not in said
