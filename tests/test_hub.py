"""Offline mode is named with the variable that sets it; other errors of the hub's client are not cut within a word."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from preftune.data.reading.load import load_rows
from preftune.errors import DatasetError
from preftune.hub import unreachable

OFFLINE = OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled. Please unset it.")


def test_offline_mode_of_a_dataset_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of the hub's client was cut in the middle of the variable's name."""

    def offline(*args: object, **kwargs: object) -> None:
        raise OFFLINE

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    said = r"cannot be asked for it \(HF_HUB_OFFLINE is set\)\. Check the path\. Unset HF_HUB_OFFLINE, or give the file"
    with pytest.raises(DatasetError, match=said):
        load_rows("owner/pairs")


def test_the_variable_that_is_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert unreachable(OFFLINE) == ("TRANSFORMERS_OFFLINE is set", "Unset TRANSFORMERS_OFFLINE")


def test_long_messages_end_with_a_whole_word() -> None:
    why, fix = unreachable(OSError("word " * 40))
    assert why.endswith("word ...")
    assert fix == "Connect to the internet"
    assert unreachable(OSError()).why == "OSError"
