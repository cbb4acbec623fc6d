"""Uploads an exported artefact to the Hugging Face hub, when this is asked for."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

from preftune.deploy.artefact import MANIFEST, Manifest, damage_of, own_file, read_manifest
from preftune.deploy.card import licence_of, set_licence
from preftune.errors import ModelError, RequestError
from preftune.log import printable
from preftune.secret_values import hidden

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LONGEST = 300


def push(folder: str | os.PathLike[str], repository: str, *, public: bool = False, licence: str | None = None) -> str:
    """Uploads the files that the manifest names, and the manifest; nothing else that is in the folder.

    Args:
        folder: one artefact of `export`.
        repository: `OWNER/NAME`; it is created if it does not exist.
        public: make a new repository public; by default it is private.
        licence: written into the card before the upload; required if the card says `unknown` and `public` is set.
    Returns: the address of the commit.
    Raises: RequestError for what cannot be uploaded; ModelError if the hub refuses it, without the token.
    """
    place = Path(folder).expanduser()
    if not _REPOSITORY.fullmatch(repository):
        raise RequestError(f"{repository!r} does not name a repository. Write OWNER/NAME.")
    manifest = read_manifest(place)
    if manifest is None:
        raise RequestError(
            f"{place} is no artefact of preftune export: a run directory also holds settings and states that are not "
            "for the public. Export it first, and push one of the subfolders."
        )
    if damage := damage_of(place, manifest):
        raise RequestError(f"{damage}. Export again, and push that.")
    manifest = _check_licence(place, manifest, licence, public)
    from huggingface_hub import HfApi, get_token

    api: Any = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=str(place),
            allow_patterns=[glob.escape(name) for name in (*manifest.files, MANIFEST)],
            commit_message=f"{manifest.kind} ({manifest.form}) by preftune {manifest.preftune}",
        )
    except Exception as error:  # the client raises errors of several libraries
        said = hidden(printable(" ".join(str(error).split())), [token] if (token := get_token()) else [])[:_LONGEST]
        raise ModelError(
            f"The hub did not take {repository}: {said} Check the name, and log in with `hf auth login` with a token "
            "that may write."
        ) from None
    return printable(str(getattr(done, "commit_url", repository)))


def _check_licence(folder: Path, manifest: Manifest, licence: str | None, public: bool) -> Manifest:
    """Writes the licence into the card, if one is given; returns the manifest with the card's hash as it is now."""
    card = own_file(folder, "README.md")
    if not card.is_file():
        raise RequestError(f"{folder} has no README.md, the card of the model. Export again, and push that.")
    if licence is not None:
        if not re.fullmatch(r"[\w.-]+", licence):
            raise RequestError(f"--license {licence!r} is no name of a licence. Give one such as apache-2.0.")
        set_licence(card, licence)
    elif public and not licence_of(card):
        raise RequestError(
            "The card does not name a licence, and the repository would be public. Give the base's licence with "
            "--license NAME, if it allows this."
        )
    return manifest.rewrite(folder)
