"""A sequence classifier with one label as scorer: prompt and answer through its chat template, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.data.chat.tool_calls import apply_template
from preftune.errors import ModelError, RequestError
from preftune.generation.backends import template_of
from preftune.generation.lazy_model import HeldIdentity, ModelSource
from preftune.judges.cache import VerdictCache, verdict_key
from preftune.judges.pairwise_llm import as_transcript
from preftune.judges.protocol import Item, Progress
from preftune.judges.reward_model_input import Form, form_of, trained_ids
from preftune.models.damage import reading, whole_weights
from preftune.models.locate import locate
from preftune.models.positions import check_token_ids, limit_of
from preftune.storage.jsonl import read_object
from preftune.types import Text


class RewardModel:
    """Rates answers; a `Scorer` that rates many at once and keeps what it found."""

    def __init__(
        self,
        load: Callable[[], tuple[Any, Any]],
        *,
        name: str,
        identity: str | Callable[[], str],
        cache: VerdictCache | None = None,
        batch_size: int = 16,
        form: Form | None = None,
    ) -> None:
        """
        Args:
            form: what a model of preftune's own was trained on, if it is one.
            load: gives a sequence classifier with one label, in whose units the scores are, and its tokenizer; called
                when the first score is computed.
            identity: of the model and how it is loaded, or what gives it; scores are kept under it.
        """
        if batch_size < 1:
            raise RequestError(f"--batch_size {batch_size}: give at least 1.")
        self.name = name
        self._identity, self._form = identity, form
        self._load = load
        self._cache, self._batch_size = cache, batch_size

    @classmethod
    def held(cls, model: Any, tokenizer: Any, *, name: str, **options: Any) -> RewardModel:
        """Of a model in memory, as it is when it scores. Raises: ModelError for one with several labels."""
        _settle(model, tokenizer, name)
        identity = HeldIdentity(model, tokenizer, model.config.get_text_config().pad_token_id)
        return cls(lambda: (model, tokenizer), name=name, identity=identity, **options)

    @property
    def cache_key(self) -> str:
        identity = self._identity if isinstance(self._identity, str) else self._identity()
        return verdict_key("reward", identity) if self._form is None else verdict_key("reward", identity, self._form)

    def load(self) -> RewardModel:
        """Loads the model now, so that errors are reported at once."""
        self._loaded  # noqa: B018
        return self

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, tokenizer = self._load()
        return model.eval(), tokenizer

    @property
    def _model(self) -> Any:
        return self._loaded[0]

    @property
    def _tokenizer(self) -> Any:
        return self._loaded[1]

    def __call__(self, prompt: Text, answer: str, row: Mapping[str, Any]) -> float:
        (score,) = self.score_all([(prompt, answer, row)])
        assert score is not None
        return score

    def score_all(
        self, items: Sequence[Item], *, progress: Progress | None = None, leave_out_long: bool = False
    ) -> list[float | None]:
        """The score of every answer, the longest ones computed first.

        Args:
            items: prompt, answer and row of each.
            progress: called with answers done and answers in all.
            leave_out_long: None for an answer that does not fit into the model's positions, instead of an error.
        Raises: ModelError for an answer that does not fit.
        """
        asked = [(prompt, answer, template_of(row)) for prompt, answer, row in items]
        own = self.cache_key
        keys = [verdict_key(own, *(part for part in one if part != {})) for one in asked]
        found: dict[str, float] = {} if self._cache is None else self._cache.get(keys)
        wanted = dict(zip(keys, asked, strict=True))
        missing = {key: self._encode(*item) for key, item in wanted.items() if key not in found}
        if leave_out_long and missing and (limit := limit_of(self._model)) is not None:
            missing = {key: encoded for key, encoded in missing.items() if len(encoded["input_ids"]) <= limit}
        if missing:  # where every score is known, the model is not needed
            self._check_fit([encoded["input_ids"] for encoded in missing.values()])
        order = sorted(missing, key=lambda key: -len(missing[key]["input_ids"]))
        size = 1 if order and self._one_by_one() else self._batch_size
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        for place, values in self._scored([[missing[key] for key in part] for part in parts]):
            scores = dict(zip(parts[place], values, strict=True))
            if self._cache is not None:
                self._cache.put(scores, judge=self.name)
            found.update(scores)
            if progress is not None:
                progress(len(found), len(wanted))
        return [found.get(key) for key in keys]

    def _one_by_one(self) -> bool:
        """Whether rows cannot be scored together."""
        return _sees_padding(self._model)

    def _scored(self, batches: Sequence[Sequence[Mapping[str, list[int]]]]) -> Iterator[tuple[int, list[float]]]:
        """The number and the scores of every batch, as they are computed."""
        yield from enumerate(map(self._score, batches))

    def scores_of(self, batch: Sequence[Mapping[str, list[int]]]) -> list[float]:
        """The scores of answers that are encoded, together. Raises: ModelError for one that does not fit."""
        self._check_fit([encoded["input_ids"] for encoded in batch])
        return self._score(batch)

    def _encode(self, prompt: Text, answer: str, template: Mapping[str, Any]) -> dict[str, list[int]]:
        """As a conversation where the tokenizer has a template for it, else as a pair of texts (with their types)."""
        own = None if self._form is None else trained_ids(self._tokenizer, self._form, prompt, answer, template)
        if own is not None:
            return {"input_ids": own}
        if not self._tokenizer.chat_template:
            encoded = self._tokenizer(as_transcript(_without_roles(prompt)), answer)
            return {name: list(encoded[name]) for name in ("input_ids", "token_type_ids") if name in encoded}
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        said = [*turns, {"role": "assistant", "content": answer}]
        text = apply_template(self._tokenizer, said, **template)
        return {"input_ids": list(self._tokenizer(text, add_special_tokens=False)["input_ids"])}  # text has them

    def _check_fit(self, token_ids: Sequence[Sequence[int]]) -> None:
        check_token_ids(self._model, max((max(ids) for ids in token_ids if ids), default=-1))
        limit = limit_of(self._model)
        longest = max(map(len, token_ids), default=0)
        if limit is not None and longest > limit:
            raise ModelError(
                f"{self.name} has {limit} positions, but the longest prompt with its answer takes "
                f"{counted(longest, 'token')}. Leave such prompts out, or use a reward model with more."
            )

    def _score(self, encoded: Sequence[Mapping[str, list[int]]]) -> list[float]:
        import torch

        from preftune.models.precision import mixed_dtype

        # The model finds each row's last token by its padding id, so the rows are padded with just that.
        padding = self._model.config.get_text_config().pad_token_id
        device = next(self._model.parameters()).device
        width = max(len(row["input_ids"]) for row in encoded)
        inputs = {
            name: torch.full((len(encoded), width), padding if name == "input_ids" else 0, dtype=torch.int64)
            for name in (*encoded[0], "attention_mask")
        }
        for number, row in enumerate(encoded):
            for name, values in {**row, "attention_mask": [1] * len(row["input_ids"])}.items():
                inputs[name][number, : len(values)] = torch.tensor(values)
        dtype = mixed_dtype(self._model)
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            output = self._model(**{name: tensor.to(device) for name, tensor in inputs.items()})
        scores = output.logits.float().reshape(-1)
        if not bool(scores.isfinite().all()):
            raise ModelError(f"{self.name} gives scores that are not finite. Load it with --dtype float32.")
        return [float(score) for score in scores.tolist()]


def open_reward_model(
    name: str,
    *,
    cache: VerdictCache | None = None,
    batch_size: int = 16,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> RewardModel:
    """A reward model from a folder or the hub, whole or as an adapter of PEFT, loaded when its first score is computed.

    Raises: ModelError when there is no such model. Loading raises it for one that cannot be loaded, has no trained head
        or more than one label.
    """
    source, known = located(name, dtype=dtype, trust_remote_code=trust_remote_code)
    load = partial(_load, source, dtype, trust_remote_code)
    return RewardModel(load, cache=cache, batch_size=batch_size, **known)


def located(name: str, *, dtype: str, trust_remote_code: bool) -> tuple[ModelSource, dict[str, Any]]:
    """The place of a reward model, and what `RewardModel` must know of it.

    Raises: ModelError when there is no such model.
    """
    if locate(name).kind == "gguf":
        raise ModelError(
            f"{name} is a GGUF file, which does not contain a head for scores. Give a sequence classifier's folder."
        )
    source = ModelSource(name, dtype=dtype, trust_remote_code=trust_remote_code)
    config = read_object(Path(source.place.name) / "config.json")
    if source.place.kind == "folder" and str(config.get("architectures")).endswith("ForCausalLM']"):
        raise ModelError(_no_head(name, "its config.json names a causal language model"))
    return source, {"name": f"reward:{name}", "identity": source.identity, "form": form_of(source.place.name)}


def _no_head(name: str, why: str) -> str:
    return (
        f"{name} has no trained head for scores ({why}): it is a language model, not a reward model. Give a sequence "
        "classifier with one label."
    )


def _load(source: ModelSource, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from preftune.models.attach import attach_adapter
    from preftune.models.load import parse_dtype
    from preftune.models.quiet import quiet_transformers

    name = source.name
    place = source.base_place if source.is_adapter else source.place
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": place.local_files_only}
    if source.is_adapter:
        options["num_labels"] = 1
    try:
        with quiet_transformers(), whole_weights(place.name), reading(f"{place.name}/config.json"):
            labels = AutoConfig.from_pretrained(place.name, **options).num_labels
            model, report = AutoModelForSequenceClassification.from_pretrained(
                place.name, dtype=parse_dtype(dtype), output_loading_info=True, **options
            )
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        cause = " ".join(str(error).split())[:400]
        raise ModelError(
            f"{name} could not be loaded as a reward model: {cause} Give a sequence classifier with one label."
        ) from error
    missing = sorted(report["missing_keys"])
    if source.is_adapter:
        model = attach_adapter(model, source.place)
        missing = [key for key in missing if not _brings(model, key)]
    if missing:
        raise ModelError(_no_head(name, f"{missing[0]} is not in it"))
    _score_exactly(model)
    tokenizer = source.tokenizer
    if form_of(source.place.name) is not None:  # padding that ends no text; an adapter's base knows nothing of it
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    _settle(model, tokenizer, name, labels=labels)
    return (model.to("cuda") if torch.cuda.is_available() else model), tokenizer


def _settle(model: Any, tokenizer: Any, name: str, *, labels: int | None = None) -> None:
    """One label, and a padding id: the model looks for it, to find where a text ends."""
    found = model.config.num_labels if labels is None else labels
    if found != 1:
        raise ModelError(f"{name} has {found} labels, but a reward model has one. Give another model.")
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        text_config.pad_token_id = next(token for token in known if token is not None)


def _score_exactly(model: Any) -> None:
    """The head in float32, as it was trained: rounded to bfloat16, two scores near 3 that differ by 0.01 would tie."""
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = getattr(base, "score", None)
    if head is None:
        return
    head.float()
    forward = head.forward

    def exact(states: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(states.device.type, enabled=False):
            return forward(states.float(), *args, **kwargs)

    head.forward = exact


def _sees_padding(model: Any) -> bool:
    """Whether rows of different length cannot be scored together: behind virtual tokens transformers reads the score
    at the end of the padded row, and Lily mixes its experts by the mean over a row.
    """
    configs = (getattr(model, "peft_config", None) or {}).values()
    kinds = {str(getattr(config.peft_type, "value", config.peft_type)) for config in configs}
    return "LILY" in kinds or any(config.is_prompt_learning for config in configs)


def _brings(model: Any, key: str) -> bool:
    """Whether the adapter has its own copy of a module that the base has not (`score.weight`)."""
    modules = {name for config in model.peft_config.values() for name in config.modules_to_save or ()}
    return key.rsplit(".", 1)[0].rsplit(".", 1)[-1] in modules


def _without_roles(prompt: Text) -> Text:
    """A single question as its bare text, which is what classifiers of two texts are trained on."""
    return str(prompt[0].get("content") or "") if isinstance(prompt, list) and len(prompt) == 1 else prompt
