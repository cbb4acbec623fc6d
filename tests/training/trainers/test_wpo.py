"""WPO: the weights are those of the oracle, without gradient, whatever the engine, the batch and the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import preftune
from preftune.errors import ConfigError
from preftune.logps import make_engine, naive_logps, pack
from preftune.losses.pairwise import wpo_weights
from preftune.reference import inference
from tests.training.dpo_runs import logged, lora_model
from tests.training.dpo_runs import trainer as make
from tiny import rows, tiny_model


def weights_by_hand(model: Any, batch: Any) -> torch.Tensor:
    """(N,) of the probabilities of all tokens, one sequence at a time."""
    means = []
    for sequence in batch.sequences():
        ids, prompt = sequence.ids, sequence.prompt
        p = model(input_ids=ids, use_cache=False).logits[0].softmax(-1)[prompt - 1 : -1]
        own = p.gather(-1, ids[0, prompt:, None])[:, 0]
        means.append((own.log() - (p**2).sum(-1).log()).mean())
    mean_K = torch.stack(means)
    return (mean_K[batch.chosen_N] + mean_K[batch.rejected_N]).exp().clamp(max=1)


@pytest.mark.parametrize("name", ["packed", "separate", "naive"])
def test_every_engine_gives_the_oracle_s_weights(name, tmp_path):
    model = tiny_model(dtype=torch.float64)
    batch = pack(list(make(tiny_model(), tmp_path, data=rows(6)).train_dataset))
    with torch.no_grad():
        expected = weights_by_hand(model, batch)
        scored = make_engine(model, name)(model, batch, squares=True)
        plain = naive_logps(model, batch)
    found = wpo_weights(scored.confidence_K[batch.chosen_N], scored.confidence_K[batch.rejected_N])
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    torch.testing.assert_close(scored.token_logps_T, plain)
    assert 0 < min(found.tolist()) < 1


def test_the_loss_is_the_weight_times_dpo_s_without_gradient_through_it(tmp_path):
    weighed = make(lora_model(), tmp_path / "a", use_weighting=True, guard="off")
    plain = make(lora_model(), tmp_path / "b", guard="off")
    batch = pack(list(plain.train_dataset))
    with inference(plain.model):
        weight_N = weights_by_hand(plain.model, batch)
    for run in (weighed, plain):
        run.model.zero_grad()
        run.loss_N = run.score(run.model, batch)[0].loss_N
    torch.testing.assert_close(weighed.loss_N, weight_N * plain.loss_N)
    weighed.loss_N.sum().backward()
    (weight_N * plain.loss_N).sum().backward()
    for one, other in zip(weighed.model.parameters(), plain.model.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_the_likelihood_term_is_not_weighed(tmp_path):
    run = make(tiny_model(), tmp_path, use_weighting=True, loss_type=["sigmoid", "sft"], guard="off")
    plain = make(tiny_model(), tmp_path / "b", loss_type="sft", loss_weights=[1.0], guard="off")
    dpo = make(tiny_model(), tmp_path / "c", use_weighting=True, guard="off")
    total, likelihood, weighed = (one.evaluate(one.train_dataset)["eval_loss"] for one in (run, plain, dpo))
    assert total == pytest.approx(likelihood + weighed, rel=1e-6)


def test_the_update_depends_neither_on_batches_nor_on_the_budget(tmp_path):
    def losses(folder: str, **options: Any) -> list[float]:
        run = make(tiny_model(), tmp_path / folder, data=rows(12), use_weighting=True, learning_rate=1e-3, **options)
        run.train()
        return logged(run)

    expected = losses("a", per_device_train_batch_size=4)
    singly = losses("b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert singly == pytest.approx(expected, abs=2e-5)
    assert losses("c", per_device_train_batch_size=4, max_tokens_per_batch=60) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("loss", ["aot", "plackett_luce"])
def test_losses_that_are_not_of_each_pair_are_refused(loss, tmp_path):
    with pytest.raises(ConfigError, match="is not a loss of single pairs"):
        preftune.DPOConfig(output_dir=str(tmp_path), loss_type=loss, use_weighting=True)
