"""Three trainings killed at random moments (`make torture` kills twenty): the same bits as an undisturbed run."""

from __future__ import annotations

import random

import pytest
import torture


@pytest.mark.sample(0)
def test_killed_trainings_end_with_the_weights_of_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    names = ("dpo", "dpo, sharded", "sft")
    settings = tuple(setting for setting in torture.SETTINGS if setting.name in names)
    results = torture.torture(tmp_path, kills=3, seed=random.randrange(10**6), settings=settings)
    assert [result["setting"] for result in results] == ["dpo", "dpo, sharded", "sft"]
    assert all(result["same"] for result in results), results


def test_other_weights_are_noticed(tmp_path):
    for name, content in (("one", b"a"), ("same", b"a"), ("other", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    (tmp_path / "none").mkdir()
    assert torture.same_weights(tmp_path / "one", tmp_path / "same")
    assert not torture.same_weights(tmp_path / "one", tmp_path / "other")
    assert not torture.same_weights(tmp_path / "one", tmp_path / "none")
