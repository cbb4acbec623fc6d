"""The model card of an exported model: the run's own card, what the export is, how to serve it, and the licences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from preftune.deploy.artefact import Manifest
from preftune.deploy.gguf import metadata
from preftune.models.locate import Location
from preftune.storage.jsonl import read_object

_SERVE = {
    "merged": "vllm serve FOLDER\ntransformers serve --force-model FOLDER\npreftune chat --model FOLDER",
    "adapter": (
        "vllm serve BASE --enable-lora --lora-modules aligned=FOLDER --tokenizer FOLDER --generation-config FOLDER\n"
        "preftune chat --model FOLDER"
    ),
    "gguf": "llama-server --jinja -m FOLDER/model-{form}.gguf",
    "ollama": "ollama create aligned -f FOLDER/Modelfile\nollama run aligned",
}
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def write_card(
    folder: Path, manifest: Manifest, source: str, *, base: str, licence: Licence, data: Mapping[str, Licence]
) -> None:
    """Writes README.md.

    Args:
        source: the run or the model; its own README.md is continued.
        base: the base's name, as shown.
        licence: of the base.
        data: the licences of the training's datasets, by their names as shown.
    """
    own = Path(source, "README.md")
    text = _read(own) if own.is_file() else ""
    header, body = _split(text)
    packed = manifest.kind in ("gguf", "ollama")
    header["library_name"] = "gguf" if packed else "peft" if manifest.kind == "adapter" else "transformers"
    header["tags"] = list(dict.fromkeys([*_tags(header), "preftune", *(["gguf"] if packed else [])]))
    if not _licence(header):
        header |= licence or {"license": "unknown"}
    shown = f"`{base}`" if base else "the base model"
    body = _without_paths(body.strip()) or f"# {Path(source).name}\n\nExported by preftune."
    commands = _SERVE[manifest.kind].format(form=manifest.form)
    rows = [
        ("form", f"{manifest.kind}, {manifest.form}"),
        ("run", manifest.run or "none"),
        ("fingerprint of the weights", manifest.fingerprint or manifest.base_fingerprint or "see the SHA-256 below"),
        ("chat template, SHA-256", manifest.template or "none"),
        ("tokens that end an answer", ", ".join(map(str, manifest.ends)) or "none"),
        ("licence of the base", _shown(licence)),
        ("licence of the data", "; ".join(f"{name}: {_shown(one)}" for name, one in data.items()) or "unknown"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    terms = (
        f"The licence of the weights is that of {shown}, which does not state one here; the data of the training may "
        "add conditions. Replace `license: unknown` in the header by the base's licence before you publish the model."
        if header["license"] == "unknown"
        else f"The weights derive from {shown}: its licence applies, and the training data may add conditions."
    )
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False).strip()}\n---\n",
        f"{body}\n",
        f"## This export\n\n| | |\n|---|---|\n{table}\n\nThe hashes of all files are in `preftune_artefact.json`. "
        "`preftune verify FOLDER --against RUN` compares what is served with what was trained.\n\n"
        f"```\n{commands}\n```\n",
        f"## Limits and licences\n\n{terms} The figures above apply to the prompts and the judge that they name. The "
        "model can be wrong, and was not tested for any particular use.\n",
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


Licence: TypeAlias = dict[str, str]
"""`license`, and for `other` also `license_name`, as in the header of a card; empty if it is unknown."""
_KEYS = ("license", "license_name")
_NAME = re.compile(r"[A-Za-z0-9][\w .+-]{0,59}")
"""Other texts of a card of others are no name of a licence."""


def licence_of_model(place: Location | None) -> Licence:
    """The licence of a model: of its card (in its folder, or on the hub), its config, or a GGUF file's metadata."""
    if place is None:
        return {}
    if place.kind == "gguf":
        return _licence({"license": metadata(Path(place.name), "general.license")})
    if place.kind in ("hub", "hub-adapter"):
        return _licence_on_hub(place.name, "model", fetch=not place.local_files_only)
    folder = Path(place.name)
    return licence_of(folder / "README.md") or _licence(read_object(folder / "config.json"))


def licence_of_data(name: str) -> Licence:
    """The licence of a dataset: of the card in its folder, or of the hub's card if this machine has it."""
    path = Path(name).expanduser()
    if path.exists():
        return licence_of((path if path.is_dir() else path.parent) / "README.md")
    return _licence_on_hub(name, "dataset", fetch=False)


def _licence_on_hub(name: str, kind: str, *, fetch: bool) -> Licence:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        card = hf_hub_download(name, "README.md", repo_type=kind, local_files_only=not fetch, etag_timeout=5.0)
    except (OSError, ValueError, HfHubHTTPError):  # no such card, or no way to it
        return {}
    return licence_of(Path(card))


def licence_of(card: Path) -> Licence:
    """The licence in the header of a card."""
    return _licence(_split(_read(card))[0]) if card.is_file() else {}


def _licence(header: Mapping[str, Any]) -> Licence:
    value = header.get("license")
    given = value if isinstance(value, list) else [value]
    names = [name for name in given if isinstance(name, str) and _NAME.fullmatch(name)]
    if not names or len(names) < len(given):
        return {}
    found = {"license": ", ".join(names)}
    name = header.get("license_name")
    if found["license"] == "other" and isinstance(name, str) and _NAME.fullmatch(name):
        found["license_name"] = name
    return {} if found["license"] == "unknown" else found


def _shown(licence: Licence) -> str:
    return licence.get("license_name") or licence.get("license") or "unknown"


def set_licence(card: Path, licence: str) -> None:
    """Replaces the licence in the header of a card."""
    header, body = _split(_read(card))
    kept = {name: value for name, value in header.items() if name not in _KEYS}
    shown = yaml.safe_dump(kept | {"license": licence}, sort_keys=False).strip()
    card.write_text(f"---\n{shown}\n---\n{body}", encoding="utf-8")


def _read(card: Path) -> str:
    """The beginning of a card, which may be anything in a folder of others."""
    with card.open(encoding="utf-8", errors="replace") as file:
        return file.read(_LONGEST)


_LONGEST, _LONGEST_HEADER = 1_000_000, 50_000


def _split(text: str) -> tuple[dict[str, Any], str]:
    """The front matter of a card and its body; a front matter that is no mapping is dropped."""
    found = _FRONT.match(text)
    if found is None:
        return {}, text
    try:
        header = yaml.safe_load(found[1][:_LONGEST_HEADER])
    except (yaml.YAMLError, ValueError, RecursionError):
        header = None
    return (dict(header) if isinstance(header, dict) else {}), text[found.end() :]


def _tags(header: dict[str, Any]) -> list[str]:
    tags = header.get("tags")
    return [str(tag) for tag in tags if isinstance(tag, str | int | float)] if isinstance(tags, list) else []


def _without_paths(text: str) -> str:
    """The text with absolute paths in code marks shortened to their last part: a card is published."""
    return re.sub(r"`/[^`\n]*/([^`/\n]+)/?`", r"`\1`", text)
