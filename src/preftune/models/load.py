"""Loads a model or a tokenizer from a folder, a hub id, an adapter or a GGUF file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preftune.amounts import counted
from preftune.errors import ModelError
from preftune.log import warn
from preftune.models.attach import attach_adapter, generation_config_of, locate_base, name_base
from preftune.models.config_values import check_values
from preftune.models.damage import brief, check_config_size, reading, whole_weights
from preftune.models.four_bit import keep_as_loaded
from preftune.models.locate import Location, locate
from preftune.models.precision import decide_precision
from preftune.models.quiet import quiet_peft, quiet_transformers
from preftune.storage.jsonl import read_object

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    name: str | os.PathLike[str],
    *,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    bnb_4bit_quant_type: str = "nf4",
    use_bnb_nested_quant: bool = False,
    bnb_4bit_quant_storage: str | None = None,
    device_map: Any = None,
    is_trainable: bool = False,
    base_model: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> PreTrainedModel | PeftModel:
    """A causal language model, quantised on request, with its adapter if the name is an adapter's.

    Args:
        name: a local folder, a hub id, a folder or hub id that holds a PEFT adapter (the base is loaded too), or a
            GGUF file (unpacked into plain weights; bfloat16 when dtype is "auto").
        load_in_4bit, load_in_8bit: quantise with bitsandbytes (extra `quant`), on CUDA and CPU alike.
        dtype: dtype of the weights that are not quantised; "auto" means the checkpoint's.
        is_trainable: whether a loaded adapter's weights are to be trained further.
        base_model: used instead of the base that the adapter names.
        kwargs: other arguments of `AutoModelForCausalLM.from_pretrained`.
    Raises: ModelError if it cannot be found or loaded, with similar names or the fix.
    """
    place = locate(name, revision=revision)
    _refuse_reward_model(place)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": parse_dtype(dtype), **kwargs}
    given = {"attn_implementation": attn_implementation, "device_map": device_map}
    options |= {option: value for option, value in given.items() if value is not None}
    if load_in_4bit or load_in_8bit:
        if "quantization_config" in kwargs:
            raise ModelError("load_in_4bit or load_in_8bit and quantization_config exclude each other. Give one.")
        _check_quantisation(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit, quant_type=bnb_4bit_quant_type)
    adapter = place if place.kind in ("adapter", "hub-adapter") else None
    base, base_revision = place, revision
    if adapter is not None:
        base, base_revision = locate_base(adapter, base_model, revision=revision), None
    if load_in_4bit or load_in_8bit:
        four_bit = {
            "bnb_4bit_quant_type": bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": use_bnb_nested_quant,
            "bnb_4bit_quant_storage": bnb_4bit_quant_storage,
        }
        options["quantization_config"] = _bitsandbytes_config(
            base, base_revision, options, four_bit if load_in_4bit else None
        )
    loaded = _load_base(base, revision=base_revision, options=options)
    if adapter is None:
        return loaded
    model = attach_adapter(loaded, adapter, revision=revision, is_trainable=is_trainable)
    if base_model is not None:
        name_base(model, base.name)
    return model


def _refuse_reward_model(place: Location) -> None:
    """Raises: ModelError for a reward model, whose head would silently be left out."""
    folder = Path(place.name)
    # of what cannot be read, loading says what is wrong
    adapter, whole = (read_object(folder / name) for name in ("adapter_config.json", "config.json"))
    if adapter.get("task_type"):
        rates = adapter["task_type"] == "SEQ_CLS"
    else:
        rates = any(str(kind).endswith("ForSequenceClassification") for kind in whole.get("architectures") or ())
    if rates:
        raise ModelError(
            f"{place.name} is a reward model, which rates answers and cannot write them. Judge with it (preftune eval "
            f"--judge reward:{place.name}) or train on it (preftune ppo --reward_model {place.name}), and name the "
            "model that it was made from here."
        )


def load_tokenizer(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    base_model: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that `load_model` accepts; an adapter without a tokenizer uses its base's.

    Raises: ModelError if none can be found.
    """
    from transformers import AutoTokenizer

    place = locate(name, revision=revision)
    if place.kind == "adapter" and not (Path(place.name) / "tokenizer_config.json").is_file():
        base = locate_base(place, base_model).name
        return load_tokenizer(base, trust_remote_code=trust_remote_code, **kwargs)
    source, extra = _source(place)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            local_files_only=place.local_files_only,
            **extra,
            **kwargs,
        )
        check_values(f"{source}/tokenizer_config.json", {"model_max_length": tokenizer.model_max_length})
    except ModelError:
        raise
    except Exception as error:  # of a damaged file: any
        if place.kind == "hub-adapter":
            base = locate_base(place, base_model, revision=revision).name
            return load_tokenizer(base, trust_remote_code=trust_remote_code, **kwargs)
        raise ModelError(
            f"No tokenizer could be loaded from {name} (tokenizer.json, tokenizer_config.json): {brief(error)} Save it "
            "in the folder of the model with tokenizer.save_pretrained, or load it from the model that it belongs to."
        ) from error
    return tokenizer


def parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """A torch dtype from its name; "auto" stays "auto". Raises: ModelError for any other dtype than a float."""
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    text = str(dtype).removeprefix("torch.")
    found = getattr(torch, short.get(text, text), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"dtype={dtype!r} is not a floating dtype. Use auto, bfloat16, float16 or float32.")
    return found


def require_package(package: str, *, extra: str, purpose: str) -> None:
    """Raises: ModelError naming the extra that installs an optional package."""
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{purpose} needs the package {package}. Install it with: pip install 'preftune[{extra}]'")


def _check_quantisation(*, load_in_4bit: bool, load_in_8bit: bool, quant_type: str) -> None:
    if load_in_4bit and load_in_8bit:
        raise ModelError("load_in_4bit and load_in_8bit exclude each other. Choose one; 4 bit needs less memory.")
    if quant_type not in ("nf4", "fp4"):
        raise ModelError(f"bnb_4bit_quant_type={quant_type!r} is unknown. Use nf4 (better) or fp4.")
    require_package("bitsandbytes", extra="quant", purpose="Loading in 4 or 8 bit")


def _bitsandbytes_config(
    place: Location, revision: str | None, options: Mapping[str, Any], four_bit: Mapping[str, Any] | None
) -> BitsAndBytesConfig:
    """NF4 (or int8) with the compute dtype of the precision policy, so that layers and autocast agree.

    Args:
        options: `dtype` and `trust_remote_code` of the model.
        four_bit: options of bitsandbytes; None for 8 bits.
    """
    from transformers import BitsAndBytesConfig

    if place.kind == "gguf":
        raise ModelError(
            f"{place.name} is a GGUF file, which cannot be quantised again while it is loaded. Load it once without "
            "load_in_4bit, save it with model.save_pretrained(folder), and load that folder in 4 bit."
        )
    if four_bit is None:
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = options["dtype"]
    plain = dtype if isinstance(dtype, torch.dtype) else _checkpoint_dtype(place, revision, options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compute = decide_precision(model_dtype=plain, device=device).compute
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute, **four_bit)


def _checkpoint_dtype(place: Location, revision: str | None, options: Mapping[str, Any]) -> torch.dtype:
    from transformers import AutoConfig

    code = {"trust_remote_code": options["trust_remote_code"]}
    config = load_pretrained(AutoConfig, place, revision=revision, options=code)
    found = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    parsed = parse_dtype(found) if found is not None else torch.float32
    return parsed if isinstance(parsed, torch.dtype) else torch.float32


def _load_base(place: Location, *, revision: str | None, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, GgufConfig

    if place.kind == "gguf":
        require_package("gguf", extra="gguf", purpose=f"Reading {place.name}")
        options = {"quantization_config": GgufConfig(dequantize=True), **options}
        if options["dtype"] == "auto":
            options["dtype"] = torch.bfloat16  # what was packed in 4 to 8 bits needs no more
    else:  # what is wrong in it is reported before the weights are read
        generation_config_of(place, revision=revision)
    model: PreTrainedModel = load_pretrained(
        AutoModelForCausalLM, place, revision=revision, options={**options, "output_loading_info": True}
    )
    keep_as_loaded(model)
    return model


def load_pretrained(loader: Any, place: Location, *, revision: str | None, options: dict[str, Any]) -> Any:
    """`loader.from_pretrained`, with its errors as one paragraph with a fix."""
    source, extra = _source(place)
    check_config_size(Path(source))
    if revision is not None:
        extra["revision"] = revision
    if place.local_files_only:
        extra["local_files_only"] = True
    try:
        with quiet_transformers(), whole_weights(place.name), reading(f"{source}/config.json"), _known_options(place):
            found = loader.from_pretrained(source, **extra, **options)
    except ModelError:
        raise
    except ImportError as error:
        fix = " Install it with: pip install 'preftune[quant]'" if "bitsandbytes" in str(error) else ""
        raise ModelError(f"{place.name} needs a package that is not installed: {brief(error)}{fix}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ModelError(f"{place.name}: weights and config.json differ in their shapes. Copy both again.") from error
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            fix = "The model contains its own code: read it, then pass trust_remote_code=True."
        elif "gated" in str(error).lower():
            fix = "Accept its licence on its page of the hub and log in with `hf auth login`."
        else:
            fix = (
                "Check that it is a causal model, completely downloaded, and supported by this version of transformers."
            )
        raise ModelError(f"{place.name} could not be loaded: {brief(error)} {fix}") from error
    return _complete(*found, name=place.name) if options.get("output_loading_info") else found


def meta_model(place: Location, *, revision: str | None, trust_remote_code: bool, peft_config: Any = None) -> Any:
    """The model of a place, without its weights.

    Args:
        peft_config: of the adapter that is put on it.
    Raises: ModelError if there is no readable config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"trust_remote_code": trust_remote_code}
    config = load_pretrained(AutoConfig, place, revision=revision, options=options)
    return _on_meta(partial(AutoModelForCausalLM.from_config, config, **options), place.name, peft_config)


_COPIES: dict[Any, Any] = {}
"""What `meta_copy` made last."""


def meta_copy(model: Any, peft_config: Any) -> Any:
    """A model of the class and the config of another, without weights, with an adapter. Read it only: without an
    adapter, the last ones are kept. Raises: ModelError.
    """
    config, name = model.config, f"this {type(model).__name__}"
    made = partial(_on_meta, lambda: type(model)(deepcopy(config)), name, peft_config)
    if peft_config is not None:
        return made()
    key = (
        type(model),
        repr(config.to_dict()),
        getattr(config, "_attn_implementation", None),
        torch.get_default_dtype(),
    )
    copy = _COPIES.pop(key, None) or made()
    _COPIES[key] = copy  # the newest last
    while len(_COPIES) > 4:
        del _COPIES[next(iter(_COPIES))]
    return copy


def _on_meta(make: Callable[[], Any], name: str, peft_config: Any) -> Any:
    try:
        with torch.device("meta"), quiet_transformers():
            model = make()
        if peft_config is None:
            return model
        from peft import get_peft_model

        with quiet_peft():
            return get_peft_model(model, deepcopy(peft_config), low_cpu_mem_usage=True)
    except Exception as error:  # whatever a config, an adapter or another library says; its words are the reason
        raise ModelError(
            f"{name} cannot be built without its weights: {type(error).__name__}: {str(error)[:200]}"
        ) from error


@contextmanager
def _known_options(place: Location) -> Iterator[None]:
    """Raises: ModelError for an option that the model's class does not know."""
    try:
        yield
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ModelError(f"{place.name} could not be loaded: {brief(error)} Remove it.") from error


def _complete(model: Any, report: Mapping[str, Any], *, name: str) -> Any:
    """The model, with a warning if its files lack weights."""
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        warn(
            f"{name} lacks {counted(len(missing), 'weight')} of its architecture, initialised at random (first: "
            f"{missing[0]}). Check that this is the right model and that it was downloaded completely."
        )
    return model


def _source(place: Location) -> tuple[str, dict[str, Any]]:
    if place.kind != "gguf":
        return place.name, {}
    file = Path(place.name)
    return str(file.parent), {"gguf_file": file.name}
