"""CISPO, SAPO, LUSPO and VESPO through the trainer: the update of a naive loop, however a step is cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl

from preftune import GRPOTrainer
from preftune.errors import ConfigError
from preftune.logps import choose_engine, pack
from preftune.losses.group_relative import most_uncertain
from preftune.types import TokenizedGroup
from tests.training.online.test_group_trainer import K, advantages, oracle, same, stepped
from tiny import tiny_model

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


@pytest.mark.sample(4)
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


def entropies(model, one) -> torch.Tensor:
    ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
    logps = model(ids).logits[0].log_softmax(-1)[len(one.prompt_ids) - 1 : -1]
    return -(logps.exp() * logps).sum(-1).detach()


@pytest.mark.parametrize("cut", [{}, {"per_device_train_batch_size": K, "gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("truncated", [False, True])
def test_the_tokens_of_the_highest_entropy_train(cut, truncated, tmp_path):
    trainer, start, sampler = stepped(
        tmp_path, loss_type="dapo", num_iterations=2, beta=0.02, top_entropy_quantile=0.3,
        mask_truncated_completions=truncated, **cut,
    )  # fmt: skip
    parts = [entropies(start, one) for one in sampler.seen]
    trains = [one.finished or not truncated for one in sampler.seen]
    known = torch.cat([part for part, one in zip(parts, trains, strict=True) if one])
    kept = [part >= torch.quantile(known, 0.7) for part in parts]
    assert 0 < sum(int(part.sum()) for part in kept) < 0.4 * sum(map(len, parts))

    def loss(logps, old, ref, answers):
        total = 0.0
        for now, before, other, advantage, chosen, one in zip(
            logps, old, ref, advantages(answers), kept, trains, strict=True
        ):
            ratio, kl = (now - before).exp(), (other - now).exp() - (other - now) - 1
            token = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * chosen + 0.02 * kl * ratio
            total = total + one * token.sum()
        return total / sum(len(now) for now, one in zip(logps, trains, strict=True) if one)

    same(trainer, oracle(start, [sampler.seen, sampler.seen], loss))
    logged = [line["entropy"] for line in trainer.state.log_history if "entropy" in line]
    assert logged[0] == pytest.approx(float(known.mean()), rel=1e-5)


def test_entropy_and_log_probabilities_are_measured_in_one_pass(tmp_path, monkeypatch):
    passes = []
    whole = GRPOTrainer.in_parts

    def counted(self, groups, measure, **options):
        passes.append(len(groups))
        return whole(self, groups, measure, **options)

    monkeypatch.setattr(GRPOTrainer, "in_parts", counted)
    trainer, *_ = stepped(tmp_path, num_iterations=2, beta=0.0, top_entropy_quantile=0.3)
    rounds, rest = divmod(trainer.state.global_step, 2)
    assert (rounds > 0, rest) == (True, 0)
    assert len(passes) == rounds


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_they_are_trls(share):
    found = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) < torch.tensor([[6], [2], [1], [4]])
    stub = SimpleNamespace(accelerator=SimpleNamespace(pad_across_processes=lambda x, **_: x, gather=lambda x: x))
    theirs: Any = trl.GRPOTrainer.get_high_entropy_mask
    assert torch.equal(theirs(stub, found, mask.float(), 1 - share)[mask], most_uncertain(found[mask], share))


@pytest.mark.parametrize("engine", ["packed", "separate"])
def test_every_engine_has_the_entropy_of_the_naive_one(engine):
    groups = [TokenizedGroup((1, 5, 6), ((7, 8, 9), (7, 3)), ()), TokenizedGroup((1, 9), ((4, 4, 4, 2),), ())]
    model, batch = tiny_model(dtype=torch.float64), pack(groups)
    expected = choose_engine(model, "naive")[0](model, batch, entropy=True).entropies
    scorer = choose_engine(model, engine)[0]
    assert scorer.name == engine
    torch.testing.assert_close(scorer(model, batch, entropy=True).entropies, expected, rtol=1e-4, atol=1e-5)


def test_a_share_outside_of_0_to_1_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"top_entropy_quantile=1.5 must be between 0 and 1"):
        stepped(tmp_path, top_entropy_quantile=1.5)
    with pytest.raises(ConfigError, match=r"top_entropy_quantile=0.5 is not honoured"):
        stepped(tmp_path, "RLOO", top_entropy_quantile=0.5)
