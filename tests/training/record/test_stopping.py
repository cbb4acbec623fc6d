"""Signals end a training after the step that is under way, with a checkpoint from which it goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from preftune.training.record.stopping import StoppedError, StopSignals
from tests.training.dpo_runs import logged, lora_model, metrics, trainer
from tiny import rows

from .test_checkpoints import OPTIONS, same_weights
from .test_resume import comparable

SETTINGS = {**OPTIONS, "save_steps": 100, "disable_dropout": False}


@pytest.fixture(autouse=True)
def defaults():
    """A suite in the background ignores SIGINT, which a training respects."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        assert number == signal.SIGINT or signal.getsignal(number) == handler, "a training leaves no handler behind"
        signal.signal(number, handler)


class Send(TrainerCallback):
    """Sends signals to this process in the step after `step`."""

    def __init__(self, *numbers: int, step: int = 3) -> None:
        self.numbers, self.step = numbers, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for number in self.numbers:
                signal.raise_signal(number)


def run(folder: Path, *callbacks: Any, resume: Any = None, **options: Any) -> Any:
    made = trainer(lora_model(lora_dropout=0.1), folder, data=rows(14), callbacks=callbacks, **{**SETTINGS, **options})
    made.train(resume_from_checkpoint=resume)
    return made


def outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(name, whole, tmp_path):
    number = getattr(signal, name)
    error = KeyboardInterrupt if name == "SIGINT" else StoppedError
    with pytest.raises(error) as raised:
        run(tmp_path, Send(number))
    assert name == "SIGINT" or raised.value.code == 128 + number
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    record = outcome(tmp_path)
    assert (record["outcome"], record["stopped_by"], record["steps"]) == ("interrupted", name, 4)
    resumed = run(tmp_path, resume=True)
    assert same_weights(resumed, whole)
    assert logged(resumed) == logged(whole)
    assert "stopped_by" not in outcome(tmp_path)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Send(signal.SIGINT, signal.SIGINT))
    assert not list(tmp_path.glob("checkpoint-*"))
    assert (outcome(tmp_path)["outcome"], outcome(tmp_path)["steps"]) == ("interrupted", 3)


def test_a_second_sigterm_does_not_spoil_the_checkpoint(tmp_path):
    with pytest.raises(StoppedError):
        run(tmp_path, Send(signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM))
    assert (tmp_path / "checkpoint-4").is_dir()
    assert outcome(tmp_path)["stopped_by"] == "SIGUSR1"


def test_a_signal_before_the_first_step_ends_the_run_at_once_and_run_json_says_so(tmp_path, monkeypatch):
    made = trainer(lora_model(), tmp_path, data=rows(14), **SETTINGS)
    monkeypatch.setattr(made, "before_first_step", lambda **kwargs: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(StoppedError):
        made.train()
    assert outcome(tmp_path)["outcome"] == "interrupted"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_error_is_discarded_before_the_first_step_ends_the_run(tmp_path, monkeypatch):
    """Python discards what is raised in a `__del__`."""

    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    made = trainer(lora_model(), tmp_path, data=rows(14), **SETTINGS)
    monkeypatch.setattr(made, "before_first_step", lambda **kwargs: Dying() and None)
    with pytest.raises(StoppedError):
        made.train()
    assert outcome(tmp_path)["outcome"] == "interrupted"
    assert made.state.global_step == 0


def test_ctrl_c_while_the_first_files_are_written_is_reported(tmp_path, monkeypatch):
    made = trainer(lora_model(), tmp_path, data=rows(14), **SETTINGS)
    monkeypatch.setattr(made, "_audit", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert outcome(tmp_path)["outcome"] == "interrupted"


def test_the_checkpoint_is_there_before_an_evaluation_that_may_take_longer_than_the_sender_waits(whole, tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            seen.append((state.global_step, (tmp_path / "checkpoint-4").is_dir()))

    options = {"eval_strategy": "steps", "eval_steps": 4, "eval_dataset": rows(2, start=40)}
    with pytest.raises(StoppedError):
        run(tmp_path, Send(signal.SIGTERM), Look(), **options)
    assert set(seen) == {(4, True)}
    run(tmp_path, resume=True, **options)
    undisturbed = run(tmp_path / "undisturbed", **options)
    assert undisturbed.state.global_step == 8
    for one, other in zip(metrics(tmp_path), metrics(tmp_path / "undisturbed"), strict=True):
        assert comparable([one]) == comparable([other])


def test_without_checkpoints_a_signal_writes_none(tmp_path):
    with pytest.raises(StoppedError):
        run(tmp_path, Send(signal.SIGTERM), save_strategy="no")
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_signal_in_the_last_step_leaves_nothing_but_the_end(whole, tmp_path):
    with pytest.raises(StoppedError):
        run(tmp_path, Send(signal.SIGTERM, step=7))
    resumed = run(tmp_path, resume="auto")
    assert same_weights(resumed, whole)
    assert outcome(tmp_path)["outcome"] == "finished"


def test_auto_starts_and_then_goes_on(whole, tmp_path):
    with pytest.raises(StoppedError):
        run(tmp_path, Send(signal.SIGTERM), resume="auto")
    assert same_weights(run(tmp_path, resume="auto"), whole)
    assert outcome(tmp_path)["resumed_from_step"] == 4


def test_transformers_own_checkpoint_at_a_signal_is_ours(tmp_path):
    with pytest.raises(StoppedError):
        run(tmp_path, Send(signal.SIGTERM), enable_jit_checkpoint=True)
    assert outcome(tmp_path)["outcome"] == "interrupted"
    assert (tmp_path / "checkpoint-4" / "preftune_manifest.json").is_file()


def test_a_handler_of_the_program_is_left_alone():
    called: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    try:
        with StopSignals().caught() as _:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert called == [signal.SIGUSR1]


def test_a_training_in_another_thread_catches_nothing():
    def inside() -> None:
        with StopSignals().caught():
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[Any] = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_workers_of_the_data_loader_outlive_ctrl_c(tmp_path):
    """A terminal sends it to them too, and a worker that is gone would end the step with an error."""

    class ToWorkers(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
                sent.extend(children)
                for child in children:
                    os.kill(int(child), signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    sent: list[str] = []
    torch.set_num_threads(1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ToWorkers(), dataloader_num_workers=2, max_steps=4)
    assert len(sent) >= 2
    assert (tmp_path / "checkpoint-2").is_dir()
