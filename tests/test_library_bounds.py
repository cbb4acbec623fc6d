"""Libraries whose private methods are overridden have upper bounds, and these methods are what we take them for."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers import Trainer

ROOT = Path(__file__).parent.parent
BOUNDED = ("torch", "transformers", "accelerate", "datasets", "peft", "huggingface_hub")
TRAINERS = (
    "preftune.training.record.whole_checkpoint:CheckpointedTrainer",
    "preftune.training.trainers.resumable:ResumableTrainer",
    "preftune.training.trainers.evaluation:EvaluatedTrainer",
    "preftune.training.trainers.base:PackedTrainer",
    "preftune.training.trainers.reward:RewardTrainer",
    "preftune.training.trainers.sft:SFTTrainer",
    "preftune.training.trainers.dpo:DPOTrainer",
    "preftune.training.online.trainer:OnlineTrainer",
    "preftune.training.ppo.trainer:PPOTrainer",
)


def overrides() -> list[tuple[type, str]]:
    """Private methods of ours that transformers calls, or that go on to transformers' own."""
    found = []
    for place in TRAINERS:
        module, _, name = place.partition(":")
        owner = getattr(importlib.import_module(module), name)
        for method, function in vars(owner).items():
            if not method.startswith("_") or method.startswith("__") or not inspect.isfunction(function):
                continue
            if hasattr(Trainer, method) or f"super().{method}(" in inspect.getsource(function):
                found.append((owner, method))
    return found


def test_the_bounds_allow_what_is_installed_and_no_next_major() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    requirements = {Requirement(text).name: Requirement(text).specifier for text in wanted}
    for name in BOUNDED:
        version = metadata.version(name)
        assert requirements[name].contains(version, prereleases=True), f"{name} {version} was not tried"
        major = int(version.split(".")[0])
        assert not requirements[name].contains(f"{major + 1}.0"), f"{name} {major + 1} has not been tried"


def test_there_are_overrides_to_look_at() -> None:
    names = {method for _, method in overrides()}
    assert {"_save_checkpoint", "_maybe_log_save_evaluate", "_get_num_items_in_batch", "_get_grad_norm"} <= names


@pytest.mark.parametrize(("owner", "method"), overrides(), ids=lambda value: getattr(value, "__name__", value))
def test_an_overridden_method_of_transformers_is_there_and_takes_what_ours_takes(owner: type, method: str) -> None:
    theirs = next(vars(base)[method] for base in Trainer.__mro__ if method in vars(base))
    ours = inspect.signature(getattr(owner, method)).parameters
    if any(p.kind is p.VAR_POSITIONAL for p in ours.values()):
        return
    expected = [p for p in inspect.signature(theirs).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for mine, other in zip(list(ours.values())[: len(expected)], expected, strict=True):
        assert mine.name == other.name or other.default is other.empty, f"{method}: {mine.name} is {other.name} there"


def test_the_newest_versions_have_a_target() -> None:
    assert re.search(r"^test-latest:$", (ROOT / "Makefile").read_text(), re.MULTILINE)
