"""The prompts that a model was trained on, as sorted 64-bit hashes next to its weights: eight bytes each, no text.

The data may no longer exist when a model is evaluated (a pipe, a moved file), and a merged model has no run; this file
is copied instead."""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from preftune.storage.atomic import write_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "trained_prompts.npy"


def read_trained_prompts(model: str | os.PathLike[str]) -> NDArray[np.uint64] | None:
    """The hashes, sorted; None if they are unknown. A checkpoint uses those of its run."""
    import numpy as np

    file = _file_of(model)
    if file is None:
        return None
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.uint64 and found.ndim == 1 else None


def write_trained_prompts(folder: Path, keys: Iterable[int], *, earlier: Iterable[str | os.PathLike[str]]) -> None:
    """Writes the file.

    Args:
        keys: hashes of the prompts of this training.
        earlier: models from which this one was trained further; their known prompts are added.
    """
    import numpy as np

    known = [one for one in map(read_trained_prompts, earlier) if one is not None]
    own = np.fromiter(keys, np.uint64)
    buffer = BytesIO()
    np.save(buffer, np.unique(np.concatenate([own, *known])))
    write_whole(folder / FILE, buffer.getvalue())


def carry_trained_prompts(model: str | os.PathLike[str], folder: Path) -> None:
    """Copies the hashes of a model to the folder of another model made from its weights."""
    file = _file_of(model)
    if file is not None and file.parent.resolve() != folder.resolve() and read_trained_prompts(model) is not None:
        write_trained_prompts(folder, (), earlier=[model])  # as numbers: the file may be a link to another one


def _file_of(model: str | os.PathLike[str]) -> Path | None:
    folder = Path(model).expanduser()
    places = [folder, *([folder.parent] if folder.name.startswith("checkpoint-") else [])]
    return next((place / FILE for place in places if (place / FILE).is_file()), None)
