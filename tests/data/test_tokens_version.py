"""What rows become is pinned: a change that alters pairs or tokens raises TOKENS_VERSION, or caches hit wrongly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from preftune.data import load_demonstrations, load_pairs, tokenize_demonstrations, tokenize_pairs
from preftune.data.tokens_version import TOKENS_VERSION
from preftune.errors import DatasetError
from preftune.types import TokenizedGroup

from .tiny_bpe import CHATML

FILES = Path(__file__).parent / "format_rows"

PINNED = {1: "074af8d482144be8", 2: "074af8d482144be8", 3: "074af8d482144be8"}
"""Version -> digest of everything below. A new version gets a new line."""


def byte_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One token per byte, so that the ids depend on no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


def read(load: Callable[[Path], Any], file: Path) -> Any:
    """The rows of a file, or the error that they are."""
    try:
        return load(file)
    except DatasetError as error:
        return error


def made_of(pairs: Any, demonstrations: Any, tokenizer: PreTrainedTokenizerFast, max_length: int | None) -> list[str]:
    """One line per pair and per demonstration: its ids."""
    lines = []
    for rows, tokenize in ((pairs, tokenize_pairs), (demonstrations, tokenize_demonstrations)):
        try:
            if isinstance(rows, DatasetError):
                raise rows
            groups, _ = tokenize(rows, tokenizer, max_length=max_length)  # type: ignore[operator]
        except DatasetError as error:
            lines.append(type(error).__name__)
            continue
        lines += [f"({g.prompt_ids!r}, {g.completions!r}, {pairs_of(g)}, {g.id!r}, {g.scored!r})" for g in groups]
    return lines


def pairs_of(group: TokenizedGroup) -> str:
    """The fields of pairs that come from the data, without those that losses add."""
    shown = [f"Preference(chosen={p.chosen}, rejected={p.rejected}, weight={p.weight}, margin={p.margin})"
             for p in group.pairs]  # fmt: skip
    return f"({', '.join(shown)}{',' if len(shown) == 1 else ''})"


def test_the_same_rows_become_the_same_tokens_or_the_version_is_raised() -> None:
    digest = hashlib.sha256()
    tokenizers = {template: byte_tokenizer(template) for template in (None, CHATML)}
    for file in sorted(FILES.iterdir()):
        pairs, demonstrations = read(load_pairs, file), read(load_demonstrations, file)
        for template, tokenizer in tokenizers.items():
            for max_length in (None, 96):
                for line in made_of(pairs, demonstrations, tokenizer, max_length):
                    digest.update(f"{file.stem} {template is None} {max_length} {line}\n".encode())
    found = digest.hexdigest()[:16]
    if found != PINNED.get(TOKENS_VERSION):
        pytest.fail(
            f"The formats' example rows give other pairs or tokens than TOKENS_VERSION {TOKENS_VERSION} did (digest "
            f"{found}). Raise TOKENS_VERSION in data/tokens_version.py, or caches of before would be read as if they "
            "were new, and pin the digest here."
        )
