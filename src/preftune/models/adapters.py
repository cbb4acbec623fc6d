"""Merges an adapter into its base, so that the result is a plain model that needs neither PEFT nor preftune."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from preftune.errors import ModelError
from preftune.models.attach import attach_adapter, locate_base
from preftune.models.classifier import is_reward_adapter, load_classifier
from preftune.models.damage import free_folder, writing
from preftune.models.load import load_model, load_tokenizer, parse_dtype
from preftune.models.locate import FORM_FILE, Location, describe_folder, is_adapter_folder, locate
from preftune.models.precision import is_packed, rounded
from preftune.models.quiet import quiet_peft, quiet_transformers
from preftune.storage.atomic import whole_folder
from preftune.storage.trained_prompts import carry_trained_prompts

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def merge(
    model_or_path: PeftModel | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    base_model: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Merges an adapter into its base model, and saves model, tokenizer and generation config to `output` if given.

    Layers are merged in float32, and `rounded` to bfloat16. A base that was quantised for training is used unquantised:
    for a path, the base is loaded unquantised; for a model in memory the base is loaded again from its name if that is
    the same model (its unquantised weights agree), otherwise the 4-bit weights are unpacked, which keeps their
    rounding. The log says which. An unquantised model in memory is modified, as by PEFT: use the returned model.

    Args:
        model_or_path: a PeftModel, an adapter folder, or an adapter on the hub.
        output: an empty or new folder.
        dtype: of the merged weights; default: the base's own.
        base_model: used instead of the base that the adapter names.
    Raises: ModelError if there is no adapter, if it cannot be merged, or if `output` is in use.
    """
    target = None if output is None else free_folder(Path(output).expanduser())
    wanted = None if dtype is None else parse_dtype(dtype)
    tokenizer_source: str | os.PathLike[str] | None
    if isinstance(model_or_path, (str, os.PathLike)):
        place = _locate_adapter(model_or_path)
        tokenizer_source = place.name
        base_name = locate_base(place, base_model).name
        # on a causal model the head of a reward model would be lost
        load: Any = load_classifier if is_reward_adapter(place) else load_model
        base = unquantised(load(base_name, trust_remote_code=trust_remote_code), wanted)
        model: PeftModel = attach_adapter(base, place)
    else:
        model = model_or_path
        _check_peft_model(model)
        loaded: Any = model.get_base_model()
        tokenizer_source = base_model or loaded.name_or_path or None
        if _is_quantised(model):
            if hasattr(loaded, "score"):
                raise ModelError(
                    "a quantised reward model in memory cannot be merged. Save it, and merge its folder (preftune "
                    "merge)."
                )
            model = _on_unquantised_base(model, base_model, trust_remote_code)
    _check_foldable(model)
    _untie_if_adapted(model)
    _merge_in_float32(model, wanted if isinstance(wanted, torch.dtype) else None)
    merged = _folded(model)
    if isinstance(wanted, torch.dtype):
        merged = merged.to(wanted)
    _untie_if_parted(merged)
    merged.requires_grad_(False)
    if target is not None:
        _save(merged, target, tokenizer_source, base_model)
        if isinstance(model_or_path, (str, os.PathLike)):
            carry_trained_prompts(model_or_path, target)
    result: PreTrainedModel = merged
    return result


def _locate_adapter(path: str | os.PathLike[str]) -> Location:
    folder = Path(path).expanduser()
    if folder.is_dir() and not is_adapter_folder(folder):
        inner = [child for child in sorted(folder.iterdir()) if child.is_dir() and is_adapter_folder(child)]
        fix = (
            f"Did you mean {' or '.join(map(str, inner[:3]))}?"
            if inner
            else "Give the output folder of a LoRA run (it has adapter_config.json and adapter_model.safetensors)."
        )
        raise ModelError(f"{folder} has no adapter to merge ({describe_folder(folder)}). {fix}")
    if folder.is_dir():
        return Location("adapter", str(folder))
    place = locate(path)
    if place.kind != "hub-adapter":
        raise ModelError(f"{path} is a whole model, not an adapter, so there is nothing to merge. Use it directly.")
    return place


def _check_peft_model(model: Any) -> None:
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ModelError(
            f"{type(model).__name__} has no adapter to merge. Give a PeftModel or the folder of an adapter; save a "
            "model without an adapter with save_pretrained."
        )


def _check_foldable(model: PeftModel) -> None:
    for name, config in model.peft_config.items():
        if config.is_prompt_learning or not hasattr(model.base_model, "merge_and_unload"):
            raise ModelError(
                f"Adapter {name!r} is of type {config.peft_type}, which adds no weights that could be merged. "
                "Keep it as an adapter; LoRA and its relatives can be merged."
            )
        if getattr(config, "layer_replication", None):
            raise ModelError(
                f"Adapter {name!r} repeats layers (layer_replication). They share one weight, which cannot hold the "
                "different updates. Keep it as an adapter."
            )


def _untie_if_adapted(model: PeftModel) -> None:
    """Unties embedding and head if only one of them has an adapter: merged into their shared weight, it would change
    the other one too.
    """
    base: Any = model.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = [end for end in ends if hasattr(end, "base_layer")]
    embedding, head = (getattr(end, "base_layer", end) for end in ends)
    if adapted and head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _merge_in_float32(model: PeftModel, wanted: torch.dtype | None) -> None:
    """Makes every adapted layer merge in float32 and round the result as `rounded` does: to nearest, bfloat16 returns
    the base's weight for most updates of a preference training.

    Args:
        wanted: the dtype of the result; None for that of each weight.
    """

    def merge_layer(layer: Any, own: Callable[..., None], name: str, **options: Any) -> None:
        weights = dict(layer.get_base_layer().named_parameters(recurse=False))
        known = (torch.bfloat16, torch.float16, torch.float32)
        dtypes = {key: wanted or one.dtype for key, one in weights.items() if one.dtype in known}
        for key in dtypes:
            weights[key].data = weights[key].data.float()
        own(**options)
        for key, dtype in dtypes.items():
            weights[key].data = rounded(weights[key].data, dtype, seed=f"{name}.{key}")

    for name, module in list(model.named_modules()):
        layer: Any = module
        if hasattr(layer, "base_layer") and hasattr(layer, "merge"):
            layer.merge = partial(merge_layer, layer, layer.merge, name)


def _folded(model: PeftModel) -> Any:
    with quiet_peft(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Model with `tie_word_embeddings=True`")  # they are untied by now
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")  # intended
        try:
            return model.merge_and_unload(safe_merge=True)
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ModelError(f"The adapter cannot be merged: {error} Keep it as an adapter.") from error


def _is_quantised(model: nn.Module) -> bool:
    return any(map(is_packed, model.parameters()))


def unquantised(model: Any, dtype: Any) -> Any:
    """The model itself, or its unpacked form if the base exists only quantised."""
    if _is_quantised(model):
        logger.warning("The base model is stored quantised; its weights are unpacked and keep their rounding.")
        own = model.get_input_embeddings().weight.dtype
        with quiet_transformers():
            model = model.dequantize(dtype=dtype if isinstance(dtype, torch.dtype) else own)
        # transformers 5.23 leaves the unpacking step in the list that saving plays backwards, where it has no inverse;
        # unnecessary when `dequantize` clears it.
        steps = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [step for step in steps if not _unpacks_bnb(step)] or None
    return model


def _unpacks_bnb(step: Any) -> bool:
    return any(type(operation).__name__.startswith("Bnb") for operation in getattr(step, "operations", None) or ())


def _on_unquantised_base(
    model: PeftModel, base_model: str | os.PathLike[str] | None, trust_remote_code: bool
) -> PeftModel:
    """The same adapter on an unquantised base; the given model is not changed."""
    base = model.get_base_model()
    fresh = _reload_base(base, base_model, trust_remote_code)
    if fresh is None:
        logger.warning(
            "The base model cannot be loaded unquantised (%s); its 4-bit weights are unpacked and keep their "
            "rounding. Give base_model=... to merge the adapter into the original weights.",
            base.name_or_path or "it has no name",
        )
    else:
        logger.info("The adapter is merged into the unquantised base, loaded again from %s.", fresh.name_or_path)
    with tempfile.TemporaryDirectory(prefix="preftune-merge-") as folder, quiet_peft():
        # Embedding layers that differ from the named base would have made `_reload_base` refuse it.
        model.save_pretrained(folder, selected_adapters=model.active_adapters, save_embedding_layers=False)
        names = model.active_adapters
        place = Location("adapter", folder if names == ["default"] else str(Path(folder, names[0])))
        attached = attach_adapter(fresh if fresh is not None else _unpacked_copy(model), place)
    _scale_alike(attached, model)
    return attached


def _scale_alike(model: PeftModel, other: PeftModel) -> None:
    """Gives the layers of the active adapter the scaling that those of another model have: it may be changed in memory,
    and PEFT saves the configuration.
    """
    layers = dict(other.named_modules())
    now, before = model.active_adapters[0], other.active_adapters[0]
    for name, layer in model.named_modules():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, dict) and now in scaling:
            scaling[now] = getattr(layers.get(name), "scaling", {}).get(before, scaling[now])


def _reload_base(base: Any, base_model: str | os.PathLike[str] | None, trust_remote_code: bool) -> Any:
    """The base loaded from its name, if the weights that are not quantised in memory agree; otherwise None."""
    name = base_model or base.name_or_path
    if not name:
        return None
    try:
        fresh = load_model(name, trust_remote_code=trust_remote_code)
    except ModelError:
        if base_model is not None:
            raise
        return None
    if _is_quantised(fresh):
        return None
    stored = dict(fresh.named_parameters())
    for parameter_name, parameter in base.named_parameters():
        plain = parameter_name.replace(".base_layer.", ".").replace(".original_module.", ".")
        if is_packed(parameter) or "lora_" in parameter_name or ".modules_to_save." in parameter_name:
            continue
        other = stored.get(plain)
        lower = (
            torch.bfloat16 if torch.bfloat16 in (parameter.dtype, getattr(other, "dtype", None)) else parameter.dtype
        )
        if other is None or other.shape != parameter.shape:
            return None
        if not torch.equal(parameter.detach().cpu().to(lower), other.detach().cpu().to(lower)):
            return None
    return fresh


def _unpacked_copy(model: PeftModel) -> Any:
    copied: Any = copy.deepcopy(model)
    with quiet_peft():
        base = copied.unload()
    return unquantised(base, None)


def _untie_if_parted(model: Any) -> None:
    """A head that was trained separately from the embedding must not be tied to it again when the model is loaded."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config()
    if head is None or not getattr(config, "tie_word_embeddings", False) or head.weight is embedding.weight:
        return
    if head.weight.shape == embedding.weight.shape and torch.equal(head.weight, embedding.weight):
        return
    config.tie_word_embeddings = model.config.tie_word_embeddings = False
    for module in model.modules():
        if getattr(module, "all_tied_weights_keys", None):
            module.all_tied_weights_keys = {}
    logger.info("Head and embedding differ after merging; the merged model stores both (tie_word_embeddings=False).")


def _finish_reward_model(merged: Any, tokenizer: Any, source: Path, folder: Path) -> None:
    """Saves the other files of a reward model: the pad token of its training, and how it was trained."""
    if tokenizer.pad_token_id is not None:
        merged.config.get_text_config().pad_token_id = merged.config.pad_token_id = tokenizer.pad_token_id
        merged.config.save_pretrained(folder)
    if (source / FORM_FILE).is_file():
        shutil.copy(source / FORM_FILE, folder / FORM_FILE)


def _save(
    merged: Any, folder: Path, tokenizer_source: str | os.PathLike[str] | None, base: str | os.PathLike[str] | None
) -> None:
    """Writes the folder as a whole."""
    advice = "Then merge again; nothing is left in the folder."
    with quiet_transformers(), writing(str(folder), advice), whole_folder(folder) as partial:
        merged.save_pretrained(partial)
        try:
            if tokenizer_source is None:
                raise ModelError("The model does not know its name.")
            tokenizer = load_tokenizer(tokenizer_source, base_model=base)
            tokenizer.save_pretrained(partial)
            if hasattr(merged, "score"):
                _finish_reward_model(merged, tokenizer, Path(tokenizer_source), partial)
        except ModelError as error:
            logger.warning("The merged model is saved without a tokenizer: %s", error)
