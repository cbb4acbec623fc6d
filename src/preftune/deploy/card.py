"""The model card of an exported model: the run's own card, what the export is, how to serve it, and the licences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from preftune.deploy.artefact import Manifest

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


def write_card(folder: Path, manifest: Manifest, source: str, *, base: str) -> None:
    """Writes README.md.

    Args:
        source: the run or the model; its own README.md is continued.
        base: the base's name, as shown.
    """
    own = Path(source, "README.md")
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    header, body = _split(text)
    packed = manifest.kind in ("gguf", "ollama")
    header["library_name"] = "gguf" if packed else "peft" if manifest.kind == "adapter" else "transformers"
    header["tags"] = list(dict.fromkeys([*_tags(header), "preftune", *(["gguf"] if packed else [])]))
    if "license" not in header:
        header["license"] = "unknown"
    shown = f"`{base}`" if base else "the base model"
    body = _without_paths(body.strip()) or f"# {Path(source).name}\n\nExported by preftune."
    commands = _SERVE[manifest.kind].format(form=manifest.form)
    rows = [
        ("form", f"{manifest.kind}, {manifest.form}"),
        ("run", manifest.run or "none"),
        ("fingerprint of the weights", manifest.fingerprint or manifest.base_fingerprint or "see the SHA-256 below"),
        ("chat template, SHA-256", manifest.template or "none"),
        ("tokens that end an answer", ", ".join(map(str, manifest.ends)) or "none"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    licence = (
        f"The licence of the weights is that of {shown}; the data of the training may add conditions. Replace "
        "`license: unknown` in the header by the base's licence before you publish the model."
        if header["license"] == "unknown"
        else f"The weights derive from {shown}: its licence applies, and the training data may add conditions."
    )
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False).strip()}\n---\n",
        f"{body}\n",
        f"## This export\n\n| | |\n|---|---|\n{table}\n\nThe hashes of all files are in `preftune_artefact.json`. "
        "`preftune verify FOLDER --against RUN` compares what is served with what was trained.\n\n"
        f"```\n{commands}\n```\n",
        f"## Limits and licences\n\n{licence} The figures above apply to the prompts and the judge that they name. The "
        "model can be wrong, and was not tested for any particular use.\n",
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def set_licence(card: Path, licence: str) -> None:
    """Replaces the licence in the header of a card."""
    header, body = _split(card.read_text(encoding="utf-8"))
    shown = yaml.safe_dump(header | {"license": licence}, sort_keys=False).strip()
    card.write_text(f"---\n{shown}\n---\n{body}", encoding="utf-8")


def licence_of(card: Path) -> str:
    """The licence in the header of a card; empty without one."""
    found = _split(card.read_text(encoding="utf-8"))[0].get("license")
    return "" if found in (None, "unknown", []) else str(found)


def _split(text: str) -> tuple[dict[str, Any], str]:
    """The front matter of a card and its body; a front matter that is no mapping is dropped."""
    found = _FRONT.match(text)
    if found is None:
        return {}, text
    try:
        header = yaml.safe_load(found[1])
    except yaml.YAMLError:
        header = None
    return (dict(header) if isinstance(header, dict) else {}), text[found.end() :]


def _tags(header: dict[str, Any]) -> list[str]:
    tags = header.get("tags")
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def _without_paths(text: str) -> str:
    """The text with absolute paths in code marks shortened to their last part: a card is published."""
    return re.sub(r"`/[^`\n]*/([^`/\n]+)/?`", r"`\1`", text)
