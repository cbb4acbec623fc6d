"""Faults that are seen in the files of an exported folder: the base of an adapter, and a head tied again."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from preftune.deploy.artefact import Manifest
from preftune.deploy.gguf import metadata
from preftune.deploy.served import Served, ServedModel, gguf_of
from preftune.storage.jsonl import read_object

_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight", "model.lm_head.weight")


def check_base(run: ServedModel, served: Served, manifest: Manifest | None) -> list[str]:
    """Whether the base of an exported adapter has the weights that it had at the export; a sentence if not."""
    if not isinstance(served, ServedModel) or not served.source.is_adapter:
        return []
    from preftune.models import load_model
    from preftune.reference.fingerprint import fingerprint

    def printed(name: str) -> str:
        return fingerprint(load_model(name, trust_remote_code=run.trust_remote_code), adapters=False)

    name = served.source.base_name
    if manifest is not None and manifest.base_fingerprint:
        wanted = manifest.base_fingerprint
    elif run.source.is_adapter:
        if run.source.base_name == name:
            return []
        wanted = printed(run.source.base_name)
    else:
        return []
    if printed(name) == wanted:
        return []
    return [f"{name} has other weights than the base of the training: another revision, or another model."]


def check_gguf_ends(run: ServedModel, folder: Path) -> list[str]:
    """Whether a GGUF file names an end token of the run as its own, which engines read; a sentence if not."""
    file = gguf_of(folder)
    if file is None:
        return []
    named = metadata(file, _EOS)
    if named in run.ends():
        return []
    known = isinstance(named, int) and 0 <= named < len(run.tokenizer)
    mark = run.tokenizer.convert_ids_to_tokens(named) if known else "unknown"
    what = "no end token" if named is None else f"the end token {mark} ({named})"
    marks = ", ".join(f"{run.tokenizer.convert_ids_to_tokens(end)} ({end})" for end in sorted(run.ends()))
    return [f"{file.name} names {what} ({_EOS}), and the run ends answers with {marks}."]


_EOS = "tokenizer.ggml.eos_token_id"
_SAME = 0.99
"""Share of the numbers of a tensor that must be equal; another device or version rounds a few differently."""


class Weights(NamedTuple):
    """The weights of an exported whole model, compared with those of the run."""

    form: str
    """Their dtype."""
    other: str = ""
    """A tensor that is not the run's; empty if there is none."""
    other_base: str = ""
    """Such a tensor that the adapter does not change, so that it comes from another base."""


def check_weights(run: ServedModel, served: Served) -> Weights | None:
    """Compares a whole model with the run's weights, merged and rounded as `merge` does or to nearest; None for an
    adapter, a GGUF file or a server. Two models are in memory at a time.
    """
    if not isinstance(served, ServedModel) or served.source.is_adapter:
        return None
    from preftune.models import load_model, merge
    from preftune.models.precision import weights_dtype

    code: dict[str, Any] = {"trust_remote_code": run.trust_remote_code}
    theirs: Any = load_model(served.name, **code)
    dtype = weights_dtype(theirs)
    form = str(dtype).removeprefix("torch.")
    if not run.source.is_adapter:
        return Weights(form, *_differing(load_model(run.name, dtype=dtype, **code), theirs)[:1])
    merged = partial(merge, run.name, base_model=run.source.base_name, **code)
    if not _differing(merged(dtype=dtype), theirs):
        return Weights(form)
    gc.collect()
    exact = merged(dtype="float32")
    differing = _differing(exact, theirs, dtype)  # other tools round to nearest
    if not differing:
        return Weights(form)
    del theirs
    gc.collect()
    changed = {*_differing(exact, load_model(run.source.base_name, **code))}  # by the adapter
    return Weights(form, differing[0], next((name for name in differing if name not in changed), ""))


def _differing(own: Any, other: Any, dtype: Any = None) -> list[str]:
    """The names of weights of both models that differ.

    Args:
        dtype: to which the own ones are rounded.
    """
    theirs = dict(other.named_parameters())
    shared = [(name, weight) for name, weight in own.named_parameters() if name in theirs]
    return [name for name, weight in shared if not _nearly(weight if dtype is None else weight.to(dtype), theirs[name])]


def _nearly(one: Any, other: Any) -> bool:
    return one.shape == other.shape and float((one == other.to(one.dtype)).float().mean()) >= _SAME


def check_head(run: ServedModel, folder: Path) -> list[str]:
    """Whether a head that was trained apart from the embedding is still apart; a sentence if not."""
    model: Any = run.source.model
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, embedding = _weight(inner.get_output_embeddings()), _weight(inner.get_input_embeddings())
    if (
        head is None
        or embedding is None
        or head is embedding
        or head.shape != embedding.shape
        or _equal(head, embedding)
    ):
        return []
    if not _has_head(folder):
        return ["the head was trained apart from the embedding, and the artefact has only one weight for both."]
    if read_object(folder / "config.json").get("tie_word_embeddings"):
        return ["config.json ties the head to the embedding again (tie_word_embeddings), and they differ."]
    return []


def _weight(layer: Any) -> Any:
    """The weight that a layer computes with, trained or not."""
    if layer is None:
        return None
    chosen = layer
    if hasattr(layer, "modules_to_save"):
        chosen = next(iter(layer.modules_to_save.values()))
    return getattr(getattr(chosen, "base_layer", chosen), "weight", None)


def _equal(one: Any, other: Any) -> bool:
    import torch

    return torch.equal(one, other)


def _has_head(folder: Path) -> bool:
    """Whether the files hold a weight of the head; true for an adapter, whose base has it."""
    file = gguf_of(folder)
    if file is not None:
        from gguf import GGUFReader

        return any(tensor.name in _HEADS for tensor in GGUFReader(file).tensors)
    if (folder / "adapter_config.json").is_file() or not folder.is_dir():
        return True
    from safetensors import safe_open

    for part in sorted(folder.glob("*.safetensors")):
        with safe_open(part, framework="pt") as opened:
            if any(name in _HEADS for name in opened.keys()):  # noqa: SIM118
                return True
    return False
