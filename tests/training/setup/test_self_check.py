"""The check of every run's first step: each of its branches sees a fault that was planted, and none sees a ghost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from preftune.errors import NonFiniteError, SelfCheckError
from preftune.logps import layout
from preftune.logps.attention import cpu as attention_cpu
from preftune.reference.fingerprint import completion_keys
from preftune.training.step.collate import probes
from tests.training.dpo_runs import LN2, logged, lora_model, nudge, trainer
from tiny import rows, tiny_model


def weights_of(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def assert_untouched(run: Any, before: dict[str, torch.Tensor]) -> None:
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


# --- before the first step: the engine ---


def without_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further completion sees itself only."""
    monkeypatch.setattr(layout.Segment, "seen", lambda own, tensor: tensor[..., own.start : own.stop, :])
    monkeypatch.setattr(layout.GroupLayout, "mask", lambda *_: None)
    plan = attention_cpu._plan

    def alone(whole: layout.GroupLayout) -> Any:
        segments = tuple(layout.Segment(s.start, s.stop, s.start, s.start) for s in whole.segments)
        return plan(replace(whole, segments=segments))

    monkeypatch.setattr(attention_cpu, "_plan", alone)


def without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody sees the future."""

    def everything(_self: Any, segment: Any, window: Any, device: Any) -> torch.Tensor:
        return torch.ones(segment.queries, segment.prefix + segment.queries, dtype=torch.bool)

    monkeypatch.setattr(layout.GroupLayout, "mask", everything)
    monkeypatch.setattr(torch.Tensor, "triu_", lambda mask, _: mask.zero_())


def with_the_wrong_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is predicted by the state one place too late."""
    from preftune.logps import engine

    score = engine.token_logps

    def late(hidden_TD: Any, *rest: Any, **options: Any) -> torch.Tensor:
        return score(hidden_TD.roll(-1, 0), *rest, **options)

    monkeypatch.setattr(engine, "token_logps", late)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("plant", [without_prompts, without_masks, with_the_wrong_state])
def test_an_engine_that_computes_something_else_stops_the_run(plant, dtype, tmp_path, monkeypatch):
    run = trainer(lora_model(tiny_model(scale=2.0)), tmp_path, bf16=dtype == "bfloat16")
    before = weights_of(run)
    plant(monkeypatch)
    with pytest.raises(SelfCheckError, match="packed engine and the naive path disagree") as caught:
        run.train()
    assert "engine='naive'" in str(caught.value)
    assert_untouched(run, before)


@pytest.mark.parametrize("ask", ["evaluate", "predict"])
def test_a_number_that_is_asked_for_without_training_is_checked_too(ask, tmp_path):
    """The engine reads the head's weight; a hook on the head is the naive path's alone."""
    run = trainer(lora_model(tiny_model(scale=2.0)), tmp_path, eval_dataset=rows(4))
    run.evaluate()
    run = trainer(lora_model(tiny_model(scale=2.0)), tmp_path, eval_dataset=rows(4))
    run.model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: 0.3 * logits)
    with pytest.raises(SelfCheckError, match="disagree"):
        run.evaluate() if ask == "evaluate" else run.predict(rows(4))


def test_the_engine_is_checked_once(tmp_path, monkeypatch):
    run = trainer(lora_model(), tmp_path, eval_dataset=rows(4))
    checks = []
    checked = type(run).engine_error
    monkeypatch.setattr(type(run), "engine_error", lambda self, batch: checks.append(batch) or checked(self, batch))
    run.evaluate()
    run.evaluate()
    assert len(checks) == 1
    run.train()
    run.evaluate()
    assert len(checks) == 1, "the check of the first step is another one, and serves evaluations"


def test_a_fault_that_shows_with_neighbours_only_stops_the_run_and_names_the_row(tmp_path, monkeypatch):
    run = trainer(lora_model(), tmp_path, data=[{**row, "id": f"row-{i}"} for i, row in enumerate(rows(8))])
    score = type(run.engine).__call__

    def leaking(self: Any, model: Any, batch: Any) -> Any:
        scored = score(self, model, batch)
        alone = sum(batch.groups[0].scored_lengths)
        scored.token_logps_T[alone:] += 1.0
        return scored

    monkeypatch.setattr(type(run.engine), "__call__", leaking)
    with pytest.raises(SelfCheckError, match=r"in row row-[1-7]\)"):
        run.train()


def test_cached_scores_that_are_not_the_references_are_set_aside(tmp_path, caplog):
    run = trainer(lora_model(), tmp_path / "first", precompute_ref_log_probs=True)
    run.train()
    store = run.reference.store
    longest = run.train_dataset[probes(run.train_dataset.lengths)[-1]]
    keys = completion_keys(longest.prompt_ids, longest.completions, longest.scored)
    store.put({key: scores + 1 for key, scores in store.get(keys).items()})
    store.close()
    caplog.clear()
    run = trainer(lora_model(), tmp_path / "second", precompute_ref_log_probs=True)
    run.train()
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)
    assert "its scores are not those of the reference" in caplog.text
    assert len(run.reference.store.get(keys)) == 2  # kept anew


@pytest.mark.parametrize("make", [lora_model, lambda: lora_model(trained=True), tiny_model])
def test_rounding_in_half_precision_is_no_fault(make, tmp_path):
    run = trainer(make(), tmp_path, bf16=True)
    run.train()
    assert logged(run)[0] == pytest.approx(LN2, abs=2e-2)
    facts = run._record.facts["self_check"]
    assert facts["engine_error"] < 0.5
    assert facts["noise_floor"] < 0.5


def test_a_model_in_half_precision_is_no_fault(tmp_path):
    run = trainer(lora_model(tiny_model(dtype=torch.bfloat16)), tmp_path)
    run.train()
    assert logged(run)[-1] < 0.6


# --- at the first step: gradients ---


def test_a_trainable_parameter_that_the_loss_does_not_depend_on_is_named(tmp_path):
    model = tiny_model()
    model.model.layers[1].forgotten = nn.Parameter(torch.ones(3))
    run = trainer(model, tmp_path)
    before = weights_of(run)
    with pytest.raises(SelfCheckError, match=r"1 trainable parameter got no gradient.*layers\.1\.forgotten"):
        run.train()
    assert_untouched(run, before)


class GradientForAFrozenWeight(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        weight = model.get_input_embeddings().weight
        assert not weight.requires_grad
        weight.grad = torch.ones_like(weight)


def test_a_frozen_parameter_with_a_gradient_is_named(tmp_path):
    run = trainer(lora_model(), tmp_path, callbacks=[GradientForAFrozenWeight()])
    before = weights_of(run)
    with pytest.raises(SelfCheckError, match=r"1 frozen parameter got a gradient.*embed_tokens"):
        run.train()
    assert_untouched(run, before)


def test_a_loss_without_any_gradient_is_reported(tmp_path):
    run = trainer(lora_model(), tmp_path)
    for parameter in run.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(SelfCheckError, match="all gradients of the first step are zero"):
        run.train()


def test_a_first_step_whose_pairs_weigh_nothing_is_no_fault(tmp_path):
    data = [{**row, "weight": float(i > 1)} for i, row in enumerate(rows(6))]
    run = trainer(lora_model(), tmp_path, data=data)
    run.train()
    assert logged(run)[0] == 0.0
    assert logged(run)[2] < 0.65


# --- after the first step: weights ---


def somebody_elses_weights() -> Any:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=1e-2)


def test_an_optimiser_that_does_not_hold_the_weights_is_found_out(tmp_path):
    run = trainer(tiny_model(), tmp_path, optimizers=(somebody_elses_weights(), None))
    with pytest.raises(SelfCheckError, match="changed nothing"):
        run.train()
    assert run.state.global_step == 0


def test_updates_smaller_than_the_weights_rounding_are_found_out(tmp_path):
    model = lora_model(trained=True)
    run = trainer(model, tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)  # what preftune does not do, and a user might
    run.args.learning_rate = 1e-9
    with pytest.raises(SelfCheckError, match=r"changed nothing.*bfloat16"):
        run.train()


def test_a_warm_up_from_zero_is_no_fault_and_the_first_step_with_a_rate_is_the_one_that_is_checked(tmp_path):
    warm_up = {"warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup"}
    trained = trainer(lora_model(), tmp_path / "right", **warm_up)
    trained.train()
    assert logged(trained, "learning_rate")[0] == 0.0
    assert logged(trained)[1] == pytest.approx(LN2, abs=1e-6)  # nothing had moved
    wrong = trainer(tiny_model(), tmp_path / "wrong", optimizers=(somebody_elses_weights(), None), **warm_up)
    with pytest.raises(SelfCheckError, match="changed nothing"):
        wrong.train()
    assert wrong.state.global_step == 1


class Silent(torch.optim.SGD):
    """Moves nothing in its first steps, at a rate of its own, as schedule-free RAdam."""

    def step(self, closure: Any = None) -> Any:
        steps = self.state.setdefault("steps", 0)
        self.state["steps"] = steps + 1
        for group in self.param_groups:
            group["scheduled_lr"] = 0.0 if steps < self.silent else group["lr"]
        return super().step(closure) if steps >= self.silent else None


def test_steps_in_which_an_optimiser_only_collects_are_no_fault(tmp_path):
    for silent, moves in ((2, True), (99, False)):
        model = lora_model()
        before = weights_of(trainer(model, tmp_path / str(silent)))
        optimizer = Silent([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        optimizer.silent = silent
        run = trainer(model, tmp_path / str(silent), optimizers=(optimizer, None), max_steps=4)
        run.train()
        assert any(not torch.equal(p, before[name]) for name, p in run.model.named_parameters()) == moves


# --- at any step: NaN ---


def test_a_model_with_nan_in_its_weights_is_distinguished_from_an_engine_that_is_wrong(tmp_path):
    model = lora_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = math.nan  # a token of no row; a row of NaN scores in a tied head
        model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="not finite before the first step"):
        trainer(model, tmp_path).train()


class Snapshots(TrainerCallback):
    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_nan_loss_names_the_rows_of_its_step_and_leaves_the_weights_as_they_were(accumulation, tmp_path):
    data = [{**row, "id": f"row-{i}"} for i, row in enumerate(rows(8))]
    data[5]["chosen"] = "QQ" + data[5]["chosen"]
    data[0]["rejected"] += ", and so on and so forth"
    model = lora_model(tiny_model(tie_word_embeddings=False))
    run = trainer(
        model,
        tmp_path,
        data=data,
        per_device_train_batch_size=2 // accumulation,
        gradient_accumulation_steps=accumulation,
        callbacks=[snapshots := Snapshots()],
    )
    assert 5 not in probes(run.train_dataset.lengths)  # or the check before the first step would find it
    (token,) = run.processing_class("Q")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = math.nan
    with pytest.raises(NonFiniteError, match="the loss of step 3 is not finite") as caught:
        run.train()
    assert "row-4, row-5." in str(caught.value)
    assert "row-3" not in str(caught.value)
    assert "row-6" not in str(caught.value)
    assert run.state.global_step == 2
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, snapshots.weights[n]) for n, p in run.model.named_parameters() if n in trained)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_an_infinite_gradient_of_a_finite_loss_is_reported_before_the_weights_are_touched(max_grad_norm, tmp_path):
    run = trainer(tiny_model(), tmp_path, max_grad_norm=max_grad_norm)
    before = weights_of(run)
    run.model.model.layers[0].mlp.up_proj.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NonFiniteError, match="the gradient of step 1 is not finite"):
        run.train()
    assert_untouched(run, before)


def test_a_policy_that_was_changed_between_the_trainer_and_the_first_step_is_its_own_reference(tmp_path, caplog):
    model = lora_model()
    run = trainer(model, tmp_path)
    nudge(model, 0.2)
    run.train()
    assert "the model was changed after the trainer was made" in caplog.text
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)


@pytest.mark.parametrize("fresh", [True, False], ids=["adapter off", "frozen copy"])
def test_weights_that_were_unfrozen_after_the_trainer_was_made_take_no_reference_along(fresh, tmp_path, caplog):
    model = lora_model()
    if not fresh:
        nudge(model, 0.2)
    run = trainer(model, tmp_path, learning_rate=0.05)
    batch = run._batch_of([0, 1])
    received = run.reference.fresh(run.model, batch).token_logps_T
    model.get_input_embeddings().weight.requires_grad_(True)
    run.train()
    assert "the model was changed after the trainer was made" in caplog.text
    torch.testing.assert_close(run.reference.fresh(run.model, batch).token_logps_T, received, rtol=0, atol=1e-4)
