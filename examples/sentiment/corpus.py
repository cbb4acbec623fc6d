"""Two corpora of film reviews from nltk, cleaned, and split by document into parts that share no sentence.

    movie_reviews       2,000 reviews (Pang and Lee 2004), a sentence per line
    sentence_polarity   10,662 sentences labelled positive or negative (Pang and Lee 2005), each a document of its own

    language model      85% of the reviews, and a quarter of the labelled sentences (without their labels)
    prompts             10% of the reviews to train on, 5% to test on: the beginnings of their sentences
    gold reward         65% of the labelled sentences, and 10% to state its accuracy on

Where a document goes is decided by a hash of its name (of a sentence: its text), the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from preftune.errors import DatasetError

NAMES = ("movie_reviews", "sentence_polarity")
_WORDS = (5, 60)
"""Fewest and most words of a sentence that is used."""


class Labelled(NamedTuple):
    """Sentences and whether each is positive."""

    texts: list[str]
    positive: list[bool]


class Corpus(NamedTuple):
    """The parts; no sentence is in two of them."""

    language_model: list[str]
    train_prompts: list[str]
    test_prompts: list[str]
    gold_train: Labelled
    gold_test: Labelled

    def sizes(self) -> dict[str, int]:
        """Sentences of each part."""
        parts = self._asdict()
        return {name: len(part.texts if isinstance(part, Labelled) else part) for name, part in parts.items()}


def load_corpus(folder: Path | None) -> Corpus:
    """Reads and splits both corpora.

    Args:
        folder: where NAME.zip or nltk_NAME.zip lie, for both names; None asks nltk, which downloads what it lacks.
    Raises: DatasetError, when one cannot be found or holds no sentences.
    """
    files = {name: _in_folder(folder, name) if folder is not None else _from_nltk(name) for name in NAMES}
    for file in files.values():
        if not zipfile.is_zipfile(file):
            raise DatasetError(
                f"{file} is no whole zip archive. Delete it, and let nltk download the corpus once more."
            )
    seen: set[str] = set()
    parts: dict[str, list[str]] = {"language_model": [], "train_prompts": [], "test_prompts": []}
    gold = {"gold_train": Labelled([], []), "gold_test": Labelled([], [])}
    for document, lines in _reviews(files["movie_reviews"]):
        part = _part(document, language_model=0.85, train_prompts=0.10, test_prompts=0.05)
        parts[part] += _new(lines, seen)
    for line, positive in _sentences(files["sentence_polarity"]):
        part = _part(line, gold_train=0.65, gold_test=0.10, language_model=0.25)
        for sentence in _new([line], seen):
            if part in gold:
                gold[part].texts.append(sentence)
                gold[part].positive.append(positive)
            else:
                parts[part].append(sentence)
    corpus = Corpus(**parts, **gold)
    for name, size in corpus.sizes().items():
        if not size:
            raise DatasetError(
                f"{files['movie_reviews'].parent}: no sentences for the part {name!r}. Are both complete?"
            )
    return corpus


def clean(line: str) -> str:
    """One sentence with single spaces; empty if it is too short, too long, or a line of signs."""
    words = line.split()
    letters = sum(character.isalpha() for character in line)
    if not _WORDS[0] <= len(words) <= _WORDS[1] or letters < len(line) / 2:
        return ""
    return re.sub(r"([!?.])(?: \1)+", r"\1", " ".join(words))  # "! ! !"


def _new(lines: Sequence[str], seen: set[str]) -> Iterator[str]:
    """Cleaned sentences that stand nowhere before."""
    for sentence in map(clean, lines):
        if sentence and sentence not in seen:
            seen.add(sentence)
            yield sentence


def _part(document: str, **shares: float) -> str:
    """The part a document belongs to; the shares add up to 1."""
    number = int.from_bytes(hashlib.sha256(document.encode()).digest()[:4], "big") / 2**32
    for name, share in shares.items():
        number -= share
        if number < 0:
            return name
    return name


def _reviews(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and lines of each review, by name."""
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                yield name, _text(archive, name).splitlines()


def _sentences(file: Path) -> Iterator[tuple[str, bool]]:
    """Each labelled sentence and whether it is positive."""
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith((".pos", ".neg")):
                for line in _text(archive, name).splitlines():
                    yield line, name.endswith(".pos")


def _text(archive: zipfile.ZipFile, name: str) -> str:
    content = archive.read(name)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _in_folder(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.zip", folder / f"nltk_{name}.zip"):
        if file.exists():
            return file
    raise DatasetError(
        f"{folder} has no {name}.zip. Leave --corpora out, and nltk downloads both corpora by itself; or run `python "
        f"-m nltk.downloader -d FOLDER {' '.join(NAMES)}` where there is a network, and pass --corpora FOLDER/corpora."
    )


def _from_nltk(name: str) -> Path:
    """The archive that nltk's downloader keeps, fetched if it is not there."""
    import nltk

    def kept() -> Path | None:
        folders = [Path(folder) / "corpora" for folder in nltk.data.path]
        return next((file for folder in folders if (file := folder / f"{name}.zip").exists()), None)

    found = kept()
    if found is None and nltk.download(name, quiet=True):
        found = kept()
    if found is None:
        raise DatasetError(
            f"nltk has no corpus {name!r} here and could not download it. Where there is a network, run "
            f"`python -m nltk.downloader {' '.join(NAMES)}`, and pass the folder with the two archives as --corpora."
        )
    return found
