"""Types of the values in a model's files: a wrong one is an error that names file and field, not a TypeError of a
library, and no wrong value is used in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from preftune.errors import ModelError
from preftune.storage.json_types import is_number, is_text, is_truth, is_whole


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(holds, value))


def _or_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: holds(value) or _list_of(holds)(value)


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "a token id": (is_whole, "bos_token_id pad_token_id sep_token_id"),
    "a token id or a list of token ids": (
        _or_list_of(is_whole),
        "eos_token_id forced_bos_token_id forced_eos_token_id decoder_start_token_id",
    ),
    "a list of token ids": (_list_of(is_whole), "suppress_tokens begin_suppress_tokens alora_invocation_tokens"),
    "a list of lists of token ids": (_list_of(_list_of(is_whole)), "bad_words_ids"),
    "a whole number": (
        is_whole,
        "top_k max_length max_new_tokens min_length min_new_tokens num_beams num_return_sequences "
        "no_repeat_ngram_size encoder_no_repeat_ngram_size",
    ),
    "a number": (
        is_number,
        "temperature top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty length_penalty "
        "encoder_repetition_penalty guidance_scale max_time model_max_length",
    ),
    "true or false": (is_truth, "do_sample use_cache output_hidden_states output_attentions"),
    "a text": (is_text, "model_type base_model_name_or_path revision"),
    "a text or a list of texts": (_or_list_of(is_text), "stop_strings"),
    "a list of texts": (_list_of(is_text), "architectures"),
}
_OF_FIELD = {field: (holds, kind) for kind, (holds, fields) in _KINDS.items() for field in fields.split()}
_SIZES = frozenset(
    "hidden_size intermediate_size vocab_size head_dim num_attention_heads num_key_value_heads num_hidden_layers "
    "num_layers n_layer n_layers n_head n_embd d_model num_experts num_local_experts".split()
)


def check_values(where: str, content: Mapping[str, Any]) -> None:
    """Checks the types of the fields that preftune and the libraries use; a null is an unset field.

    Args:
        where: the file, for the message.
    Raises: ModelError for the first wrong value.
    """
    for field, value in content.items():
        holds, kind = _OF_FIELD.get(field, (None, ""))
        if value is not None and holds is not None and not holds(value):
            raise _wrong(where, field, value, kind)
        if field in _SIZES and is_number(value) and value < 0:
            raise _wrong(where, field, value, "0 or more")
        if field.endswith("_config") and isinstance(value, Mapping):
            check_values(where, value)


def check_adapter_values(where: str, config: Any) -> None:
    """Checks the numbers and switches of a PEFT config against the types that its class declares.

    Raises: ModelError for the first wrong value.
    """
    kinds: dict[str, tuple[Callable[[Any], bool], str]] = {
        "bool": (is_truth, "true or false"),
        "int": (is_whole, "a whole number"),
        "float": (is_number, "a number"),
    }
    for name, field in getattr(type(config), "__dataclass_fields__", {}).items():
        declared = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        holds, kind = kinds.get(declared, (None, ""))
        if name in ("lora_alpha", "alpha"):  # declared as whole numbers, used as any
            holds, kind = kinds["float"]
        value = getattr(config, name, None)
        if holds is not None and value is not None and not holds(value):
            raise _wrong(where, name, value, kind)


def _wrong(where: str, field: str, value: Any, kind: str) -> ModelError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:60] + "..."
    return ModelError(f"{where}: {field} is {shown}, not {kind}. Correct it, or copy the file again from its source.")
