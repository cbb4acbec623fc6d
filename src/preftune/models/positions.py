"""The longest sequence of a model with a learned vector for each position."""

from __future__ import annotations

from typing import Any

from torch import nn


def positions_of(model: nn.Module) -> int | None:
    """The number of positions of a model with a table of them (GPT-2, OPT, CodeGen); None if positions are computed."""
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
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
