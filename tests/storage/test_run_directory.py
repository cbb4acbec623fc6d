"""The run directory: what a run leaves for evaluation and report, whole at every moment."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback

from preftune.errors import ReferenceMismatchError, RequestError
from preftune.reference.fingerprint import FINGERPRINT_VERSION
from preftune.secret_values import without_secrets
from preftune.storage.jsonl import append_lines, read_lines, write_lines
from preftune.storage.run_directory import append_line, check_writable, cut_back, plain, run_facts, write_json
from preftune.training.record.run_record import RunRecord, configuration
from tests.training.dpo_runs import config, lora_model, metrics, strict_json, trainer
from tiny import rows, tiny_model


def run_json(folder: Path) -> Any:
    return strict_json((folder / "run.json").read_text())


# --- run.json ---


class Look(TrainerCallback):
    """Reads run.json while the run goes on."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(run_json(Path(args.output_dir)))


def test_run_json_says_running_and_then_finished_with_everything_that_explains_the_run(tmp_path):
    look = Look()
    run = trainer(lora_model(), tmp_path, eval_dataset=rows(3, start=40), callbacks=[look])
    run.train()
    assert {seen["outcome"] for seen in look.seen} == {"running"}
    assert look.seen[0]["self_check"]["engine_error"] < 1e-3
    record = run_json(tmp_path)
    assert record["outcome"] == "finished"
    assert record["steps"] == 3
    assert record["method"] == "dpo"
    assert record["configuration"]["learning_rate"] == 1e-2
    assert record["configuration"]["loss_type"] == ["sigmoid"]
    assert record["configuration"]["pad_token"] is None
    assert {"preftune", "torch", "transformers", "peft", "python"} <= set(record["versions"])
    assert record["hardware"]["threads"] >= 1
    assert record["data"]["train"]["pairs"] == 8
    assert record["data"]["train"]["fingerprint"] == run.train_dataset.fingerprint
    assert record["data"]["eval_0"]["pairs"] == 3
    assert record["reference"] == {
        "source": "the same model with its adapter switched off",
        "fingerprint": run.reference.source.fingerprint,
        "fingerprint_version": FINGERPRINT_VERSION,
    }
    assert record["seeds"]["seed"] == 3
    assert record["timings"]["seconds"] > 0
    assert record["result"]["train_loss"] > 0
    assert record["command"] == without_secrets(sys.argv)


class Raise(TrainerCallback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise self.error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(KeyboardInterrupt(), "interrupted"), (RuntimeError("lost a disk"), "failed"), (SystemExit(3), "failed")],
)
def test_a_run_that_does_not_finish_says_how_and_keeps_its_metrics(error, outcome, tmp_path):
    with pytest.raises(type(error)):
        trainer(lora_model(), tmp_path, callbacks=[Raise(error)]).train()
    record = run_json(tmp_path)
    assert record["outcome"] == outcome
    assert record["steps"] == 2
    assert ("lost a disk" in record.get("error", "")) == isinstance(error, RuntimeError)
    assert [line["step"] for line in metrics(tmp_path)] == [1]


def test_a_run_that_fails_before_its_first_step_says_so_too(tmp_path):
    with pytest.raises(ReferenceMismatchError):
        trainer(lora_model(), tmp_path, ref_model=tiny_model(seed=1)).train()
    record = run_json(tmp_path)
    assert record["outcome"] == "failed"
    assert record["error"].startswith("ReferenceMismatchError: policy and reference disagree")
    assert record["steps"] == 0


def test_an_interrupted_reference_pass_is_an_interrupted_run(tmp_path):
    run = trainer(tiny_model(), tmp_path)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    run.reference.source.score = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run_json(tmp_path)["outcome"] == "interrupted"


def test_a_new_run_in_an_old_directory_begins_anew(tmp_path):
    trainer(lora_model(), tmp_path, max_steps=4).train()
    trainer(lora_model(), tmp_path, max_steps=2).train()
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 2]
    assert run_json(tmp_path)["steps"] == 2


def test_only_the_first_process_writes(tmp_path):
    record = RunRecord(str(tmp_path), {})
    record.note(self_check={"engine_error": 0.0})  # a record that does not begin, as on the other processes
    assert not (tmp_path / "run.json").exists()
    for first in (False, True):
        record.on_log(None, SimpleNamespace(is_world_process_zero=first, global_step=7), None, logs={"loss": 0.5})
    (line,) = metrics(tmp_path)
    assert (line["step"], line["loss"]) == (7, 0.5)


# --- strict JSON, no secrets ---


def test_numbers_that_json_does_not_have_become_null_and_others_stay_numbers(tmp_path):
    odd = {
        "nan": math.nan,
        "infinite": -math.inf,
        "numpy": np.float32(0.5),
        "numpy nan": np.float64("nan"),
        "tensor": torch.tensor(0.25),
        "true": np.bool_(True),
        "integer": np.int64(3),
        "nested": {"list": (1, math.nan, {2})},
        "dtype": torch.bfloat16,
        "path": Path("a/b"),
        "none": None,
    }
    write_json(tmp_path / "odd.json", odd)
    assert strict_json((tmp_path / "odd.json").read_text()) == {
        "nan": None,
        "infinite": None,
        "numpy": 0.5,
        "numpy nan": None,
        "tensor": 0.25,
        "true": True,
        "integer": 3,
        "nested": {"list": [1, None, [2]]},
        "dtype": "torch.bfloat16",
        "path": "a/b",
        "none": None,
    }
    assert plain(np.arange(3)) == str(np.arange(3))


def test_metrics_of_the_user_may_be_nan_numpy_or_tensors(tmp_path):
    def compute(_: Any) -> dict[str, Any]:
        return {"nan": math.nan, "numpy": np.float64(0.5), "tensor": torch.tensor(2.0)}

    run = trainer(
        lora_model(),
        tmp_path,
        eval_dataset=rows(2, start=40),
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,  # the checkpoint's trainer_state.json holds them as well
        compute_metrics=compute,
    )
    run.train()
    (evaluated,) = [line for line in metrics(tmp_path) if "eval_loss" in line]
    assert (evaluated["eval_nan"], evaluated["eval_numpy"], evaluated["eval_tensor"]) == (None, 0.5, 2.0)


def test_secrets_of_the_configuration_and_the_command_line_are_not_in_run_json(tmp_path, monkeypatch):
    secret, other = "hf_" + "x" * 34, "my-own-secret"
    command = [
        "preftune",
        "dpo",
        "--hub_token",
        other,
        f"--hub-token={other}",
        "--beta",
        "0.1",
        f"--hub_model_id={secret}",
    ]
    monkeypatch.setattr(sys, "argv", command)
    args = config(tmp_path, hub_token=other, model_init_kwargs={"token": other, "revision": "main"})
    run = trainer(lora_model(), tmp_path, hub_token=other, run_name=f"with {secret}", max_steps=1)
    run.train()
    for file in ("run.json", "audit.json", "metrics.jsonl"):
        text = (tmp_path / file).read_text()
        assert other not in text
        assert secret not in text
    assert run_json(tmp_path)["command"] == [
        "preftune", "dpo", "--hub_token", "***", "--hub-token=***", "--beta", "0.1", "--hub_model_id=***",
    ]  # fmt: skip
    assert configuration(args)["model_init_kwargs"] == {"revision": "main"}
    assert "hub_token" not in configuration(args)


# --- files that are whole ---


def test_a_file_that_cannot_be_replaced_is_still_the_old_one_and_nothing_is_left_behind(tmp_path, monkeypatch):
    write_json(tmp_path / "run.json", {"old": True})

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_json(tmp_path / "run.json", {"old": False})
    assert run_json(tmp_path) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_file_is_synced_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    write_json(tmp_path / "run.json", {})
    assert calls == ["fsync", "replace"]


def test_metrics_are_cut_back_to_a_step_and_freed_of_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step, "note": "two\u2028lines"})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    cut_back(path, 2)
    assert [strict_json(line)["step"] for line in path.read_text().split("\n") if line] == [1, 2]
    append_line(path, {"step": 3})
    assert path.read_text().endswith('{"step": 3}\n')
    cut_back(tmp_path / "not there.jsonl", 2)


# --- what else lies there ---


def test_the_audit_counts_dropped_and_truncated_rows_by_reason(tmp_path):
    data = rows(6)
    data[1]["rejected"] = data[1]["chosen"]
    data[2]["chosen"] = ""
    trainer(lora_model(), tmp_path, data=data, eval_dataset=rows(2), max_length=30).train()
    audit = strict_json((tmp_path / "audit.json").read_text())
    assert set(audit) == {"train", "eval"}
    text = json.dumps(audit["train"])
    assert audit["train"]["rows_in"] == 6
    assert audit["train"]["rows_out"] == 4
    assert "identical" in text
    assert "empty" in text
    assert "truncat" in text


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_the_result_lies_in_the_output_directory_itself_and_loads_from_there(kind, tmp_path):
    run = trainer(lora_model() if kind == "adapter" else tiny_model(), tmp_path)
    run.train()
    run.save_model()
    if kind == "adapter":
        assert (tmp_path / "adapter_model.safetensors").is_file()
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    else:
        assert (tmp_path / "model.safetensors").is_file()
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (tmp_path / "tokenizer_config.json").is_file()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, run.model.eval()(input_ids=ids).logits)
    card = (tmp_path / "README.md").read_text()
    assert "direct preference optimisation" in card
    assert f"| reference | {run.reference.source.description} |" in card


# --- before anything begins ---


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/nowhere"])
def test_an_output_directory_that_cannot_be_written_is_refused_before_the_model_is_touched(place, tmp_path):
    (tmp_path / "a file").write_text("mine")
    folder = Path(place) if place.startswith("/") else tmp_path / {"below a file": "a file/run"}.get(place, place)
    model = tiny_model()
    with pytest.raises(RequestError, match="cannot be written") as caught:
        trainer(model, folder, data="not even looked at")
    assert str(folder) in str(caught.value)
    assert "--output_dir" in str(caught.value)
    assert caught.value.exit_code == 2
    assert (tmp_path / "a file").read_text() == "mine"


def test_checking_a_directory_leaves_nothing_in_it(tmp_path):
    check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


NO_RECORDS = [b"null", b"[1]", b'{"step": "x"}', b"\xff\xfe", b'{"step": 1, "lo', b"[" * 5000, b'"\xe2\x80\xa8"']


@pytest.mark.parametrize("line", NO_RECORDS)
def test_a_line_that_is_no_record_ends_no_resume(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "text": "a\u2028b"}\n'.encode()
    path.write_bytes(kept + line + b'\n{"step": 2}\n{"step": 3}\n')
    cut_back(path, 2)
    assert path.read_bytes() == kept + b'{"step": 2}\n'
    assert [record["step"] for record in read_lines(path)] == [1, 2]


def test_damaged_lines_within_a_record_are_counted_and_a_torn_last_one_is_not(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 2}\n{"ste\n{"step": 3}\n{"step": 4, "lo')
    cut_back(file, 9)
    assert file.read_text().splitlines() == ['{"step": 1}', '{"step": 2}', '{"step": 3}']
    assert "2 lines cannot be read" in caplog.text
    assert "(first: 2)" in caplog.text
    assert "log_history" in caplog.text
    caplog.clear()
    file.write_bytes(b'{"step": 1}\n{"st')
    cut_back(file, 9)
    assert not caplog.text


@pytest.mark.parametrize("content", [b"", b'{"id": "0123', b"[]", b"\xff\x00" * 8])
def test_a_damaged_run_json_is_named_once_and_its_facts_are_unknown(content, tmp_path, caplog):
    (tmp_path / "run.json").write_bytes(content)
    assert run_facts(tmp_path) == run_facts(tmp_path, "model") == {}
    assert caplog.text.count("does not hold the record of a run") == 1
    assert str(tmp_path / "run.json") in caplog.text
    caplog.clear()
    assert run_facts(tmp_path / "none") == {}
    assert not caplog.text


@pytest.mark.parametrize(
    "record", [{"m": {2: 1, 10: 2}}, {"text": "\ud83d\ude00"}, {"text": "\ud83d"}, {"x": (1, 2.5)}]
)
def test_what_json_changes_is_no_damage(record, tmp_path, caplog):
    """Such lines were made again at each start."""
    write_lines(tmp_path / "lines.jsonl", [record], sealed=True)
    append_lines(tmp_path / "lines.jsonl", [record], sealed=True)
    assert len(read_lines(tmp_path / "lines.jsonl")) == 2
    assert not caplog.text


def test_a_folder_that_is_not_utf_8_is_refused_before_any_work(tmp_path: Path) -> None:
    """Training ended with a UnicodeEncodeError when it saved the weights."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/surr\xff")
    with pytest.raises(RequestError, match=r"output_dir='.*surr\\udcff' is not valid UTF-8.*--output_dir FOLDER"):
        check_writable(folder)
    assert not list(tmp_path.iterdir())
    check_writable(tmp_path / "\u00fcber \U0001f600")
