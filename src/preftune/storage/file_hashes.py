"""Sizes and hashes of files, by which a copy in part, a flipped bit or a replaced file is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import xxhash

_PIECE = 1 << 22
"""Bytes hashed at a time."""


class DamagedError(Exception):
    """Files are not what was written. The message gives the reason, without the folder."""


def check_files(folder: Path, files: Mapping[str, tuple[int, str]]) -> None:
    """Compare files with their sizes and hashes: all sizes first, then contents. A file outside the folder is not read.

    Args:
        files: path inside the folder -> bytes and hash (xxh3, 128 bits).
    Raises:
        DamagedError: a file differs, is missing or is outside the folder; the message names the first.
    """
    for name, (size, _) in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedError(f"its list of files names {name!r}, which is outside the folder")
        try:
            found = (folder / name).stat().st_size
        except (OSError, ValueError):  # a name with a NUL
            raise DamagedError(f"{name} is missing") from None
        if found != size:
            raise DamagedError(f"{name} has a size of {found:,} bytes instead of {size:,}")
    for name, (_, digest) in files.items():
        try:
            same = size_and_hash(folder / name)[1] == digest
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror or error})") from error
        if not same:
            raise DamagedError(f"the content of {name} is not what was written")


def size_and_hash(path: Path) -> tuple[int, str]:
    """Bytes and hash (xxh3, 128 bits) of a file."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()
