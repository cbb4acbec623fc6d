"""Reference model mismatch."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model

from preftune import DPOTrainer, load_model
from preftune.errors import ConfigError, ReferenceMismatchError
from preftune.logps import naive_logps, pack
from preftune.training.step.collate import probes
from tiny import save_tiny, tiny_model

from .common_runs import LN2, first_loss, lora, make, nudge, sft_adapter


def mismatch(trainer: DPOTrainer) -> str:
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(ReferenceMismatchError) as caught:
        trainer.train()
    assert all(torch.equal(p, old) for p, old in zip(trainer.model.parameters(), before, strict=True))
    return str(caught.value)


STRANGERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a model that was trained differently": (tiny_model, lambda: nudge(tiny_model())),
    "a policy that was trained, beside its base": (lambda: nudge(tiny_model()), tiny_model),
    "an SFT adapter, beside its base": (sft_adapter, tiny_model),
    "a base, beside its SFT adapter": (lambda: get_peft_model(tiny_model(), lora()), sft_adapter),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_is_refused_with_its_distance_and_the_way_out(stranger, tmp_path):
    policy, reference = STRANGERS[stranger]
    message = mismatch(make(policy(), tmp_path, ref_model=reference()))
    per_token, whole = re.search(r"by ([\d.e+]+) nat per token on average, ([\d.e+]+) nat on a whole", message).groups()
    assert 0 < float(per_token) < float(whole)
    assert "Leave ref_model out" in message
    option = re.search(r"set (\w+)=True if this is intended", message)[1]

    assert first_loss(make(policy(), tmp_path)) == pytest.approx(LN2, abs=1e-5)  # left out
    meant = first_loss(make(policy(), tmp_path, ref_model=reference(), **{option: True}))
    assert meant != pytest.approx(LN2, abs=1e-3)  # the loss that makes no sense, on request


def test_the_distance_is_what_a_user_would_measure(tmp_path):
    policy, reference = tiny_model(), nudge(tiny_model())
    trainer = make(policy, tmp_path, ref_model=reference)
    batch = pack([trainer.train_dataset[row] for row in probes(trainer.train_dataset.lengths)])
    with torch.no_grad():
        ours, theirs = (naive_logps(model, batch) for model in (policy, reference))
    assert f"by {float((ours - theirs).abs().mean()):.3g} nat per token" in mismatch(trainer)


def test_a_reference_that_is_the_model_as_received_is_welcome(tmp_path):
    folder = save_tiny(tmp_path / "model")
    for reference in (tiny_model(), folder, load_model(folder)):
        trainer = make(tiny_model(), tmp_path / "run", ref_model=reference)
        assert first_loss(trainer) == pytest.approx(LN2, abs=1e-5)


def test_one_object_for_both_is_refused(tmp_path):
    model = tiny_model()
    with pytest.raises(ConfigError, match="Leave ref_model out"):
        make(model, tmp_path, ref_model=model)


def check_reference(trainer: DPOTrainer, expected: Any) -> None:
    """After training, the reference still says what the model as received said."""
    first = first_loss(trainer)
    batch = pack([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        scores = naive_logps(expected, batch)
        policy = naive_logps(trainer.model.eval(), batch)
    torch.testing.assert_close(trainer.reference(trainer.model, batch).token_logps_T, scores, rtol=0, atol=1e-4)
    assert (policy - scores).abs().max() > 1e-2
    assert first == pytest.approx(LN2, abs=1e-5)


def test_the_reference_of_an_sft_adapter_is_the_sft_model_and_not_its_base(tmp_path):
    check_reference(make(sft_adapter(), tmp_path), sft_adapter())


def test_the_reference_of_an_sft_adapter_on_disk(tmp_path):
    sft_adapter(load_model(save_tiny(tmp_path / "model"))).save_pretrained(tmp_path / "sft")
    received = load_model(tmp_path / "sft")
    check_reference(make(load_model(tmp_path / "sft", is_trainable=True), tmp_path / "run"), received)


def test_the_reference_of_a_merged_model_is_not_what_its_name_says(tmp_path):
    folder = save_tiny(tmp_path / "model")
    merged = sft_adapter(load_model(folder)).merge_and_unload()
    assert merged.config._name_or_path == folder  # where other libraries would load the reference from
    expected = copy.deepcopy(merged)
    check_reference(make(merged.requires_grad_(True), tmp_path / "run"), expected)
