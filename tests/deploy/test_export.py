"""Exports: what every artefact carries, and what is refused before work begins."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from preftune.deploy import Target, export, read_manifest
from preftune.deploy.card import licence_of_data, licence_of_model
from preftune.deploy.exports import datasets_of
from preftune.errors import CheckpointError, ModelError, RequestError
from preftune.models import load_model, load_tokenizer
from preftune.models.locate import Location
from preftune.storage.atomic import sha256_of
from tests.deploy.runs import ENDS, save_base, save_run

IDS = torch.arange(3, 35).view(2, 16)


def _scores(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().float()(input_ids=IDS).logits


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Path:
    return save_run(tmp_path / "run", base)


def test_every_artefact_carries_template_end_tokens_card_and_hashes(run: Path, base: Path, tmp_path: Path) -> None:
    exported = export(run, tmp_path / "out", ["merged", "adapter"])
    assert [one.folder.name for one in exported] == ["merged", "adapter"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter", "merged"]
    expected = _scores(load_model(run))
    for one in exported:
        torch.testing.assert_close(_scores(load_model(one.folder)), expected, rtol=1e-4, atol=1e-4)
        assert load_tokenizer(one.folder).chat_template == load_tokenizer(run).chat_template
        assert json.loads((one.folder / "generation_config.json").read_text())["eos_token_id"] == ENDS
        manifest = read_manifest(one.folder)
        assert manifest is not None
        assert (manifest.run, manifest.method, manifest.base, manifest.ends) == ("run-1", "dpo", "base", ENDS)
        names = {str(file.relative_to(one.folder)) for file in one.folder.rglob("*")} - {"preftune_artefact.json"}
        assert set(manifest.files) == names
        assert all(sha256_of(one.folder / name) == digest for name, digest in manifest.files.items())
        card = (one.folder / "README.md").read_text()
        assert "\nlicense: apache-2.0\n---\n" in card  # the base's
        assert "| licence of the base | apache-2.0 |\n| licence of the data | unknown |" in card
        assert "`base` aligned with DPO." in card
        assert str(tmp_path) not in card + (one.folder / "preftune_artefact.json").read_text()


def test_the_template_end_of_a_turn_is_added_to_the_end_tokens(run: Path, tmp_path: Path) -> None:
    config = run / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": 0, "bos_token_id": 1}))
    folder = export(run, tmp_path / "out")[0].folder
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_a_finer_dtype_than_the_base_is_also_computed_in_it(tmp_path: Path) -> None:
    """bfloat16 rounds most of a small update away; a merge in float32 that is stored in float16 keeps it."""
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    run = save_run(tmp_path / "run", base, size=0.002)
    expected = _scores(load_model(run, dtype="float32"))
    off = {}
    for dtype in ("bfloat16", "float16"):
        folder = export(run, tmp_path / dtype, dtype=dtype)[0].folder
        off[dtype] = float((_scores(load_model(folder, dtype="float32")) - expected).abs().mean())
    assert off["float16"] < off["bfloat16"] / 4


def test_a_whole_model_is_exported_in_the_wanted_dtype(tmp_path: Path, base: Path) -> None:
    run = save_run(tmp_path / "run", base, full=True)
    one = export(run, tmp_path / "out", dtype="float16")[0]
    assert load_model(one.folder).dtype == torch.float16
    assert one.manifest.form == "float16"
    assert one.manifest.base == "base"
    with pytest.raises(ModelError, match="has no adapter"):
        export(run, tmp_path / "other", ["adapter"])


def test_an_adapter_that_vllm_does_not_serve_is_noted(tmp_path: Path, base: Path) -> None:
    run = save_run(tmp_path / "run", base, use_dora=True)
    notes = " ".join(export(run, tmp_path / "out", ["adapter"])[0].notes)
    assert "vLLM does not serve this adapter: its adapter uses DoRA" in notes
    assert "names a folder of this machine as its base" in notes


def test_what_exists_is_not_overwritten_and_a_failure_leaves_nothing(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    with pytest.raises(ModelError, match="already in use"):
        export(run, tmp_path / "out")
    with pytest.raises(ModelError, match=r"merged is a complete export already. .*--to adapter gguf:q8_0\)"):
        export(run, tmp_path / "out", ["merged", "adapter", "gguf:q8_0"])
    with pytest.raises(RequestError, match="--dtype applies to --to merged"):
        export(run, tmp_path / "out", ["adapter"], dtype="float16")
    with pytest.raises(ModelError, match="cannot be written"):
        export(run, tmp_path / "out" / "merged" / "config.json", ["adapter"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]


def test_a_full_disk_is_reported_with_the_folder_and_the_command_of_the_user(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error named a hidden temporary folder, and said "Then merge again"."""

    def full(self: object, folder: str | Path, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(Path(folder) / "model.safetensors"))

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(CheckpointError) as error:
        export(run, tmp_path / "out")
    place = tmp_path / "out" / "merged"
    assert str(error.value) == (
        f"The model could not be written to {place} (No space left on device). Make room on the disk. Then export "
        "again."
    )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mergd", "'mergd' is no form .* Did you mean 'merged'"),
        ("gguf:q4_k_x", "'q4_k_x' is not a type .* Did you mean 'q4_k"),
        ("merged:f16", "only gguf and ollama have a type"),
    ],
)
def test_an_unknown_target_is_refused_with_the_near_one(target: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Target.parse(target)


def test_a_damaged_or_newer_manifest_is_refused(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out")[0].folder
    file = folder / "preftune_artefact.json"
    whole = json.loads(file.read_text())
    for changed, message in (
        ({"manifest": 99}, "Install that version"),
        ({"kind": "zip"}, "cannot be read"),
        ({"files": 3}, "wrong type"),
        ({"base": 3}, "wrong type"),
    ):
        file.write_text(json.dumps(whole | changed))
        with pytest.raises(ModelError, match=message):
            read_manifest(folder)


def test_the_dtype_is_that_of_the_whole_model_among_several_targets(run: Path, tmp_path: Path) -> None:
    whole, adapter = export(run, tmp_path / "out", ["merged", "adapter"], dtype="float16")
    assert (whole.manifest.form, adapter.manifest.form) == ("float16", "float32")


def test_an_adapter_in_a_pickle_is_refused(run: Path, tmp_path: Path) -> None:
    torch.save({}, run / "adapter_model.bin")
    (run / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="save it again as safetensors"):
        export(run, tmp_path / "out", ["adapter"])
    assert list((tmp_path / "out").iterdir()) == []


def _card(folder: Path, header: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{header}\n---\n\n# card\n")


@pytest.mark.parametrize(
    ("header", "licence"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: [mit, cc-by-4.0]", {"license": "mit, cc-by-4.0"}),
        ("license: other\nlicense_name: llama3.2", {"license": "other", "license_name": "llama3.2"}),
        ("license: unknown", {}),
        ("tags: [a]", {}),
        ("license: '| <b>mit</b> |'", {}),
        ("license: {a: b}", {}),
    ],
)
def test_the_licence_is_read_from_the_card_of_the_base(tmp_path: Path, header: str, licence: dict[str, str]) -> None:
    _card(tmp_path, header)
    assert licence_of_model(Location("folder", str(tmp_path))) == licence


def test_the_licence_is_read_from_config_and_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"license": "mit"}')
    assert licence_of_model(Location("folder", str(tmp_path))) == {"license": "mit"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for kind, name in (("models", "base"), ("datasets", "pairs")):
        place = tmp_path / f"{kind}--me--{name}"
        _card(place / "snapshots" / "c0ffee", f"license: {name}-1.0")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("c0ffee")
    assert licence_of_model(Location("hub", "me/base", local_files_only=True)) == {"license": "base-1.0"}
    assert licence_of_data("me/pairs") == {"license": "pairs-1.0"}
    assert licence_of_data("me/other") == licence_of_data("nonsense//name") == {}


def test_the_licences_of_base_and_data_are_in_the_card(base: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", base)
    _card(base, "license: other\nlicense_name: house-licence")
    _card(tmp_path / "data", "license: cc-by-4.0")
    (tmp_path / "data" / "pairs.jsonl").write_text("")
    data = ["--data", f"{tmp_path}/data/pairs.jsonl:0.7", "me/unknown-pairs"]
    facts = json.loads((run / "run.json").read_text()) | {"command": ["preftune", "dpo", *data, "--use_peft"]}
    (run / "run.json").write_text(json.dumps(facts))
    card = (export(run, tmp_path / "out", ["adapter"])[0].folder / "README.md").read_text()
    assert "\nlicense: other\nlicense_name: house-licence\n---\n" in card
    assert "| licence of the base | house-licence |" in card
    assert "| licence of the data | pairs.jsonl: cc-by-4.0; me/unknown-pairs: unknown |" in card
    assert str(tmp_path) not in card


def test_the_licence_of_a_whole_model_without_a_run_is_its_own(base: Path, tmp_path: Path) -> None:
    (base / "README.md").unlink()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"license": "mit"}))  # as of a hub id, not in a README.md
    card = (export(base, tmp_path / "out", ["merged"])[0].folder / "README.md").read_text()
    assert "\nlicense: mit\n---\n" in card
    assert "| licence of the base | mit |" in card


def test_a_card_says_that_the_licence_is_unknown(base: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", base)
    (base / "README.md").unlink()
    card = (export(run, tmp_path / "out", ["adapter"])[0].folder / "README.md").read_text()
    assert "\nlicense: unknown\n---\n" in card
    assert "| licence of the base | unknown |" in card
    assert "which does not state one here" in card


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["dpo", "--data", "a.jsonl:0.7", "me/b", "--use_peft"], ["a.jsonl", "me/b"]),
        (["dpo", "--data=a.jsonl", "--use_peft"], ["a.jsonl"]),
        (["dpo", "--dataset_name", "me/b"], ["me/b"]),
        (["dpo", "recipe.yaml"], []),
        ([3, None, "--data"], []),
        ("--data a", []),
    ],
)
def test_the_datasets_that_a_command_names(command: object, names: list[str]) -> None:
    assert datasets_of(command) == names
