"""CISPO, SAPO, LUSPO and VESPO through the trainer: the update of a naive loop, however a step is cut."""

from __future__ import annotations

import pytest
import torch

from tests.training.online.test_group_trainer import K, advantages, oracle, same, stepped

OPTIONS = {
    "cispo": {"epsilon_high": 1.05},
    "sapo": {"sapo_temperature_neg": 3.0},
    "luspo": {"importance_sampling_level": "sequence"},
    "vespo": {"vespo_k_neg": 1.0},
}


def token_losses(loss_type: str, now: torch.Tensor, before: torch.Tensor, advantage: float) -> torch.Tensor:
    ratio, whole = (now - before).exp(), (now - before).sum().exp()
    if loss_type == "cispo":
        return -ratio.detach().clamp(max=1.05) * advantage * now
    if loss_type == "sapo":
        heat = 1.0 if advantage > 0 else 3.0
        return -torch.sigmoid(heat * (ratio - 1)) * 4 / heat * advantage
    if loss_type == "vespo":
        k, decay = (2.0, 3.0) if advantage >= 0 else (1.0, 2.0)
        return -(whole.detach() ** k * (decay - decay * whole.detach()).exp()) * advantage * now
    mean = (now - before).mean().exp()
    return -torch.minimum(mean * advantage, mean.clamp(0.8, 1.2) * advantage).expand(len(now))


@pytest.mark.parametrize("loss_type", OPTIONS)
@pytest.mark.parametrize("cut", [{}, {"per_device_train_batch_size": K, "gradient_accumulation_steps": 2}])
def test_the_update_is_the_oracle_s(loss_type, cut, tmp_path):
    trainer, start, sampler = stepped(
        tmp_path, loss_type=loss_type, num_iterations=2, beta=0.0, **OPTIONS[loss_type], **cut
    )

    def loss(logps, old, ref, answers):
        parts = [
            token_losses(loss_type, now, before, advantage)
            for now, before, advantage in zip(logps, old, advantages(answers), strict=True)
        ]
        if loss_type == "luspo":
            return sum(part.sum() for part in parts) / len(parts)
        if loss_type == "sapo":
            return sum(part.mean() for part in parts) / len(parts)
        return sum(part.sum() for part in parts) / sum(map(len, parts))

    same(trainer, oracle(start, [sampler.seen, sampler.seen], loss))
