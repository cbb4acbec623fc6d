"""What trackers are given: the names of the curves, their values, and the facts of the run without its secrets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from preftune.errors import ConfigError
from preftune.secret_values import without_secrets
from preftune.training import DPOConfig
from preftune.training.record.trackers import TrackedFacts, _to_mlflow
from tests.training.dpo_runs import trainer
from tiny import rows, tiny_model

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
FACTS = {
    "versions": {"torch": "2.13"},
    "data": {"train": {"pairs": 4}},
    "configuration": {"beta": 0.1},
    "hub_token": "x",
}


def test_tensorboard_has_every_curve_under_train_or_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    monkeypatch.setattr("sys.argv", ["train.py", "--hub_token", TOKEN])
    run = trainer(
        tiny_model(), tmp_path / "run", eval_dataset=rows(4), max_steps=2, report_to="tensorboard",
        eval_strategy="steps", eval_steps=2, eval_judge="longer", eval_max_new_tokens=4,
    )  # fmt: skip
    run.train()
    run.log({"guard/kl_per_token": 0.5})
    # Files of one second are read in the order of their names, in which 10 comes before 9.
    events = accumulator.EventAccumulator(
        str(tmp_path / "events"), size_guidance={"tensors": 0, "scalars": 0}, purge_orphaned_data=False
    )
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {tag.split("/")[0] for tag in tags} == {"train", "eval"}
    assert {name for name in documented() if "beta_dpo" not in name} <= tags
    assert {"train/loss", "train/rewards/margins", "train/logps/chosen", "train/guard/kl_per_token",
            "eval/loss", "eval/rewards/margins"} <= tags  # fmt: skip
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    margins = {line["step"]: line["rewards/margins"] for line in logged if "rewards/margins" in line}
    assert {scalar.step: scalar.value for scalar in events.Scalars("train/rewards/margins")} == pytest.approx(margins)
    (held_out,) = events.Scalars("eval/rewards/accuracies")
    assert held_out.value == next(line["eval_rewards/accuracies"] for line in logged if "eval_loss" in line)
    (text,) = events.Tensors("preftune/text_summary")
    told = text.tensor_proto.string_val[0].decode()
    assert '"fingerprint"' in told
    assert '"pairs"' in told
    everything = b"".join(path.read_bytes() for path in (tmp_path / "events").iterdir())
    assert TOKEN.encode() not in everything


def handler(name: str, **clients: Any) -> Any:
    """A callback by the name of one of transformers', with the client that it would hold."""
    return type(name, (), clients)()


def send(callback: Any) -> None:
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[callback]))
    TrackedFacts(trainer, lambda: FACTS).on_train_begin(None, SimpleNamespace(is_world_process_zero=True), None)


@pytest.mark.parametrize(("name", "client"), [("WandbCallback", "_wandb"), ("TrackioCallback", "_trackio")])
def test_wandb_and_trackio_get_one_nested_group(name: str, client: str) -> None:
    given: dict[str, Any] = {}
    config = SimpleNamespace(update=lambda values, allow_val_change: given.update(values))
    send(handler(name, **{client: SimpleNamespace(config=config)}))
    assert given == {"preftune": {"versions": {"torch": "2.13"}, "data": {"train": {"pairs": 4}}}}


def test_mlflow_gets_flat_names() -> None:
    given: dict[str, str] = {}
    send(handler("MLflowCallback", _ml_flow=SimpleNamespace(log_params=given.update)))
    assert given == {"preftune.versions.torch": "2.13", "preftune.data.train.pairs": "4"}


def test_mlflow_gets_no_more_at_once_than_a_server_takes() -> None:
    calls: list[dict[str, str]] = []
    callback = handler("MLflowCallback", _ml_flow=SimpleNamespace(log_params=calls.append))
    _to_mlflow(callback, {"data": {f"set {i}": {"pairs": i} for i in range(250)}})
    assert [len(call) for call in calls] == [100, 100, 50]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (["--model_init_kwargs", '{"token": "abc", "x": 1}'], ["--model_init_kwargs", '{"x": 1}']),
        (['--model_init_kwargs={"token": "abc"}'], ["--model_init_kwargs={}"]),
        (["WANDB_API_KEY=abc"], ["WANDB_API_KEY=***"]),
        (["--judge", "openai:m@http://me:pw@host/v1"], ["--judge", "openai:m@http://***@host/v1"]),
        ({"aws_secret_access_key": "x", "passwd": "x", "eos_token": "<e>"}, {"eos_token": "<e>"}),
        ("a sk-abcdefghijklmnopqrstuv b", "a *** b"),
        ('{"beta": [1, 2]}', '{"beta": [1, 2]}'),
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("{% set token = 1 %}", "{% set token = 1 %}"),
        (["--data=a=b.jsonl"], ["--data=a=b.jsonl"]),
    ],
)
def test_secrets_in_all_their_places(value: Any, kept: Any) -> None:
    assert without_secrets(value) == kept


def test_a_tracker_that_is_away_is_reported_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(values: object) -> None:
        raise ConnectionError("no route")

    send(handler("MLflowCallback", _ml_flow=SimpleNamespace(log_params=fail)))
    assert "MLflowCallback did not accept the facts of run.json (no route)" in caplog.text


def test_no_secret_in_what_trackers_are_given(tmp_path: Path) -> None:
    config = DPOConfig(
        output_dir=str(tmp_path),
        hub_token=TOKEN,
        model_init_kwargs={"token": TOKEN, "revision": "main"},
        report_to="none",
    )
    assert TOKEN not in json.dumps(config.to_dict(), default=str)
    assert TOKEN not in config.to_json_string()
    assert config.to_dict()["model_init_kwargs"] == {"revision": "main"}


def test_a_tracker_that_is_not_installed_is_reported_with_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["mlflow"])
    with pytest.raises(ConfigError, match="pip install wandb"):
        DPOConfig(output_dir=str(tmp_path), report_to=["mlflow", "wandb"])


def documented() -> set[str]:
    """The names that docs/trackers.md says TensorBoard, wandb and trackio get."""
    return {name for _, theirs in documented_rows() for name in theirs}


def documented_rows() -> list[tuple[list[str], list[str]]]:
    page = (Path(__file__).parents[3] / "docs/trackers.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return [(re.findall("`([^`]+)`", ours), re.findall("`([^`]+)`", theirs)) for ours, theirs, _ in rows]


def test_the_names_in_the_documentation_are_those_that_transformers_makes() -> None:
    from transformers.integrations.integration_utils import rewrite_logs

    assert len(documented_rows()) >= 10
    for ours, theirs in documented_rows():
        assert list(rewrite_logs(dict.fromkeys(ours, 0.0))) == theirs
