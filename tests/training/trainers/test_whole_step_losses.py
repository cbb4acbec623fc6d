"""AOT sorts, BCO averages, beta-DPO and alpha-DPO measure over the whole optimiser step and all earlier ones, however
it is cut up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import preftune
from preftune.errors import ConfigError
from preftune.training.online import OnlineDPOConfig
from tiny import chat_rows, tiny_model, tiny_tokenizer


def made(folder: Path, loss: str, **options: Any) -> Any:
    beta = 2.0 if loss == "alpha_dpo" else 0.1
    config = preftune.DPOConfig(
        output_dir=str(folder), loss_type=loss, beta=beta, learning_rate=1e-3, max_steps=6, logging_steps=1, bf16=False,
        use_cpu=True, report_to="none", disable_tqdm=True, seed=3, train_sampling_strategy="sequential",
        **{"save_strategy": "no", "per_device_train_batch_size": 4, **options},
    )  # fmt: skip
    return preftune.DPOTrainer(
        tiny_model(), args=config, train_dataset=chat_rows(24), processing_class=tiny_tokenizer()
    )


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.sample(2)
@pytest.mark.parametrize("loss", ["aot", "aot_unpaired", "bco_pair", "beta_dpo", "alpha_dpo"])
def test_the_update_does_not_depend_on_micro_batches(loss, tmp_path):
    expected = losses(made(tmp_path / "a", loss))
    singly = made(tmp_path / "b", loss, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    close: Any = {"abs": 2e-5, "rel": 5e-4 if loss == "alpha_dpo" else 1e-6}  # standardising magnifies what is rounded
    assert losses(singly) == pytest.approx(expected, **close)
    assert losses(made(tmp_path / "c", loss, max_tokens_per_batch=100)) == pytest.approx(expected, **close)
    other = {"bco_pair": "apo_zero", "alpha_dpo": "simpo"}.get(loss, "sigmoid")
    assert losses(made(tmp_path / "d", other)) != pytest.approx(expected, abs=1e-4)


def test_the_running_mean_is_of_the_rewards_so_far(tmp_path):
    trainer = made(tmp_path, "bco_pair")
    with_mean = losses(trainer)
    count, total = trainer._rewards
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert count == 6 * 4 * 2
    assert total / count == pytest.approx(sum(e["rewards/chosen"] + e["rewards/rejected"] for e in log) / 12, abs=1e-6)
    without = losses(made(tmp_path / "zero", "bco_pair", bco_running_mean=False))
    assert without[:2] == pytest.approx(with_mean[:2], abs=1e-6)  # after the first step the mean is still 0
    assert without[-1] != pytest.approx(with_mean[-1], abs=1e-6)


@pytest.mark.parametrize("loss", ["bco_pair", "beta_dpo", "alpha_dpo"])
def test_a_resumed_run_is_the_same_to_the_bit(loss, tmp_path):
    whole = made(tmp_path, loss, save_strategy="steps", save_steps=3)
    whole.train()
    part = made(tmp_path, loss, save_strategy="steps", save_steps=3)
    part.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert (part._rewards, part.moments) == (whole._rewards, whole.moments)
    for one, other in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_beta_follows_the_gaps_and_outlying_pairs_have_no_weight(tmp_path, monkeypatch):
    """By the numbers of the step before it: the loss is that of the pairs that are kept, under the step's beta."""
    seen = []
    trainer = made(tmp_path, "beta_dpo", beta_dpo_filter=0.25, beta_dpo_alpha=2.0, guard="off")
    prepare = trainer.prepare_step

    def watched(model: Any, batches: Any) -> Any:
        found = prepare(model, batches)
        with torch.no_grad():
            sides = trainer.engine(model, found[0]).sides(found[0])
            known = trainer.reference(model, found[0]).sides(found[0])
        gap_N = (sides.chosen_N - known.chosen_N) - (sides.rejected_N - known.rejected_N)
        seen.append((gap_N, found[0].weight_N, trainer._of_beta_dpo["beta_dpo/beta"], trainer.moments.mean))
        return found

    monkeypatch.setattr(trainer, "prepare_step", watched)
    found = losses(trainer)
    for (gap_N, weight_N, beta, mean), loss in zip(seen, found, strict=True):
        kept = weight_N > 0
        assert weight_N[kept].tolist() == pytest.approx([4 / 3] * 3)
        assert beta == pytest.approx(max(1e-3, 0.1 * (1 + 2 * (float(gap_N[kept].mean()) - mean))), rel=1e-4)
        assert loss == pytest.approx(float(torch.nn.functional.softplus(-beta * gap_N[kept]).mean()), abs=1e-5)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["beta_dpo/beta"] for entry in logged] == [beta for _, _, beta, _ in seen]
    assert {entry["beta_dpo/left_out"] for entry in logged} == {0.25}
    assert len({round(beta, 6) for _, _, beta, _ in seen}) > 3
    assert len({tuple(weight_N.tolist()) for _, weight_N, _, _ in seen}) > 1


def test_they_are_refused_on_fresh_answers(tmp_path):
    for loss in ("aot", "aot_unpaired", "bco_pair", "beta_dpo", "alpha_dpo"):
        with pytest.raises(ConfigError, match="not honoured where answers are sampled"):
            OnlineDPOConfig(output_dir=str(tmp_path), loss_type=loss, judge="shorter")
