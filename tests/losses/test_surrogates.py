"""CISPO, SAPO, LUSPO and VESPO: a naive loop in float64, gradients, and TRL's own function on the same numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl

from preftune import GRPOConfig, GRPOTrainer
from preftune.errors import ConfigError
from preftune.losses.group_relative import group_loss

LENGTHS = (3, 1, 4, 2)
ADVANTAGES = (1.3, -0.7, 0.0, -2.0)
OWNER = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
CASES: list[dict[str, Any]] = [
    {"loss_type": "dapo"},
    {"loss_type": "bnpo", "delta": 1.6},
    {"loss_type": "grpo", "beta": 0.2},
    {"loss_type": "dr_grpo", "epsilon_high": 0.3},
    {"loss_type": "cispo", "epsilon_high": 1.2},
    {"loss_type": "cispo", "epsilon_high": 1.05, "importance_sampling_level": "sequence", "beta": 0.1},
    {"loss_type": "sapo"},
    {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 5.0, "beta": 0.3},
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.1},
    {"loss_type": "vespo"},
    {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 0.5, "beta": 0.1},
]


def numbers(scale: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of the policy, of the one that sampled, and of the reference."""
    draw = torch.Generator().manual_seed(3)
    logps = -torch.rand(sum(LENGTHS), generator=draw, dtype=torch.float64) * 3
    near = [logps + scale * torch.randn(len(logps), generator=draw, dtype=torch.float64) for _ in range(2)]
    return logps, near[0], near[1]


def config(tmp_path, **options: Any) -> GRPOConfig:
    return GRPOConfig(output_dir=str(tmp_path), use_cpu=True, max_new_tokens=6, **options)


def ours(args: GRPOConfig, logps, old, reference) -> torch.Tensor:
    advantage = torch.tensor(ADVANTAGES, dtype=torch.float64)[OWNER]
    found = group_loss(
        logps, old, advantage, OWNER, reference_T=reference if args.beta else None, beta=args.beta,
        surrogate=args.surrogate, level=args.importance_sampling_level, corrected_kl=args.use_bias_correction_kl,
    )  # fmt: skip
    weigh: Any = GRPOTrainer.token_weight
    weight = weigh(SimpleNamespace(args=args), torch.tensor(LENGTHS), answers=4, tokens=sum(LENGTHS))
    return (weight.double()[OWNER] * found.loss_T).sum()


def trls(args: GRPOConfig, logps, old, reference) -> torch.Tensor:
    """TRL's `_compute_loss` on the same numbers, padded."""

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(values.split(LENGTHS)), batch_first=True)

    mask = padded(torch.ones(len(logps), dtype=torch.float64))
    theirs: Any = trl.GRPOTrainer
    stub = SimpleNamespace(
        loss_type=args.loss_type, beta=args.beta, epsilon_low=args.epsilon, epsilon_high=args.epsilons[1],
        importance_sampling_level=args.importance_sampling_level, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, use_vllm=False, vllm_importance_sampling_correction=False,
        aux_loss_enabled=False, use_adaptive_entropy=False, _entropy_bonus_enabled=False, entropy_coef=0.0,
        current_gradient_accumulation_steps=1, max_completion_length=args.max_new_tokens,
        model=SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(**{**vars(args), "steps_per_generation": 1}),
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, gather_for_metrics=lambda x: x,
            reduce=lambda x, reduction: x,
        ),
        get_gamma_weights=theirs.get_gamma_weights,
        _get_per_token_logps_and_entropies=lambda *_, **__: (padded(logps), padded(-logps.detach()), None),
    )  # fmt: skip
    tokens = torch.ones(mask.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": tokens[:, :1], "prompt_mask": tokens[:, :1], "completion_ids": tokens, "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64), "old_per_token_logps": padded(old),
        "ref_per_token_logps": padded(reference), "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    loss: torch.Tensor = theirs._compute_loss(stub, stub.model, inputs)
    return loss


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("scale", [0.0, 0.4, 3.0])
def test_it_is_trls_loss_and_gradient(options, scale, tmp_path):
    args = config(tmp_path, **options)
    found = []
    for loss_of in (ours, trls):
        logps, old, reference = numbers(scale)
        logps.requires_grad_(True)
        loss = loss_of(args, logps, old, reference)
        (gradient,) = torch.autograd.grad(loss, logps)
        found.append((float(loss.detach()), gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)  # the weights of tokens are float32
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-6, atol=1e-9)


def naive(args: GRPOConfig, logps: list[float], old: list[float]) -> float:
    """The loss without a reference, in plain loops."""
    place, answers = 0, []
    for length, advantage in zip(LENGTHS, ADVANTAGES, strict=True):
        now, then = logps[place : place + length], old[place : place + length]
        ratios = [math.exp(a - b) for a, b in zip(now, then, strict=True)]
        whole = math.exp(sum(now) - sum(then))
        losses = []
        for ratio, logp in zip(ratios, now, strict=True):
            if args.loss_type == "cispo":
                losses.append(-min(ratio, args.epsilon_high or 5.0) * advantage * logp)
            elif args.loss_type == "sapo":
                heat = args.sapo_temperature_pos if advantage > 0 else args.sapo_temperature_neg
                losses.append(-4 / heat / (1 + math.exp(-heat * (ratio - 1))) * advantage)
            elif args.loss_type == "vespo":
                k, decay = (2.0, 3.0) if advantage >= 0 else (3.0, 2.0)
                losses.append(-math.exp(decay) * whole**k * math.exp(-decay * whole) * advantage * logp)
            else:
                mean = whole ** (1 / length)
                losses.append(-min(mean * advantage, min(max(mean, 0.8), 1.2) * advantage))
        answers.append(losses)
        place += length
    if args.loss_type == "luspo":
        return sum(map(sum, answers)) / len(answers)
    if args.loss_type == "sapo":
        return sum(sum(losses) / len(losses) for losses in answers) / len(answers)
    return sum(map(sum, answers)) / sum(LENGTHS)


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "luspo", "vespo"])
def test_it_is_the_naive_loop(loss_type, tmp_path):
    level = "sequence" if loss_type == "luspo" else "token"
    args = config(tmp_path, loss_type=loss_type, importance_sampling_level=level)
    logps, old, reference = numbers()
    assert float(ours(args, logps, old, reference)) == pytest.approx(
        naive(args, logps.tolist(), old.tolist()), rel=1e-6
    )


def test_what_the_gradients_are(tmp_path):
    """On the sampling policy every loss has the plain policy gradient; far from it CISPO keeps what clipping drops."""
    for loss_type in ("dapo", "cispo", "vespo"):
        logps, _, reference = numbers()
        old = logps.clone()
        logps.requires_grad_(True)
        (found,) = torch.autograd.grad(ours(config(tmp_path, loss_type=loss_type), logps, old, reference), logps)
        assert torch.allclose(found, -torch.tensor(ADVANTAGES, dtype=torch.float64)[OWNER] / sum(LENGTHS), rtol=1e-6)
    logps, old, reference = numbers(3.0)
    logps.requires_grad_(True)
    kept = torch.autograd.grad(ours(config(tmp_path, loss_type="cispo"), logps, old, reference), logps)[0]
    clipped = torch.autograd.grad(ours(config(tmp_path), logps, old, reference), logps)[0]
    teaches = torch.tensor(ADVANTAGES)[OWNER] != 0
    assert bool((kept[teaches] != 0).all())
    assert bool((clipped[teaches] == 0).any())


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "luspo", "vespo"])
def test_extreme_ratios_are_finite(loss_type, tmp_path):
    level = "sequence" if loss_type == "luspo" else "token"
    args = config(tmp_path, loss_type=loss_type, importance_sampling_level=level)
    logps = torch.linspace(-60, 0, sum(LENGTHS), dtype=torch.float64, requires_grad=True)
    loss = ours(args, logps, logps.detach().flip(0), logps.detach())
    (gradient,) = torch.autograd.grad(loss, logps)
    assert math.isfinite(float(loss.detach()))
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "upper limit of the ratio itself .*Give 5"),
        ({"loss_type": "cispo", "delta": 3.0}, "delta has no effect with loss_type='cispo': remove it"),
        ({"loss_type": "sapo", "delta": 1.1}, "delta has no effect with loss_type='sapo'"),
        ({"loss_type": "cispo", "epsilon": 0.1}, "epsilon has no effect with loss_type='cispo'"),
        ({"loss_type": "sapo", "epsilon": 0.1}, "epsilon has no effect with loss_type='sapo'"),
        ({"loss_type": "sapo", "epsilon_high": 0.28}, "epsilon_high has no effect with loss_type='sapo'"),
        ({"loss_type": "vespo", "epsilon_high": 0.28}, "epsilon_high has no effect with loss_type='vespo'"),
        ({"sapo_temperature_pos": 2.0}, "sapo_temperature_pos has no effect with loss_type='dapo'"),
        ({"loss_type": "sapo", "vespo_k_pos": 1.0}, "vespo_k_pos has no effect with loss_type='sapo'"),
        ({"loss_type": "vespo", "vespo_k_neg": -1.0}, r"vespo_k_neg=-1.0 must be a finite number, 0 or above"),
        ({"loss_type": "vespo", "vespo_lambda_pos": math.inf}, "vespo_lambda_pos=inf must be a finite number above 0"),
        ({"loss_type": "luspo"}, "Set importance_sampling_level='sequence'"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "Leave importance_sampling_level at 'token'"),
        ({"loss_type": "sapo", "sapo_temperature_neg": 0.0}, r"sapo_temperature_neg=0.0 must be a finite"),
        ({"loss_type": "cipso"}, "Did you mean 'cispo'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        config(tmp_path, **options)


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "sapo", "vespo"])
def test_trls_defaults_are_accepted(loss_type, tmp_path):
    """A program that passes every option of the losses, at TRL's defaults."""
    named = {name: field.default for name, field in trl.GRPOConfig.__dataclass_fields__.items()
             if name in ("epsilon", "epsilon_high", "delta") or name.startswith(("sapo_", "vespo_"))}  # fmt: skip
    assert len(named) == 9
    config(tmp_path, loss_type=loss_type, **named)
