"""Reports a model with NaN logits at once: its answers would repeat one token, and its scores would be invalid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from preftune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def check_finite(logps: Tensor, model: Any) -> None:
    """Checks the log-probabilities of a text. Raises: ModelError if one is NaN or infinite."""
    if not bool(logps.isfinite().all()):
        raise _broken(model)


def check_logits(model: Any, token_ids: Sequence[int]) -> None:
    """Checks the logits of one prompt. Raises: ModelError if the model predicts NaN (infinite values for excluded
    tokens are allowed).
    """
    import torch

    from preftune.models.precision import mixed_dtype

    device = model.get_input_embeddings().weight.device
    dtype = mixed_dtype(model)
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        logits = model(input_ids=torch.tensor([list(token_ids)], device=device)).logits
    if bool(logits.isnan().any()):
        raise _broken(model)


def _broken(model: Any) -> ModelError:
    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    fix = (
        "its weights are broken, for example by a training run that diverged: use an earlier checkpoint"
        if dtype == "float32"
        else f"{dtype} is too narrow for it, or its weights are broken: load it with --dtype float32 to find out which"
    )
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    return ModelError(f"The model {name} gives NaN or infinity as a log-probability of plain text. Probably {fix}.")
