"""Answers of a model to a list of prompts: batched, left-padded, in the order of the prompts; the model is not
changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from preftune.amounts import counted
from preftune.errors import ModelError, PreftuneError, RequestError, sentence
from preftune.generation.encode_prompts import PromptLike, TemplateKwargs, check_fit, encode_prompts
from preftune.generation.thoughts import split_thoughts, spoken

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MAX_NEW_TOKENS = 256
_TRANSFORMERS_TOP_K = 50
"""The top-k of transformers if neither the caller nor the model's generation config sets one."""
# Initialisations that take part of the adapter out of the base weights: with the adapter off, the model is no longer
# the one that was received.
_BASE_CHANGING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")


class Completion(NamedTuple):
    """One answer."""

    text: str
    """The answer, without special tokens and, unless requested, without the reasoning."""
    tokens: int
    """Number of tokens of the answer, without the end-of-sequence token."""
    finished: bool
    """Whether the model ended the answer itself; otherwise `max_new_tokens` cut it."""
    thought: str = ""
    """The reasoning that a thinking model wrote before its answer (`preftune.generation.thoughts`)."""
    thought_tokens: int = 0
    answer: str | None = None
    """The answer alone, if `text` also holds the reasoning."""


def generate(
    model: PreTrainedModel | Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PromptLike],
    *,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    batch_size: int = 16,
    do_sample: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    chat_template_kwargs: TemplateKwargs = None,
    autocast: torch.dtype | Literal["auto"] | None = "auto",
    thoughts_apart: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Answers every prompt, in the order of the prompts.

    Greedy unless `do_sample`; sampling uses `seed` and does not change the global random state (the result depends on
    the batch size; with `seeds` every answer uses its own seed). Tokenizer, training flags, `use_cache` and generation
    config are restored. The key-value cache is used under gradient checkpointing too.

    Args:
        prompts: text, message lists (rendered with the chat template and a generation prompt), or token ids.
        temperature, top_p, top_k, min_p: for sampling; default: the values of the model's generation config.
        seeds: one per prompt, for sampling: an answer then depends on its seed and not on the rest of the batch (up to
            rounding by different padding).
        chat_template_kwargs: for all prompts, or one mapping per prompt (`enable_thinking`, `tools`, ...).
        autocast: `"auto"` turns it on if weights have several precisions; a dtype forces it, None forbids it.
        thoughts_apart: separate a thinking model's reasoning from its answer; False keeps the generated text, and gives
            the answer in `Completion.answer`.
        progress: called with prompts done and prompts in all.
    Raises: RequestError for impossible settings; ModelError for a missing chat template, or a prompt that does not fit
        into the model's positions together with `max_new_tokens`.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise RequestError(f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1.")
    if not prompts:
        return []
    drawn: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    config = generation_config(model, tokenizer, max_new_tokens=max_new_tokens, do_sample=do_sample, **drawn)
    if seeds is not None and (not do_sample or len(seeds) != len(prompts)):
        given = f"{counted(len(seeds), 'seed')} for {counted(len(prompts), 'prompt')}"
        raise RequestError(f"{given}: give one per prompt, with do_sample=True.")
    token_ids = encode_prompts(tokenizer, prompts, chat_template_kwargs)
    check_fit(model, token_ids, max_new_tokens)
    answers: dict[int, Completion] = {}
    with generating(model, autocast, seed if do_sample else None):
        for part in longest_first(token_ids, batch_size):
            own = None if seeds is None else [seeds[i] for i in part]
            new_ids = generate_batch(model, [token_ids[i] for i in part], config, own, tokenizer=tokenizer)
            for index, row in zip(part, new_ids, strict=True):
                ends = _end_ids(config)
                answers[index] = _completion(row, token_ids[index], tokenizer, ends, apart=thoughts_apart)
            if progress is not None:
                progress(len(answers), len(prompts))
    return [answers[i] for i in range(len(prompts))]


def longest_first(token_ids: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Numbers of the prompts, the longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(token_ids)), key=lambda i: -len(token_ids[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def generation_config(
    model: PreTrainedModel | Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    do_sample: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
) -> GenerationConfig:
    """The configuration that `generate` uses: the model's own generation config, greedy unless requested, with the
    cache on, and the end tokens of config and tokenizer.

    A sequence ends at any end token of the generation config or of the tokenizer: chat templates often end a turn with
    another token than the config names. `config.to_diff_dict()` is fit for recording.
    """
    import copy

    from transformers import GenerationConfig

    from preftune.models.config_values import check_values

    own = getattr(model, "generation_config", None)
    config: GenerationConfig = copy.deepcopy(own) if own is not None else GenerationConfig()
    check_values("the model's generation_config", config.to_dict())
    ends = end_ids(config, tokenizer)
    config.eos_token_id = ends or None
    padding = tokenizer.pad_token_id
    config.pad_token_id = padding if padding is not None else (ends[0] if ends else 0)  # masked, so any id will do
    config.max_length = None
    config.max_new_tokens = max_new_tokens
    config.min_length, config.min_new_tokens = 0, None
    config.num_return_sequences = 1
    config.return_dict_in_generate = False
    config.use_cache = True
    config.do_sample = do_sample
    if do_sample:
        # What is still unset, transformers would fill in later; written down here, a record of the config is complete.
        config.temperature = _first(temperature, config.temperature, 1.0)
        config.top_p = _first(top_p, config.top_p, 1.0)
        config.top_k = _first(top_k, config.top_k, _TRANSFORMERS_TOP_K)
        config.min_p = _first(min_p, config.min_p)
    else:  # left in place, they would raise a warning about flags without effect
        config.temperature = config.top_p = config.top_k = config.min_p = config.typical_p = None
    return config


def end_ids(config: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the end tokens of a generation config (or None), and the tokenizer's."""
    ends = _as_list(getattr(config, "eos_token_id", None)) + _as_list(tokenizer.eos_token_id)
    return list(dict.fromkeys(ends))


def base_changed_by(adapter_config: Any) -> str | None:
    """The setting in a PEFT config by which the model with its adapter off differs from the one as received; None if
    there is none.
    """
    initialisation = getattr(adapter_config, "init_lora_weights", None)
    if isinstance(initialisation, str) and initialisation.lower().startswith(_BASE_CHANGING_INITS):
        return f"init_lora_weights={initialisation!r}"
    if getattr(adapter_config, "layer_replication", None):
        return "layer_replication"
    bias = getattr(adapter_config, "bias", "none")
    return None if bias == "none" else f"bias={bias!r}"


def base_changed_by_adapter(name: str) -> str | None:
    """The same for a saved adapter: a folder or a hub id."""
    from preftune.models.attach import adapter_config

    return base_changed_by(adapter_config(name))


@contextmanager
def baseline(model: Any) -> Iterator[Any]:
    """The same model with its adapter off, so that base and aligned come from one loaded model.

    PEFT makes frozen adapter weights trainable when it switches them on again; this function restores `requires_grad`.

    Raises: ModelError if the model has no adapter, or if switching it off does not give the model as received.
    """
    from peft import PeftModel

    from preftune.models.roles import trained_as_it_was

    if not isinstance(model, PeftModel):
        raise ModelError(
            f"{type(model).__name__} has no adapter to switch off, so it does not contain its base. "
            "Load the base model and give it as the baseline."
        )
    for name, config in model.peft_config.items():
        cause = base_changed_by(config)
        if cause is not None:
            raise ModelError(
                f"Adapter {name!r} was made with {cause}, which changes the base weights: with the adapter off this "
                "is not the model as received. Load the base model and give it as the baseline."
            )
    with trained_as_it_was(model), model.disable_adapter():
        yield model


def generate_batch(
    model: Any,
    token_ids: Sequence[Sequence[int]],
    config: GenerationConfig,
    seeds: Sequence[int] | None,
    *,
    processor: Callable[[Tensor], Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[list[int]]:
    """New tokens of each row. Padding is on the left and masked; the tokenizer's padding side has no effect.

    With virtual tokens (prompt tuning and the like) only rows of one length go together: PEFT puts these in front of
    the padding and counts it, so that a row's answer would depend on the others.

    Args:
        processor: makes a logits processor, given the attention mask of the padded prompts. It needs `seeds`.
        tokenizer: finds the `stop_strings` of the config.
    """
    from preftune.generation import early_exit as rounds
    from preftune.generation.seeded_sampling import OfFirstRank, RowDraws
    from preftune.generation.shared_prompts import begins_at_the_prompt, has_virtual_tokens
    from preftune.models.shards import is_sharded

    lengths = {len(ids) for ids in token_ids}
    if len(lengths) > 1 and has_virtual_tokens(model):
        rows: dict[int, list[int]] = {}
        for length in sorted(lengths):
            places = [place for place, ids in enumerate(token_ids) if len(ids) == length]
            own = None if seeds is None else [seeds[place] for place in places]
            chosen = [token_ids[place] for place in places]
            made = generate_batch(model, chosen, config, own, processor=processor, tokenizer=tokenizer)
            rows |= dict(zip(places, made, strict=True))
        return [rows[place] for place in range(len(token_ids))]
    width = max(lengths)
    device = model.get_input_embeddings().weight.device
    input_ids, attention_mask = _padded(token_ids, width, config.pad_token_id, device)
    first = () if processor is None else (processor(attention_mask),)
    draws = None if seeds is None else RowDraws(config, seeds, width=width, device=device, first=first)
    config = config if draws is None else draws.config
    last = [OfFirstRank()] if is_sharded(model) else []
    if processor is None and rounds.serves(config) and not begins_at_the_prompt(model):
        ends = _end_ids(config)
        with _usable_config():
            return rounds.generate_in_rounds(
                model, input_ids, attention_mask, config, ends=ends, draws=draws, last=last
            )
    processors = [*(draws.processors() if draws is not None else ()), *last]
    options: dict[str, Any] = {"logits_processor": processors} if processors else {}
    if config.stop_strings:
        options["tokenizer"] = tokenizer
    with _usable_config():
        output: Tensor = model.generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=config, **options
        )
    new_ids: list[list[int]] = output[:, width:].tolist()
    return new_ids


def _padded(token_ids: Sequence[Sequence[int]], width: int, pad: Any, device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, shape (rows, width), padded on the left."""
    import torch

    input_ids = torch.full((len(token_ids), width), pad, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(token_ids):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask[row, width - len(ids) :] = 1
    return input_ids.to(device), attention_mask.to(device)


@contextmanager
def _usable_config() -> Iterator[None]:
    """Raises: ModelError for a ValueError of transformers, most often about a value in the generation config."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, PreftuneError):
            raise
        raise ModelError(
            f"the model could not generate: {sentence(' '.join(str(error).split()))} If that names a setting of "
            "generation, correct it in generation_config.json in the model's folder."
        ) from error


def _completion(
    row: Sequence[int],
    prompt_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
    *,
    apart: bool = True,
) -> Completion:
    """The tokens before the first end token; later ones are padding, which may be the same token.

    Args:
        prompt_ids: the answered prompt.
        apart: False leaves reasoning in the text, between its marks.
    """
    length = next((position for position, token in enumerate(row) if token in ends), None)
    kept = list(row[:length])
    said, tokens = spoken(tokenizer, kept, prompt_ids)
    if not apart:
        text, raw = (str(tokenizer.decode(kept, skip_special_tokens=skips)) for skips in (True, False))
        if said.thought and not split_thoughts(text).thought and split_thoughts(raw).thought:
            text = raw  # the marks are special tokens
        return Completion(text, len(kept), length is not None, answer=said.answer if said.thought else None)
    return Completion(said.answer, tokens, length is not None, said.thought, len(kept) - tokens)


@contextmanager
def generating(model: Any, autocast: torch.dtype | Literal["auto"] | None, seed: int | None) -> Iterator[None]:
    """Evaluation mode, no gradients, the right precision, a private random state; all restored at the end."""
    import torch

    from preftune.models.precision import mixed_dtype
    from preftune.models.shards import as_generated, is_sharded

    device = model.get_input_embeddings().weight.device
    dtype = mixed_dtype(model) if autocast == "auto" else autocast
    training = {module: module.training for module in model.modules()}
    cards = [device] if device.type not in ("cpu", "mps", "meta") else []
    head = model.get_output_embeddings()
    hook = None if head is None else head.register_forward_pre_hook(_as_one_matrix)
    try:
        model.eval()
        with (
            torch.random.fork_rng(
                devices=cards, enabled=seed is not None, device_type=device.type if cards else "cuda"
            ),
            # weights that are gathered in inference mode could not be trained afterwards
            torch.no_grad() if is_sharded(model) else torch.inference_mode(),
            as_generated(model),
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        if hook is not None:
            hook.remove()
        for module, flag in training.items():
            module.training = flag


def _end_ids(config: GenerationConfig) -> set[int]:
    return set(_as_list(config.eos_token_id))


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _as_one_matrix(module: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last states of a batch, as generation slices them, are not contiguous, and PyTorch (2.13) would multiply them
    row by row, with a copy of the head's weight for each: seconds and gigabytes at the first token.
    """
    return tuple(state.contiguous() for state in states)
