"""`sync_ref_model` in whole runs: the losses of a naive loop, resumed to the bit, in every trainer with a reference."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch.nn.functional import logsigmoid

from preftune import GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer
from preftune.errors import ConfigError, ReferenceMismatchError
from preftune.logps import naive_logps, pack
from preftune.reference.fingerprint import fingerprint
from tests.training.dpo_runs import LN2, logged, lora_model, nudge, trainer
from tiny import rows, tiny_model, tiny_tokenizer

MODELS = {"full": tiny_model, "lora": lora_model}
MOVES = {"sync_ref_model": True, "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 2}


def naive(made, steps: int, alpha: float, every: int) -> list[float]:
    """Losses of DPO with a moving reference, by hand: SGD over the rows in their order."""
    policy, groups = copy.deepcopy(made.model), list(made.train_dataset)
    weights = [p for p in policy.parameters() if p.requires_grad]
    reference = [p.detach().clone() for p in weights]
    losses = []
    for step in range(steps):
        batch = pack([groups[(2 * step + n) % len(groups)] for n in range(2)])
        owner, count = batch.owner_T, batch.completions

        def sums(grad: bool, batch=batch, owner=owner, count=count):
            with torch.set_grad_enabled(grad):
                return torch.zeros(count, dtype=torch.float64).index_add(0, owner, naive_logps(policy, batch).double())

        now = [p.detach().clone() for p in weights]
        for weight, old in zip(weights, reference, strict=True):
            weight.data.copy_(old)
        before = sums(False)
        for weight, old in zip(weights, now, strict=True):
            weight.data.copy_(old)
        ratio = sums(True) - before
        loss = -logsigmoid(0.1 * (ratio[0::2] - ratio[1::2])).mean()
        losses.append(float(loss.detach()))
        for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= 0.05 * grad
        if (step + 1) % every == 0:
            for old, weight in zip(reference, weights, strict=True):
                old.copy_(alpha * weight.detach() + (1 - alpha) * old)
    return losses


@pytest.mark.sample(2)
@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("model", MODELS)
def test_the_losses_are_those_of_the_naive_loop(model, alpha, tmp_path):
    options = {**MOVES, "ref_model_mixup_alpha": alpha, "max_steps": 6, "optim": "sgd", "learning_rate": 0.05}
    made = trainer(MODELS[model](), tmp_path, max_grad_norm=0.0, weight_decay=0.0, **options)
    expected = naive(made, 6, alpha, 2)
    made.train()
    assert logged(made) == pytest.approx(expected, abs=2e-6)
    assert expected[0] == pytest.approx(LN2)
    if alpha == 1:  # where the reference has just become the policy, a loss is ln 2 again
        assert [logged(made)[at] for at in (2, 4)] == pytest.approx([LN2] * 2, abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_has_the_reference_that_it_had(model, tmp_path):
    options = {**MOVES, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(MODELS[model](), tmp_path, **options)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = trainer(MODELS[model](), tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed) == logged(whole)
    for name, weight in whole.reference.source._received.items():
        assert torch.equal(resumed.reference.source._received[name], weight)


def test_an_explicit_reference_stays_when_the_policy_is_changed_before_training(tmp_path):
    reference, policy = tiny_model(seed=1), tiny_model()
    before = {name: weight.detach().clone() for name, weight in reference.named_parameters()}
    made = trainer(policy, tmp_path, ref_model=reference, allow_reference_mismatch=True, **MOVES, max_steps=1)
    nudge(policy, 0.01)
    made.train()
    for name, weight in made.reference.source._received.items():
        assert torch.equal(weight, before[name])


def test_weights_that_do_not_move_must_be_those_of_an_explicit_reference(tmp_path):
    other = lora_model(tiny_model(seed=1))
    with pytest.raises(ConfigError, match="on the same base"):
        trainer(lora_model(), tmp_path, ref_model=other, allow_reference_mismatch=True, **MOVES)
    reference = lora_model(trained=True)
    made = trainer(lora_model(), tmp_path, ref_model=reference, allow_reference_mismatch=True, **MOVES)
    made.model.base_model.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="would not move them"):
        made.train()


@pytest.mark.parametrize(("every", "steps"), [(2, 3), (8, 3)])
def test_a_finished_run_without_checkpoints_has_lost_a_reference_that_moved(every, steps, tmp_path):
    options = {**MOVES, "ref_model_sync_steps": every, "max_steps": steps, "save_strategy": "no"}
    whole = trainer(lora_model(), tmp_path, **options, eval_dataset=rows(4))
    whole.train()
    whole.save_model()
    before = whole.evaluate()["eval_loss"]
    again = trainer(lora_model(), tmp_path, **options, eval_dataset=rows(4))
    again.train(resume_from_checkpoint="auto")
    assert again.nothing_to_do
    if every <= steps:
        with pytest.raises(ReferenceMismatchError, match=r"no checkpoint of its last step holds it.*save_strategy"):
            again.evaluate()
    else:
        assert again.evaluate()["eval_loss"] == before


def test_an_explicit_start_has_its_own_fingerprint(tmp_path):
    received = trainer(tiny_model(), tmp_path / "none", **MOVES, max_steps=1)
    found = []
    for seed in (1, 2):
        start = tiny_model(seed=seed)
        made = trainer(tiny_model(), tmp_path / str(seed), ref_model=start, allow_reference_mismatch=True, **MOVES)
        assert made.reference.source.fingerprint == fingerprint(start, adapters=True)
        assert "ref_model's weights" in made.reference.source.description
        found.append(made.reference.source.fingerprint)
    assert len({*found, received.reference.source.fingerprint}) == 3


def test_its_scores_are_kept_nowhere(tmp_path):
    made = trainer(tiny_model(), tmp_path, **MOVES, max_steps=4)
    made.train()
    assert made.reference.store is None
    assert not made.reference.memory
    assert made.reference.hits == 0


def test_kto_has_it_as_well(tmp_path):
    args = KTOConfig(
        output_dir=str(tmp_path), **{**MOVES, "ref_model_mixup_alpha": 1.0}, max_steps=4, use_cpu=True,
        report_to="none", per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    made = KTOTrainer(tiny_model(), args=args, train_dataset=rows(8), processing_class=tiny_tokenizer())
    made.train()
    assert made.reference.source.moves == 2
    losses = logged(made)
    assert losses[2] == pytest.approx(0.5, abs=1e-6)  # the policy is the reference again, and KTO's loss 1/2
    assert losses[1] != pytest.approx(0.5, abs=1e-4)


def test_grpo_has_it_as_well(tmp_path):
    args = GRPOConfig(
        output_dir=str(tmp_path), **MOVES, beta=0.1, max_steps=4, use_cpu=True, report_to="none", num_generations=2,
        per_device_train_batch_size=4, max_new_tokens=4, learning_rate=1e-2,
    )  # fmt: skip
    made = GRPOTrainer(
        tiny_model(), reward_funcs=lambda completions, **_: [float(len(c)) for c in completions], args=args,
        train_dataset=[{"prompt": f"{n}?"} for n in range(8)], processing_class=tiny_tokenizer(),
    )  # fmt: skip
    made.train()
    assert made.reference.moves == 2


@pytest.mark.parametrize(("options", "said"), [
    ({"ref_model_mixup_alpha": 0.5}, "have no effect without sync_ref_model"),
    ({"ref_model_sync_steps": 10}, "have no effect without sync_ref_model"),
    ({"sync_ref_model": True, "ref_model_mixup_alpha": 0.0}, "must be above 0 and at most 1"),
    ({"sync_ref_model": True, "ref_model_sync_steps": 0}, "must be at least 1"),
    ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "Leave one out"),
    ({"sync_ref_model": True, "loss_type": "simpo"}, "this loss does not use"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        trainer(tiny_model(), tmp_path, **options)


def test_grpo_without_a_reference_refuses_it(tmp_path):
    with pytest.raises(ConfigError, match="beta=0 does not use"):
        GRPOConfig(output_dir=str(tmp_path), sync_ref_model=True, use_cpu=True)
