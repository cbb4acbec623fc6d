"""The manifest of an exported model: what it was made from, how a server must use it, and the hashes of its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.errors import ModelError
from preftune.storage.atomic import sha256_of
from preftune.storage.jsonl import read_object, write_json
from preftune.version import __version__

MANIFEST = "preftune_artefact.json"
FORM = 1
"""Version of the manifest. A reader refuses newer ones."""

Kind: TypeAlias = Literal["merged", "adapter", "gguf", "ollama"]
KINDS: tuple[Kind, ...] = ("merged", "adapter", "gguf", "ollama")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of `preftune_artefact.json`; no path of the machine where it was made is among them."""

    kind: Kind
    form: str
    """The dtype of the weights (`bfloat16`), or the type of a GGUF file (`q8_0`)."""
    method: str = ""
    """The training method; empty for a model that preftune did not train."""
    run: str = ""
    """The id of the run; empty for a model without one."""
    base: str = ""
    """The base's name, without its folder."""
    base_fingerprint: str = ""
    """`reference.fingerprint` of the base's weights as they are loaded without quantisation; only for an adapter."""
    fingerprint: str = ""
    """The same of the weights of the exported model, before a conversion to GGUF."""
    template: str = ""
    """SHA-256 of the chat template; empty without one."""
    ends: list[int] = field(default_factory=list)
    """The ids of the tokens that end an answer."""
    preftune: str = __version__
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file, by its name."""

    def rewrite(self, folder: Path) -> Manifest:
        """Writes the manifest again with the present hashes of the files that it names, and of no others."""
        whole = replace(self, files={name: sha256_of(folder / name) for name in self.files})
        write_json(folder / MANIFEST, asdict(whole) | {"manifest": FORM})
        return whole

    def write(self, folder: Path) -> Manifest:
        """Writes the manifest with the hashes of the files that are in the folder now, and returns it."""
        return replace(self, files={str(file.relative_to(folder)): "" for file in _files(folder)}).rewrite(folder)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if it has none.

    Raises: ModelError for one that is damaged, or of a newer version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    found: dict[str, Any] = read_object(file)
    form = found.pop("manifest", None)
    if not isinstance(form, int) or found.get("kind") not in KINDS:
        raise ModelError(f"{file} cannot be read. Export the model again.")
    if form > FORM:
        raise ModelError(f"{file} was written by preftune {found.get('preftune')}. Install that version to verify it.")
    known = {item.name: item.default for item in fields(Manifest)}
    manifest = Manifest(**{name: value for name, value in found.items() if name in known})
    texts = (getattr(manifest, item.name) for item in fields(Manifest) if item.type == "str")
    lists = isinstance(manifest.files, dict), isinstance(manifest.ends, list)
    hashes = manifest.files.values() if all(lists) else ()
    if (
        not all(lists)
        or not all(isinstance(text, str) for text in (*texts, *hashes))
        or not all(type(end) is int for end in manifest.ends)
    ):
        raise ModelError(f"{file} has a value of a wrong type. Export the model again.")
    return manifest


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """The names of files that are missing or differ from the manifest, README.md aside, which people may edit.

    Raises: ModelError for a file outside the folder.
    """
    files = {name: own_file(folder, name) for name in sorted(manifest.files)}
    return [
        name
        for name, file in files.items()
        if name != "README.md" and (not file.is_file() or sha256_of(file) != manifest.files[name])
    ]


def damage_of(folder: Path, manifest: Manifest) -> str:
    """What is wrong with the files of an artefact, as part of a sentence: missing ones, and those that differ."""
    damaged = damaged_files(folder, manifest)
    missing = [name for name in damaged if not (folder / name).is_file()]
    changed = [name for name in damaged if name not in missing]
    parts = []
    if missing:
        parts.append(f"{', '.join(missing[:3])} {'is' if len(missing) == 1 else 'are'} missing")
    if changed:
        parts.append(f"{', '.join(changed[:3])} {'differs' if len(changed) == 1 else 'differ'} from the export")
    return ", and ".join(parts)


def own_file(folder: Path, name: str) -> Path:
    """The path of a file of a folder.

    Raises: ModelError for one that is elsewhere, by its name or as a link; links of the hub's cache into its own store
        are allowed.
    """
    root = folder.resolve()
    store = [root.parent.parent / "blobs"] if root.parent.name == "snapshots" else []
    path = folder / name
    if not any(path.resolve().is_relative_to(one) for one in (root, *store)):
        raise ModelError(
            f"{name!r} leads to a file outside the folder {folder}, which would be read or published with it. Replace "
            "it by a copy, or export the model again."
        )
    return path


_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


def check_links(folder: Path) -> None:
    """Checks the files of a model that an artefact repeats; weights may be links.

    Raises: ModelError for one that leads outside the folder.
    """
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix not in _WEIGHTS:
            own_file(folder, file.name)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MANIFEST)
