"""The encoder of virtual tokens in a checkpoint.

PEFT saves the tokens that a prompt encoder makes, and puts them where its input was. That is what generation needs, but
a training of p-tuning, CPT or prefix tuning with a projection would continue with another encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from preftune.errors import CheckpointError

FILE = "prompt_encoder.safetensors"


def save_prompt_encoder(model: Any, folder: Path) -> None:
    """Writes the weights of the encoder as they are; nothing for a model without virtual tokens."""
    if _kinds(model):
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.prompt_encoder.state_dict().items()}
        save_file(weights, folder / FILE)


def is_prompt_encoder_alone(model: Any, folder: Path) -> bool:
    """Whether the encoder in a folder is all that was trained. PEFT cannot load the tokens into every encoder."""
    configs = (getattr(model, "peft_config", None) or {}).values()
    alone = all(one.is_prompt_learning and not getattr(one, "modules_to_save", None) for one in configs)
    return bool(configs) and alone and (folder / FILE).is_file()


def load_prompt_encoder(model: Any, folder: Path) -> None:
    """Puts the weights of the encoder back; after PEFT has loaded the adapter, which puts the tokens in their place.

    Raises: CheckpointError if the folder has only the tokens, from which the encoder cannot be made.
    """
    kinds = _kinds(model)
    if (folder / FILE).is_file() and kinds:
        model.prompt_encoder.load_state_dict(load_file(folder / FILE))
    elif lost := [kind for kind in kinds if kind != "PROMPT_TUNING"]:
        raise CheckpointError(
            f"{folder} holds the virtual tokens of {lost[0]} and not the encoder that makes them ({FILE}), so the "
            "training cannot be continued from it. Use another checkpoint of the run, or start a new run."
        )


def _kinds(model: Any) -> list[str]:
    """The PEFT types of a model's virtual tokens; plain prefix tuning is as plain prompt tuning."""
    return [
        "PROMPT_TUNING"
        if getattr(config, "prefix_projection", None) is False
        else str(getattr(config.peft_type, "value", config.peft_type))
        for config in (getattr(model, "peft_config", None) or {}).values()
        if config.is_prompt_learning
    ]
