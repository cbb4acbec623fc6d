"""Arrays that grow row by row: in memory as long as they are small, then in a file that is mapped into memory."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from preftune.errors import DatasetError
from preftune.storage.cache_folder import cache_folder, make_private

MOST_IN_MEMORY = 2**18
"""Size in bytes from which an array is in a file."""


class GrowingArray:
    """Numbers of one type, to which more are added. The file has no name, and is gone when nothing refers to it.

    Raises: DatasetError, of every method, if the file does not fit on the disk.
    """

    def __init__(self, code: str) -> None:
        """
        Args:
            code: the type, as `array.array` takes it.
        """
        self._dtype = np.dtype(code)
        self._recent = array(code)
        self._most = max(1, MOST_IN_MEMORY // self._recent.itemsize)
        self._file: IO[bytes] | None = None

    def append(self, value: Any) -> None:
        self._recent.append(value)
        if len(self._recent) > self._most:
            self._move()

    def extend(self, values: Iterable[Any]) -> None:
        self._recent.extend(values)
        if len(self._recent) > self._most:
            self._move()

    def extend_bytes(self, values: bytes) -> None:
        """Adds values as they are in memory."""
        self._recent.frombytes(values)
        if len(self._recent) > self._most:
            self._move()

    def done(self) -> NDArray[Any]:
        """All values; nothing can be added afterwards."""
        if self._file is None:
            return np.frombuffer(self._recent, self._dtype) if self._recent else np.zeros(0, self._dtype)
        self._move()
        with self._file as file:
            return np.asarray(np.memmap(file, self._dtype, mode="r"))

    def _move(self) -> None:
        try:
            if self._file is None:
                self._file = _nameless_file()
            self._recent.tofile(self._file)
            self._file.flush()
        except OSError as error:
            raise DatasetError(
                f"The token ids do not fit on the disk ({error.strerror or error}). Set PREFTUNE_CACHE to a folder "
                "with more room."
            ) from error
        del self._recent[:]


def _nameless_file() -> IO[bytes]:
    folder = cache_folder() / "tokens"
    try:
        make_private(folder)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:  # a cache that cannot be written
        return tempfile.TemporaryFile()


class Texts(Sequence[str]):
    """Texts as their bytes, end to end."""

    def __init__(self, offsets: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        """
        Args:
            offsets: where each text begins in `content`, and the end.
        """
        self.offsets, self.content = offsets, content

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        made = GrowingTexts()
        for text in texts:
            made.append(text)
        return made.done()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        begin, end = self.offsets[index], self.offsets[index + 1]
        return self.content[begin:end].tobytes().decode("utf-8", "surrogatepass")


class GrowingTexts:
    """Texts to which more are added."""

    def __init__(self) -> None:
        self._content, self._offsets, self._bytes = GrowingArray("B"), GrowingArray("q"), 0
        self._offsets.append(0)

    def append(self, text: str) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self._content.extend_bytes(encoded)
        self._bytes += len(encoded)
        self._offsets.append(self._bytes)

    def done(self) -> Texts:
        """All texts; nothing can be added afterwards."""
        return Texts(self._offsets.done(), self._content.done())
