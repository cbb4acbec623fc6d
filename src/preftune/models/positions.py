"""What a model has tables for: positions, where each has a learned vector, and token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from preftune.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def limit_of(model: Any) -> int | None:
    """The positions that a model's configuration allows; None if it names no limit."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def positions_of(model: nn.Module) -> int | None:
    """The number of positions of a model with a table of them (GPT-2, OPT, CodeGen); None if positions are computed."""
    from torch import nn

    limit = limit_of(model)
    if limit is None:
        return None
    words = model.get_input_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        is_word = module is words or ".prompt_encoder." in f".{name}."
        if isinstance(module, nn.Embedding) and not is_word and limit <= module.num_embeddings <= limit + 2:
            return int(limit)  # OPT's begin at 2
        table = getattr(module, "embed_positions", None)
        if not isinstance(table, nn.Module | None) and len(table) == limit:
            return int(limit)
    return None


def check_token_ids(model: Any, largest: int) -> None:
    """Raises: ModelError for a token id beyond the model's embeddings; torch would say only "index out of range", and
    on a GPU nothing would run in this process any more.

    Args:
        largest: the largest token id of some texts.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if largest < rows:
        return
    name = getattr(model.config, "name_or_path", "") or "the model"
    raise ModelError(
        f"The tokenizer gives the token id {largest:,}, but {name} has only {rows:,} embeddings: the tokenizer belongs "
        "to another model, or has new tokens. Use the model's own tokenizer, or add embeddings for the new tokens and "
        "save both: model.resize_token_embeddings(len(tokenizer))."
    )
