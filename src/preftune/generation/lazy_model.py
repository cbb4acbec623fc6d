"""A model that is loaded only when it is needed: known answers and verdicts need no weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from preftune.errors import ModelError
from preftune.hub import unreachable
from preftune.models.locate import Location, locate

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_SHAPING = ("config.json", "generation_config.json", "adapter_config.json", "chat_template.jinja", "tokenizer.json")
"""Other files that change an answer."""
_SHAPING_MORE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.json")
_VOCABULARIES = ("vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "tekken.json")
_SHAPING_ENDS = (".py", ".model", ".spm")
"""The model's own code, and vocabularies (`spm.model`, `sentencepiece.bpe.model`)."""


class ModelSource:
    """A causal language model with its tokenizer, by name: a folder, an adapter (with its base), a GGUF file, a hub id.

    `identity` is computed from the contents of the files (for a hub id: from its commit), so it is the same on another
    machine, and changes with any weight, the chat template and the loading options."""

    def __init__(self, name: str, *, base_model: str | None = None, **options: Any) -> None:
        """
        Args:
            base_model: used instead of the base that an adapter names.
            options: options of `load_model`: `dtype`, `load_in_4bit`, `trust_remote_code`.
        Raises: ModelError if there is no such model.
        """
        self.name = name
        self._base_model, self._options = base_model, options
        self.place = locate(name)
        self._model: Any = None
        self._tokenizer: Any = None
        self._identity: str | None = None
        self._held: HeldIdentity | None = None

    @classmethod
    def held(cls, model: Any, tokenizer: Any, *, name: str) -> ModelSource:
        """A source for a model that is already loaded."""
        source = cls.__new__(cls)
        source.name, source._base_model, source._options = name, None, {}
        source.place = Location("folder", name)
        source._model, source._tokenizer = model.eval(), tokenizer
        source._identity = None
        source._held = HeldIdentity(model, tokenizer)
        return source

    @property
    def is_adapter(self) -> bool:
        return self.place.kind in ("adapter", "hub-adapter")

    @property
    def base_name(self) -> str:
        """The base of an adapter. Raises: ModelError if it names none, or if it was not found."""
        return self.base_place.name

    @property
    def base_place(self) -> Location:
        """The place of an adapter's base. Raises: ModelError if it was not found."""
        from preftune.models.attach import locate_base

        return locate_base(self.place, self._base_model)

    @property
    def identity(self) -> str:
        if self._held is not None:
            return self._held()
        if self._identity is None:
            digest = xxhash.xxh3_128(repr(sorted(self._options.items())).encode())
            digest.update(contents(self.place))
            if self.is_adapter:
                digest.update(contents(self.base_place))
            self._identity = digest.hexdigest()
        return self._identity

    @property
    def model(self) -> Any:
        """The model, loaded on first use, in evaluation mode, on the first GPU if there is one."""
        if self._model is None:
            import torch

            from preftune.models import load_model

            self._model = load_model(
                self.name,
                base_model=self._base_model,
                device_map={"": 0} if torch.cuda.is_available() else None,
                **self._options,
            ).eval()
        return self._model

    @property
    def generation_config(self) -> Any:
        """The model's generation config, read without its weights; None if there is none."""
        if self._held is not None:
            return getattr(self._model, "generation_config", None)
        from preftune.models.attach import generation_config_of

        places = [self.place, *([self.base_place] if self.is_adapter else [])]
        found = (generation_config_of(place) for place in places if place.kind != "gguf")
        return next((config for config in found if config is not None), None)

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            from preftune.models import load_tokenizer

            self._tokenizer = load_tokenizer(
                self.name,
                base_model=self._base_model,
                trust_remote_code=bool(self._options.get("trust_remote_code")),
            )
        return self._tokenizer

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def release(self) -> None:
        """Releases the weights, which are loaded again when needed; a model that was passed in is kept."""
        if self._model is None or self._held is not None:
            return
        import torch

        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def identity_in_memory(model: Any, tokenizer: Any, *more: Any, adapters: bool = True) -> str:
    """A digest of a model and its tokenizer: weights, adapters, generation config, vocabulary, chat template.

    Args:
        more: other values that affect its answers.
        adapters: whether the adapters count.
    """
    from preftune.data.tokens.cache import keys_of_tokenizer
    from preftune.reference.fingerprint import fingerprint
    from preftune.storage.jsonl import digest

    vocabulary: Any = keys_of_tokenizer(tokenizer, None)
    if vocabulary is None:  # its inside cannot be seen
        get: Any = getattr(tokenizer, "get_vocab", dict)
        vocabulary = sorted(get().items())
    shaping = (_generation_of(model), tokenizer.chat_template, vocabulary)
    return digest([fingerprint(model, adapters=adapters), *shaping, *more])


def _generation_of(model: Any) -> str | None:
    config = getattr(model, "generation_config", None)
    return None if config is None else str(config.to_json_string())


class HeldIdentity:
    """`identity_in_memory` of a model that a program holds and may change, computed again after a change."""

    def __init__(self, model: Any, tokenizer: Any, *more: Any) -> None:
        self._of, self._state, self._digest = (model, tokenizer, *more), None, ""
        self()

    def __call__(self) -> str:
        from preftune.reference.fingerprint import settings_of_model
        from preftune.reference.sources import state_of

        model, tokenizer = self._of[:2]
        named = (tokenizer.chat_template, getattr(tokenizer, "special_tokens_map", None))
        state: Any = (state_of(model), settings_of_model(model), _generation_of(model), *named)
        if state != self._state:
            self._state, self._digest = state, identity_in_memory(*self._of)
        return self._digest


def contents(place: Location) -> bytes:
    """A digest of all files that affect a model's answers; for a hub id its commit.

    Raises: ModelError if the commit of a hub id cannot be found.
    """
    digest = xxhash.xxh3_128()
    if place.kind in ("hub", "hub-adapter"):
        digest.update(f"{place.name}@{_commit(place)}".encode())
        return digest.digest()
    for file in _files(Path(place.name)):
        digest.update(file.name.encode())
        with open(file, "rb") as opened:
            while part := opened.read(1 << 22):
                digest.update(part)
    return digest.digest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.iterdir()):
        weights = file.suffix in _WEIGHTS and file.name != "training_args.bin"
        named = file.name in (*_SHAPING, *_SHAPING_MORE, *_VOCABULARIES) or file.suffix in _SHAPING_ENDS
        if weights or (named and file.is_file()):
            yield file
    yield from sorted((path / "additional_chat_templates").glob("*.jinja"))


def _commit(place: Location) -> str:
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    hub = unreachable()
    if not place.local_files_only:
        http_error: Any = getattr(errors, "HTTPError", OSError)
        try:
            return str(HfApi().model_info(place.name, timeout=5.0).sha)
        except (OSError, http_error) as error:  # it was there a moment ago; what is on this machine will be loaded
            hub = unreachable(error)
    name = "adapter_config.json" if place.kind == "hub-adapter" else "config.json"
    found = try_to_load_from_cache(place.name, name)
    if not isinstance(found, str):
        raise ModelError(
            f"{place.name} is not on this machine, and the hub cannot be reached ({hub.why}). {hub.fix}, or copy the "
            "model's folder here and give its path."
        )
    return Path(found).parent.name
