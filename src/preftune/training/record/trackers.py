"""The facts of run.json for the trackers of `report_to`: as hyperparameters, or as text next to the curves.

transformers' own callbacks send the curves, the configuration and the model's config. They do not send data, reference,
versions, precision and engine, which decide whether two runs can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import TrainerCallback

from preftune.log import warn
from preftune.secret_values import without_secrets
from preftune.training.protocol import TrainerView

NAME = "preftune"
"""The prefix of the facts, which distinguishes them from the configuration."""


_SENT_ALREADY = ("configuration",)
_AT_ONCE = 100
"""Most parameters that an MLflow server takes in one call."""
_LONGEST = 250
"""Most characters of a value that every MLflow server takes."""


class TrackedFacts(TrainerCallback):
    """Sends the facts once, when training begins: the trackers' callbacks, which come first, have then opened a run."""

    def __init__(self, trainer: TrainerView, facts: Callable[[], Mapping[str, Any]]) -> None:
        """
        Args:
            facts: returns the present content of run.json.
        """
        self._trainer, self._facts = trainer, facts

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        for callback in self._trainer.callback_handler.callbacks:
            send = _SENDERS.get(type(callback).__name__)
            if send is None:
                continue
            kept = {name: value for name, value in self._facts().items() if name not in _SENT_ALREADY}
            try:
                send(callback, without_secrets(kept))
            except Exception as error:  # a tracker that is not available must not end a run
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                warn(f"{type(callback).__name__} did not accept the facts of run.json ({reason}); run.json has them.")


def _to_tensorboard(callback: Any, facts: Mapping[str, Any]) -> None:
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    callback.tb_writer.add_text(NAME, f"```\n{text}\n```")


def _to_config(run: Any, facts: Mapping[str, Any]) -> None:
    run.config.update({NAME: dict(facts)}, allow_val_change=True)


def _to_mlflow(callback: Any, facts: Mapping[str, Any]) -> None:
    named = [(name, str(value)[:_LONGEST]) for name, value in _flat(facts, NAME)]
    for start in range(0, len(named), _AT_ONCE):
        callback._ml_flow.log_params(dict(named[start : start + _AT_ONCE]))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Nested facts as values with dotted names, such as preftune.data.train.pairs."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}")


_SENDERS: Mapping[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "TensorBoardCallback": _to_tensorboard,
    "WandbCallback": lambda callback, facts: _to_config(callback._wandb, facts),
    "TrackioCallback": lambda callback, facts: _to_config(callback._trackio, facts),
    "MLflowCallback": _to_mlflow,
}
