"""Keeps other libraries' progress bars and reports out of preftune's own output."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """While a model is loaded or saved: hides the progress bar for weights, and the table of missing weights.

    The loading code itself checks for missing weights. Downloads keep their bars.
    """
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    # `disable_progress_bar` would switch off the bars of downloads too
    transformers_logging._tqdm_active = False
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging._tqdm_active = bars


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides a warning that only concerns PEFT: peft 0.21 uses a property that transformers 5.23 renamed.

    This is unnecessary once PEFT uses `is_activation_checkpointing`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
