"""The vocabulary that an adapter was trained with, where it is not that of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.models.locate import Location

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TABLES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
_WHOLE_EMBEDDINGS = (".weight", ".base_layer.weight")


def fit_embeddings(model: PreTrainedModel, adapter: Location) -> None:
    """Give the base the vocabulary that an adapter was trained with, where that was changed before training: tokens
    that were added, rows that were cut off or filled up.
    """
    rows = _rows_of_embedding(adapter)
    embedding: Any = model.get_input_embeddings()
    if rows is not None and rows != embedding.weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _rows_of_embedding(adapter: Location) -> int | None:
    """Rows of the embedding or head that stands whole in an adapter's file; None if none does."""
    file = Path(adapter.name, "adapter_model.safetensors")
    if adapter.kind != "adapter" or not file.is_file():
        return None
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            whole = name.endswith(_WHOLE_EMBEDDINGS) or ".modules_to_save." in name
            if whole and len(shape := opened.get_slice(name).get_shape()) == 2 and any(map(name.__contains__, _TABLES)):
                return int(shape[0])
            if "lora_embedding_A" in name:
                return int(opened.get_slice(name).get_shape()[1])
    return None
