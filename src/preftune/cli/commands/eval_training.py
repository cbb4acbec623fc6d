"""How a model of `preftune eval` was trained, from the records of its run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.storage.run_directory import PLAIN_TEXT, run_facts


def plain_text_note(model: str) -> str | None:
    """The note for a model that was trained on plain text, although it has a chat template, in which an evaluation
    asks; None where its run's record does not say so.
    """
    notes = run_facts(model).get("notes")
    if not isinstance(notes, list) or not any(PLAIN_TEXT in str(note) for note in notes):
        return None
    return (
        f"{model} was trained on plain text, and this evaluation asks in the chat template. Train with --as_chat to "
        "train in the form that is asked; to ask in the form that was trained, remove the chat template from the "
        "model's folder."
    )


def trained_with(model: str) -> dict[str, Any]:
    """`method`, `beta`, `usual_beta`, `learning_rate`, `epochs` and `kl_coef` of a run directory, as far as they are
    recorded.
    """
    names = {"beta": "beta", "learning_rate": "learning_rate", "epochs": "num_train_epochs", "kl_coef": "kl_coef"}
    run, method = run_facts(model, "configuration"), run_facts(model).get("method")
    try:
        known = {name: None if run.get(field) is None else float(run[field]) for name, field in names.items()}
        if float(run.get("max_steps") or 0) > 0:  # they decide, and the epochs that were asked for do not
            known["epochs"] = _epochs_run(Path(model))
    except (ValueError, TypeError):
        return {}
    usual = method not in ("cpo", "orpo", "tpo") and _usual_beta(run)
    return {**known, "usual_beta": usual, "method": str(method) if method else None} if run else {}


def _epochs_run(folder: Path) -> float | None:
    """The number of epochs that a run trained for, from its log."""
    from preftune.storage.jsonl import read_lines

    logged = [line["epoch"] for line in read_lines(folder.expanduser() / "metrics.jsonl") if "epoch" in line]
    return round(float(logged[-1]), 2) if logged else None


def _usual_beta(configuration: Mapping[str, Any]) -> bool:
    """Whether beta holds the model near a reference, on the scale that DPO has."""
    from preftune.losses import LOSSES

    named = configuration.get("loss_type")
    losses = [LOSSES[name] for name in (named if isinstance(named, list) else [named]) if name in LOSSES]
    return all(loss.reference and loss.betas[0] <= 0.1 <= loss.betas[1] for loss in losses if loss.name != "sft")
