"""A sequence classifier with one label as scorer: prompt and answer through its chat template, in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from preftune.errors import ModelError, RequestError
from preftune.evaluation.endpoint_judge import as_transcript
from preftune.evaluation.records import digest
from preftune.evaluation.verdicts import VerdictCache, verdict_key
from preftune.types import Text


class RewardModel:
    """Rates answers; a `Scorer` that rates many at once and keeps what it found."""

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, cache: VerdictCache | None = None, batch_size: int = 16
    ) -> None:
        """
        Args:
            model: a sequence classifier with one label, in whose units the scores are.
            cache: where scores are kept, under the model's fingerprint.
        """
        from preftune.reference.fingerprint import fingerprint

        if batch_size < 1:
            raise RequestError(f"--batch_size {batch_size}: give at least 1.")
        self.name = name
        self._model, self._tokenizer, self._cache, self._batch_size = model.eval(), tokenizer, cache, batch_size
        template = digest(tokenizer.chat_template)
        self.cache_key = verdict_key("reward", fingerprint(model, adapters=True), template)

    def __call__(self, prompt: Text, answer: str, row: Mapping[str, Any]) -> float:
        return self.score_all([(prompt, answer, row)])[0]

    def score_all(
        self,
        items: Sequence[tuple[Text, str, Mapping[str, Any]]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[float]:
        """The score of every answer, the longest ones computed first.

        Args:
            items: prompt, answer and row of each.
            progress: called with answers done and answers in all.
        Raises: ModelError for an answer that does not fit into the model's positions.
        """
        keys = [verdict_key(self.cache_key, prompt, answer) for prompt, answer, _ in items]
        found: dict[str, float] = {} if self._cache is None else self._cache.get(keys)
        wanted = {key: (prompt, answer) for key, (prompt, answer, _) in zip(keys, items, strict=True)}
        missing = {key: self._encode(*item) for key, item in wanted.items() if key not in found}
        self._check_lengths([encoded["input_ids"] for encoded in missing.values()])
        order = sorted(missing, key=lambda key: -len(missing[key]["input_ids"]))
        for start in range(0, len(order), self._batch_size):
            part = order[start : start + self._batch_size]
            scores = dict(zip(part, self._score([missing[key] for key in part]), strict=True))
            if self._cache is not None:
                self._cache.put(scores, judge=self.name)
            found.update(scores)
            if progress is not None:
                progress(len(wanted) - len(order) + start + len(part), len(wanted))
        return [found[key] for key in keys]

    def _encode(self, prompt: Text, answer: str) -> dict[str, list[int]]:
        """As a conversation where the tokenizer has a template for it, else as a pair of texts (with their types)."""
        if self._tokenizer.chat_template is None:
            encoded = self._tokenizer(as_transcript(_without_roles(prompt)), answer)
            return {name: list(encoded[name]) for name in ("input_ids", "token_type_ids") if name in encoded}
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = self._tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        return {"input_ids": list(self._tokenizer(text, add_special_tokens=False)["input_ids"])}  # text has them

    def _check_lengths(self, token_ids: Sequence[Sequence[int]]) -> None:
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, token_ids), default=0)
        if limit is not None and longest > limit:
            raise ModelError(
                f"{self.name} has {limit} positions, and the longest prompt with its answer takes {longest} tokens. "
                "Leave such prompts out, or use a reward model with more."
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


def load_reward_model(
    name: str,
    *,
    cache: VerdictCache | None = None,
    batch_size: int = 16,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> RewardModel:
    """A reward model from a folder or the hub.

    Raises: ModelError when it cannot be found or loaded, has no trained head, or more than one label.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from preftune.models import load_tokenizer
    from preftune.models.load import parse_dtype
    from preftune.models.locate import locate

    place = locate(name)
    if place.kind not in ("folder", "hub"):
        raise ModelError(
            f"{name} is an adapter or a GGUF file, and a reward model is loaded whole. Fold the adapter into its base, "
            "and give that folder."
        )
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": place.local_files_only}
    try:
        labels = AutoConfig.from_pretrained(place.name, **options).num_labels
        loaded = AutoModelForSequenceClassification.from_pretrained(
            place.name, dtype=parse_dtype(dtype), output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        cause = " ".join(str(error).split())[:400]
        raise ModelError(
            f"{name} could not be loaded as a reward model: {cause} Give a sequence classifier with one label."
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        raise ModelError(
            f"{name} has no trained head for scores ({sorted(report['missing_keys'])[0]} is not in it): it is a "
            "language model, not a reward model. Give a sequence classifier with one label."
        )
    if labels != 1:
        raise ModelError(f"{name} has {labels} labels, and a reward model has one. Give another model.")
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        text_config.pad_token_id = next(token for token in known if token is not None)
    if torch.cuda.is_available():
        model = model.to("cuda")
    return RewardModel(model, tokenizer, name=f"reward:{name}", cache=cache, batch_size=batch_size)


def _without_roles(prompt: Text) -> Text:
    """A single question as its bare text, which is what classifiers of two texts are trained on."""
    return str(prompt[0].get("content") or "") if isinstance(prompt, list) and len(prompt) == 1 else prompt
