"""Files of weights that are torn: an error that names the model instead of the library's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from preftune.errors import ModelError


@contextmanager
def whole_weights(name: str) -> Iterator[None]:
    """Inside, the weights of a model or an adapter are read. Raises: ModelError for a file that is damaged."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"The weights in {name} are damaged or were copied in part ({error}). Copy or download them again, or name "
            "another checkpoint."
        ) from error
