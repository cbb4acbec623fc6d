"""Checks of `report_to`, before a model is loaded: transformers would check only after that."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.errors import ConfigError, did_you_mean

_OWN = ("tensorboard", "wandb", "trackio", "mlflow")
"""The trackers that docs/trackers.md describes."""


def check_trackers(report_to: str | Sequence[str] | None) -> None:
    """Raises: ConfigError for a tracker that transformers does not know."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known = [*INTEGRATION_TO_CALLBACK, "all", "none"]
    for name in _names(report_to):
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"Give {', '.join(known)}.")
            raise ConfigError(f"report_to={name!r} is not a tracker. {hint}")


def check_installed(report_to: str | Sequence[str] | None) -> None:
    """Raises: ConfigError for a tracker whose package is missing."""
    asked = [name for name in _names(report_to) if name in _OWN]
    if not asked:
        return
    from transformers.integrations import get_available_reporting_integrations  # type: ignore[attr-defined]

    there = get_available_reporting_integrations()
    for name in asked:
        if name not in there:
            raise ConfigError(f"report_to={name!r}, but {name} is not installed. pip install {name}, or leave it out.")


def _names(report_to: str | Sequence[str] | None) -> Sequence[str]:
    return [report_to] if isinstance(report_to, str) else report_to or ()
