"""Exports a trained model in the forms that servers load: a whole model, an adapter, GGUF, Ollama."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

from preftune.deploy.artefact import KINDS, MANIFEST, Kind, Manifest, check_links
from preftune.deploy.card import licence_of_data, licence_of_model, write_card
from preftune.deploy.gguf import GgufFiles, check_type, require_converter
from preftune.deploy.ollama import write_modelfile
from preftune.errors import ModelError, RequestError, did_you_mean
from preftune.generation.generate import end_ids
from preftune.generation.lazy_model import ModelSource
from preftune.models import unquantised
from preftune.models.attach import adapter_config, generation_config_of, locate_base
from preftune.models.damage import check_weights, free_folder, writing
from preftune.models.load import load_model, load_tokenizer
from preftune.models.locate import Location, locate
from preftune.models.quiet import quiet_transformers
from preftune.storage.atomic import whole_folder
from preftune.storage.jsonl import read_object
from preftune.storage.run_directory import run_facts
from preftune.storage.trained_prompts import carry_trained_prompts

_ADAPTER_FILES = (
    "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "preftune_weights.json",
)  # fmt: skip


Made: TypeAlias = tuple[Manifest, list[str]]
"""What an artefact is, and notes about it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to export, written `KIND` or `KIND:TYPE`, as `gguf:q4_k_m`."""

    kind: Kind
    form: str = ""
    """The type of a GGUF file."""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises: RequestError for an unknown kind or type."""
        kind, _, form = text.partition(":")
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS, otherwise=f"There are {', '.join(KINDS)}.")
            raise RequestError(f"--to {text}: {kind!r} is no form of an exported model. {hint}")
        if kind in ("merged", "adapter"):
            if form:
                raise RequestError(f"--to {text}: only gguf and ollama have a type. For the dtype, give --dtype.")
            return cls(kind)
        return cls(kind, check_type(form or "f16"))

    @property
    def folder(self) -> str:
        return f"{self.kind}-{self.form}" if self.form else self.kind


@dataclass(frozen=True, slots=True)
class Exported:
    """One exported artefact."""

    folder: Path
    manifest: Manifest
    notes: list[str]
    """What a user should know about it, in sentences."""


def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    targets: Sequence[str] = ("merged",),
    *,
    dtype: str | None = None,
    base_model: str | None = None,
    trust_remote_code: bool = False,
    report: Callable[[Exported], None] = lambda exported: None,
) -> list[Exported]:
    """Exports a model; every target becomes a folder under `output`, which is either complete or absent.

    Args:
        model: a run directory, an adapter or a whole model.
        targets: `merged`, `adapter`, `gguf:TYPE`, `ollama:TYPE`.
        dtype: of the whole model (`merged`); default: the base's.
        base_model: used instead of the base that an adapter names.
        report: called with every artefact when it is complete.
    Raises: RequestError for an unknown target, before anything is read; ModelError if the model cannot be exported.
    """
    wanted = list(dict.fromkeys(map(Target.parse, targets)))
    if dtype is not None and all(target.kind != "merged" for target in wanted):
        raise RequestError(
            "--dtype applies to --to merged. An adapter keeps its dtype, and a GGUF file has its type in its name."
        )
    for target in wanted:
        if target.form:
            require_converter(target.form)
    check_links(Path(model).expanduser())
    source = Source(os.fspath(model), base_model, trust_remote_code)
    folder = Path(output).expanduser()
    done: list[Exported] = []
    _name_complete_ones(folder, wanted)
    for target in wanted:
        if target.kind == "adapter" and not source.is_adapter:
            raise ModelError(f"{source.name} is a whole model and has no adapter. Export it with --to merged.")
        free_folder(folder / target.folder)
    with source.gguf_files() as files:
        for target in wanted:
            place = folder / target.folder
            with writing(str(place), "Then export again."), whole_folder(place) as partial:
                manifest, notes = _WRITERS[target.kind](source, target, partial, files, dtype)
                write_card(partial, manifest, source.name, base=source.base_name, **source.licences)
                manifest = manifest.write(partial)
            done.append(Exported(place, manifest, notes))
            report(done[-1])
    return done


def _name_complete_ones(folder: Path, wanted: Sequence[Target]) -> None:
    """Raises: ModelError that names the other targets, where an export was ended between two of them."""
    there = [target for target in wanted if (folder / target.folder / MANIFEST).is_file()]
    if not there or len(there) == len(wanted):
        return
    rest = " ".join(":".join(filter(None, (one.kind, one.form))) for one in wanted if one not in there)
    raise ModelError(
        f"{folder / there[0].folder} is a complete export already. Export the other targets alone (--to {rest}), or "
        "remove it to make it again."
    )


class Source:
    """The model that is exported."""

    def __init__(self, name: str, base_model: str | None, trust_remote_code: bool) -> None:
        self.name, self.trust = name, trust_remote_code
        self._base_model = base_model
        self.place = locate(name)
        if self.place.kind == "gguf":
            raise ModelError(f"{name} is a GGUF file already. Give the run or the model that it was made from.")
        self._check_base()
        self.facts = run_facts(name)
        self.tokenizer = load_tokenizer(name, base_model=base_model, trust_remote_code=trust_remote_code)

    @property
    def is_adapter(self) -> bool:
        return self.place.kind in ("adapter", "hub-adapter")

    @property
    def base(self) -> Location | None:
        return locate_base(self.place, self._base_model) if self.is_adapter else None

    def _check_base(self) -> None:
        """Checks the links of a base in the run or next to it: one downloaded archive can hold both."""
        if self.place.kind == "adapter" and self.base is not None and self.base.kind == "folder":
            base = Path(self.base.name).resolve()
            if base.is_relative_to(Path(self.place.name).resolve().parent):
                check_links(base)

    @property
    def base_name(self) -> str:
        """The base as a card shows it."""
        name = self.base.name if self.base else str((self.facts.get("model") or {}).get("name") or "")
        return _last_part(name)

    @cached_property
    def licences(self) -> dict[str, Any]:
        """Of the base (of a model without one: its own), and of the datasets that the run's command names."""
        name = self.facts.get("model", {}).get("name")
        base = self.base
        if base is None and isinstance(name, str) and name:
            with suppress(ModelError):  # the base is not on this machine any more
                base = locate(name)
        elif base is None:
            base = self.place
        data = {_last_part(one): licence_of_data(one) for one in datasets_of(self.facts.get("command"))}
        return {"licence": licence_of_model(base), "data": data}

    @contextmanager
    def gguf_files(self) -> Iterator[GgufFiles]:
        """A writer of GGUF files; the whole model is saved once in every dtype that they need."""
        with tempfile.TemporaryDirectory(prefix="preftune-export-") as scratch:

            def whole(dtype: str) -> Path:
                folder = Path(scratch, dtype)
                if not folder.exists():
                    self.save_whole(folder, dtype)
                return folder

            yield GgufFiles(whole, Path(scratch))

    def save_whole(self, folder: Path, dtype: str | None) -> Any:
        """Saves the whole model with everything that a server needs; returns it."""
        from preftune.models import merge

        if self.is_adapter:
            model: Any = merge(
                self.name, folder, dtype=dtype, base_model=self._base_model, trust_remote_code=self.trust
            )
        else:
            model = unquantised(load_model(self.name, dtype=dtype or "auto", trust_remote_code=self.trust), None)
            with quiet_transformers():
                model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            carry_trained_prompts(self.name, folder)
        self.save_ends(model, folder)
        return model

    def save_ends(self, model: Any, folder: Path) -> None:
        """Saves the generation config with every token that ends an answer."""
        from preftune.training.record.saved_model import end_answers

        end_answers(model, self.tokenizer)
        if getattr(model, "generation_config", None) is not None:
            with quiet_transformers():
                model.generation_config.save_pretrained(folder)

    def manifest(self, kind: Kind, form: str, generation_config: Any, **more: Any) -> Manifest:
        template = self.tokenizer.chat_template
        return Manifest(
            kind=kind,
            form=form,
            method=str(self.facts.get("method") or ""),
            run=str(self.facts.get("id") or ""),
            base=self.base_name,
            template=hashlib.sha256(str(template).encode()).hexdigest() if template else "",
            ends=sorted(end_ids(generation_config, self.tokenizer)),
            **more,
        )


def _last_part(name: str) -> str:
    """A hub id, or the name of a folder or file: a card must not contain a path of this machine."""
    return name if name.count("/") == 1 and not Path(name).exists() else Path(name).name


def datasets_of(command: Any) -> list[str]:
    """The names that follow `--data` in a command, without the proportions of a mixture."""
    given = [word for word in command if isinstance(word, str)] if isinstance(command, list) else []
    words = [part for word in given for part in (word.split("=", 1) if word.startswith("--") else [word])]
    at = next((n for n, word in enumerate(words) if word in ("--data", "--dataset_name")), len(words))
    named = takewhile(lambda word: not word.startswith("--"), words[at + 1 :])
    return [re.sub(r":[\d.]+$", "", name) for name in named]


def _merged(source: Source, target: Target, folder: Path, _: Any, dtype: str | None) -> Made:
    from preftune.models.precision import weights_dtype
    from preftune.reference.fingerprint import fingerprint

    model = source.save_whole(folder, dtype)
    form = str(weights_dtype(model)).removeprefix("torch.")
    config = getattr(model, "generation_config", None)
    return source.manifest(target.kind, form, config, fingerprint=fingerprint(model, adapters=True)), []


def _adapter(source: Source, target: Target, folder: Path, _: Any, dtype: str | None) -> Made:
    from preftune.generation.vllm_backend import refused_by
    from preftune.reference.fingerprint import fingerprint

    if source.place.kind != "adapter":
        raise ModelError(f"{source.name} is an adapter on the hub, which can be served as it is.")
    check_weights(Path(source.place.name))
    for name in _ADAPTER_FILES:
        if (file := Path(source.place.name, name)).is_file():
            shutil.copyfile(file, folder / name)
    carry_trained_prompts(source.place.name, folder)
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{source.name} has its weights in a pickle. Load it, and save it again as safetensors.")
    source.tokenizer.save_pretrained(folder)
    base = source.base
    assert base is not None
    notes = []
    named = str(adapter_config(source.place.name).base_model_name_or_path or "")
    if Path(named).is_absolute() or Path(named).exists():
        notes.append(
            f"The adapter names a folder of this machine as its base ({named}). On another one, give the base's place "
            "(vllm serve BASE --lora-modules NAME=ADAPTER; preftune: --base BASE)."
        )
    reason = refused_by(ModelSource(source.name, base_model=source._base_model))
    if reason is not None:
        notes.append(f"vLLM does not serve this adapter: {reason}. For vLLM, export with --to merged.")
    plain: Any = load_model(base.name, trust_remote_code=source.trust)
    printed = fingerprint(plain, adapters=False)
    plain.generation_config = generation_config_of(source.place) or plain.generation_config
    source.save_ends(plain, folder)
    form = _dtype_of(folder)
    return source.manifest(target.kind, form, plain.generation_config, base_fingerprint=printed), notes


def _gguf(source: Source, target: Target, folder: Path, files: GgufFiles, dtype: str | None) -> Made:
    files.write(folder / _weights(target), target.form)
    config = _generation_config(files, target)
    if config is not None:
        config.save_pretrained(folder)
    return source.manifest(target.kind, target.form, config), []


def _ollama(source: Source, target: Target, folder: Path, files: GgufFiles, dtype: str | None) -> Made:
    made = _gguf(source, target, folder, files, dtype)
    config = read_object(files.source(target.form) / "config.json")
    write_modelfile(folder, _weights(target), source.tokenizer, _generation_config(files, target), config)
    return made


def _weights(target: Target) -> str:
    return f"model-{target.form}.gguf"


def _generation_config(files: GgufFiles, target: Target) -> Any:
    return generation_config_of(Location("folder", str(files.source(target.form))))


_WRITERS: dict[Kind, Callable[[Source, Target, Path, Any, str | None], Made]] = {
    "merged": _merged,
    "adapter": _adapter,
    "gguf": _gguf,
    "ollama": _ollama,
}


def _dtype_of(folder: Path) -> str:
    """The dtype of an adapter's weights, by its file."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as opened:
        first = next(iter(opened.keys()))
        return str(opened.get_tensor(first).dtype).removeprefix("torch.")
