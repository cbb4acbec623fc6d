"""Runs, artefacts and servers of others: links, names, replies and cards that are attacks."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.deploy.verify import page
from preftune.deploy import ServedEndpoint, Verification, export, read_manifest, serving
from preftune.deploy.artefact import damage_of, damaged_files
from preftune.deploy.card import licence_of
from preftune.deploy.gguf import convert
from preftune.deploy.served import pair_of
from preftune.deploy.text_faults import Fault
from preftune.errors import EndpointError, ModelError
from preftune.generation.endpoint.client import EndpointName
from preftune.storage.trained_prompts import FILE, carry_trained_prompts
from tests.deploy.runs import save_base, save_run

SECRET = "hf_" + "secret" * 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return save_run(tmp_path / "run", base)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(SECRET)
    return tmp_path / "key"


@pytest.mark.parametrize(
    "name", ["README.md", "chat_template.jinja", "preftune_weights.json", "generation_config.json"]
)
def test_a_link_in_a_run_puts_no_other_file_into_the_artefact(
    run: Path, secret: Path, tmp_path: Path, name: str
) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    with pytest.raises(ModelError, match="leads to a file outside the folder"):
        export(run, tmp_path / "out", ["adapter"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["run/base", "base"])
def test_a_link_in_the_base_that_came_with_a_run_puts_no_other_file_into_the_artefact(
    base: Path, run: Path, secret: Path, tmp_path: Path, place: str
) -> None:
    shutil.copytree(base, tmp_path / place)
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "base"}))
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        (run / file).unlink()
    (tmp_path / place / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / place / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(ModelError, match="leads to a file outside the folder"):
        export(run, tmp_path / "out", ["adapter"])
    assert not (tmp_path / "out").exists()


def test_hashes_of_prompts_are_copied_as_numbers(run: Path, secret: Path, tmp_path: Path) -> None:
    (run / FILE).symlink_to(secret)
    (tmp_path / "other").mkdir()
    carry_trained_prompts(run, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_file_that_is_missing_is_not_one_that_differs(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", ["adapter"])[0].folder
    manifest = read_manifest(folder)
    assert manifest is not None
    (folder / "tokenizer.json").unlink()
    assert damage_of(folder, manifest) == "tokenizer.json is missing"
    (folder / "adapter_config.json").write_text("{}")
    said = "tokenizer.json is missing, and adapter_config.json differs from the export"
    assert damage_of(folder, manifest) == said


def test_a_link_in_an_artefact_is_refused_and_the_hubs_cache_is_not(run: Path, secret: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", ["adapter"])[0].folder
    cached = tmp_path / "hub" / "models--me--aligned" / "snapshots" / "c0ffee"
    shutil.copytree(folder, cached.parent.parent / "blobs")
    cached.mkdir(parents=True)
    for file in folder.iterdir():
        (cached / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    manifest = read_manifest(cached)
    assert manifest is not None
    assert damaged_files(cached, manifest) == []
    assert damage_of(cached, manifest) == ""
    for name in ("README.md", "tokenizer.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
        with pytest.raises(ModelError, match="leads to a file outside the folder"):
            damaged_files(folder, manifest)


def test_names_of_others_do_not_reach_the_terminal_as_control_codes() -> None:
    found = Verification(
        "artefact", [Fault("weights", "exported from the run \x1b[2J\nnothing: What is served is fine")]
    )
    found.notes = ["a note\x07\u202e"]
    assert page(found).splitlines() == [
        "artefact: weights: exported from the run  nothing: What is served is fine",
        "  a note",
    ]


class Odd:
    """An endpoint that replies as a llama.cpp server does, with other contents."""

    name = EndpointName("odd", "http://127.0.0.1:9/v1")

    def __init__(self, **replies: Any) -> None:
        self.replies = {"apply-template": {"prompt": ""}, "tokenize": {"tokens": [1]}, **replies}

    def post(self, path: str, body: Any) -> Any:
        return self.replies.get(path)


@pytest.mark.parametrize("tokens", [["1"], [-1], [1 << 40], [None], [True], "12", {"0": 1}, [1.5]])
def test_token_ids_of_a_server_are_checked(tokens: Any) -> None:
    served = ServedEndpoint(Odd(tokenize={"tokens": tokens}))  # type: ignore[arg-type]
    with pytest.raises(EndpointError, match="reports token ids for some texts only"):
        served.text_ids(["Hello"])


@pytest.mark.parametrize(
    "listed", [{"id": 5}, "text", [3], [{"id": 5, "logprob": None}], [{"id": 5, "logprob": [1]}], 7]
)
def test_log_probabilities_of_a_server_are_checked(listed: Any) -> None:
    served = ServedEndpoint(Odd(completion={"completion_probabilities": listed}))  # type: ignore[arg-type]
    with pytest.raises(EndpointError, match="in a form that cannot be read"):
        served.scores([pair_of([1], [5], [6])])


@pytest.mark.parametrize(
    "header",
    [
        "[" * 5000,
        "license: 2001-99-99",
        "a: &a [x]\n" + "b: [*a, *a]\n",
        "license: !!python/object:os.system x",
        "x: " * 9,
    ],
)
def test_the_header_of_a_card_is_data_and_errors_in_it_are_none(tmp_path: Path, header: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    assert licence_of(tmp_path / "README.md") == {}


def _program(place: Path) -> Path:
    """A program that writes down its environment, and fails."""
    place.write_text(f"#!/bin/sh\nenv > {place}.env\necho 'Error: \033[2Jno' >&2\nexit 3\n")
    place.chmod(0o755)
    return place


def test_child_processes_get_no_secrets(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.deploy import gguf, server

    program = _program(tmp_path / "program")
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "DATABASE_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setattr(gguf, "_converter", lambda: [str(program)])
    monkeypatch.setattr(server, "_program", lambda name: str(program))
    with pytest.raises(ModelError, match="converter refuses"):
        convert(run, tmp_path / "model.gguf", "f16")
    seen = (tmp_path / "program.env").read_text()
    with pytest.raises(ModelError, match="could not start"), serving(run, engine="transformers", port=0):
        pass
    seen += (tmp_path / "program.env").read_text()
    assert f"PATH={os.environ['PATH']}" in seen
    assert SECRET not in seen


def test_a_manifest_of_any_json_is_an_error_of_preftune(tmp_path: Path) -> None:
    for content in ("[]", "null", "{", "[" * 100_000, '{"manifest": 1, "kind": ["merged"]}'):
        (tmp_path / "preftune_artefact.json").write_text(content)
        with pytest.raises(ModelError):
            read_manifest(tmp_path)
    (tmp_path / "preftune_artefact.json").write_text(
        json.dumps({"manifest": 1, "kind": "merged", "form": "float32", "ends": "x", "files": {"a": 3}})
    )
    with pytest.raises(ModelError, match="wrong type"):
        read_manifest(tmp_path)
