"""`group_by_prompt`: the same training from fewer tokens. Six pairs of four rated completions, as in UltraFeedback."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from preftune import DPOConfig
from preftune.data import group_by_prompt, load_pairs, tokenize_pairs
from preftune.logps import make_engine, pack
from tests.training.dpo_runs import logged, lora_model, metrics, trainer
from tiny import rows, tiny_model, tiny_tokenizer

PROMPTS, COMPLETIONS, PAIRS = 3, 4, 6


def rated() -> list[dict[str, Any]]:
    """Every two of a prompt's four answers as a row, with weights and margins of their own, the prompts mixed."""
    return [
        {
            "prompt": f"what is the number {prompt} good for, and why do people count? ",
            "chosen": f"answer {better} of {prompt}" + " indeed" * better,
            "rejected": f"answer {worse} of {prompt}" + " indeed" * worse,
            "weight": 1.0 + 0.25 * better,
            "margin": 0.5 * worse,
        }
        for better, worse in itertools.combinations(range(COMPLETIONS), 2)
        for prompt in range(PROMPTS)
    ]


def tokenised() -> Any:
    return tokenize_pairs(load_pairs(rated()), tiny_tokenizer(), max_length=1024, max_prompt_length=None)[0]


class Gradients(TrainerCallback):
    """Of the first step, before clipping (which the tests switch off)."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_step(folder: Any, *, make: Any = lora_model, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A step over all rows against another model as reference, so that every pair has a reward of its own."""
    gradients = Gradients()
    grouped = options.get("group_by_prompt", False)
    run = trainer(
        make(),
        folder,
        data=rated(),
        ref_model=tiny_model(seed=1),
        allow_reference_mismatch=True,
        max_grad_norm=0.0,
        callbacks=[gradients],
        **{"per_device_train_batch_size": PROMPTS if grouped else PROMPTS * PAIRS, "max_steps": 1, **options},
    )
    run.train()
    return run, gradients.found


def test_gradients_are_those_of_the_ungrouped_rows_in_float64():
    def gradients(groups: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model, reference = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float64, seed=1)
        batch = pack(list(groups))
        with torch.no_grad():
            expected = make_engine(reference, "packed")(reference, batch).sides(batch)
        policy = make_engine(model, "packed")(model, batch).sides(batch)
        loss = DPOConfig(output_dir="unused").objective()(
            policy, expected, weight_N=batch.weight_N, margin_N=batch.margin_N
        )
        mean = loss.loss_N.mean()
        mean.backward()
        return mean.detach(), {n: p.grad for n, p in model.named_parameters()}

    rows = tokenised()
    merged = group_by_prompt(rows)
    assert (len(rows), len(merged)) == (PROMPTS * PAIRS, PROMPTS)
    loss, expected = gradients(rows)
    grouped_loss, found = gradients(merged)
    torch.testing.assert_close(grouped_loss, loss, rtol=1e-12, atol=0)
    for name, gradient in expected.items():
        size = gradient.abs().max()  # Llama's norms compute in float32 even here, so sums round differently
        assert size > 0
        torch.testing.assert_close(found[name] / size, gradient / size, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("make", [lora_model, tiny_model])
def test_one_step_of_a_run_has_the_same_gradient_loss_and_metrics_as_the_ungrouped_rows(make, tmp_path):
    plain, expected = one_step(tmp_path / "plain", make=make)
    grouped, found = one_step(tmp_path / "grouped", make=make, group_by_prompt=True)
    assert (len(plain.train_dataset), len(grouped.train_dataset)) == (PROMPTS * PAIRS, PROMPTS)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    mine, other = grouped.state.log_history[0], plain.state.log_history[0]
    for name in other:
        if name.startswith(("loss", "grad_norm", "rewards/", "logps/", "completions/")):
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


def test_accumulating_groups_of_several_pairs_gives_the_update_of_one_batch(tmp_path):
    _, expected = one_step(tmp_path / "whole", group_by_prompt=True)
    _, found = one_step(
        tmp_path / "parts", group_by_prompt=True, per_device_train_batch_size=1, gradient_accumulation_steps=PROMPTS
    )
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_the_tokens_counted_against_pairs_follow_the_formula(tmp_path):
    """`P + 4C` instead of `6 (P + 2C)` packed, or of `6 (2P + 2C)` with both sides by themselves."""
    groups = group_by_prompt(tokenised())
    prompt = sum(len(group.prompt_ids) for group in groups)
    answers = sum(len(c) for group in groups for c in group.completions)
    separate = PAIRS * 2 * prompt + (COMPLETIONS - 1) * answers  # every answer is in three pairs
    for grouped, computed in ((False, PAIRS * prompt + 3 * answers), (True, prompt + answers)):
        run, _ = one_step(tmp_path / str(grouped), group_by_prompt=grouped)
        (saved,) = logged(run, "tokens_saved_by_sharing")
        assert saved == pytest.approx(1 - computed / separate, rel=1e-12)


def test_the_reference_scores_every_completion_once(tmp_path):
    run = trainer(
        lora_model(),
        tmp_path,
        data=rated(),
        group_by_prompt=True,
        per_device_train_batch_size=2,
        num_train_epochs=2,
        max_steps=-1,
    )
    run.train()
    assert run.state.global_step == 4  # two batches of groups an epoch
    assert run.reference.misses + run.reference.hits == 2 * PROMPTS * COMPLETIONS
    assert run.reference.misses == PROMPTS * COMPLETIONS
    again = trainer(lora_model(), tmp_path / "again", data=rated(), per_device_train_batch_size=6)
    again.train()
    assert logged(again, "reference/cache_hits") == [1.0] * 3  # grouped or not, a completion's address is the same


def test_evaluation_is_the_same_mean_over_pairs(tmp_path):
    options: dict[str, Any] = {
        "ref_model": tiny_model(seed=1),
        "allow_reference_mismatch": True,
        "per_device_eval_batch_size": 2,
    }
    plain = trainer(tiny_model(), tmp_path / "plain", eval_dataset=rated(), **options)
    grouped = trainer(tiny_model(), tmp_path / "grouped", eval_dataset=rated(), group_by_prompt=True, **options)
    expected, found = plain.evaluate(), grouped.evaluate()
    assert len(grouped.eval_dataset) == PROMPTS
    for name, value in expected.items():
        if name.startswith(("eval_loss", "eval_rewards/", "eval_logps/", "eval_completions/")):
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert grouped.evaluate(rated())["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("drop_last", [False, True])
def test_predictions_are_about_every_row(drop_last, tmp_path):
    run = trainer(lora_model(), tmp_path, dataloader_drop_last=drop_last, per_device_eval_batch_size=4)
    run.train()
    held_out = rows(7, start=40)
    predicted = run.predict(held_out)
    assert predicted.predictions.shape == (7, 2)
    evaluated = run.evaluate(held_out)
    assert predicted.metrics["test_logps/chosen"] == pytest.approx(evaluated["eval_logps/chosen"], rel=1e-6)


def test_predictions_are_one_row_per_pair_in_the_order_of_the_rows(tmp_path):
    options = {"ref_model": tiny_model(seed=1), "allow_reference_mismatch": True}
    plain = trainer(tiny_model(), tmp_path / "plain", **options).predict(rated())
    grouped = trainer(tiny_model(), tmp_path / "grouped", group_by_prompt=True, **options).predict(rated())
    assert grouped.predictions.shape == (PROMPTS * PAIRS, 2)
    assert len({tuple(row) for row in plain.predictions.round(4).tolist()}) > PROMPTS
    np.testing.assert_allclose(grouped.predictions, plain.predictions, rtol=1e-3, atol=1e-4)


def test_what_grouping_does_to_the_data_and_to_a_step_is_said_and_recorded(tmp_path, caplog):
    caplog.set_level("INFO", logger="preftune")
    run, _ = one_step(tmp_path, group_by_prompt=True, per_device_train_batch_size=2, save_strategy="no")
    tokens, before = run.train_dataset.total_tokens, tokenised().total_tokens
    assert (
        f"18 train pairs share 3 prompts: 3 groups, {tokens:,} tokens instead of {before:,}. The batch size counts "
        "groups: a step of 2 holds about 12 pairs." in caplog.messages
    )
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["configuration"]["group_by_prompt"] is True
    assert (record["data"]["train"]["pairs"], record["data"]["train"]["groups"]) == (18, 3)
    assert len(metrics(tmp_path)) == 2
    run.create_model_card()
    assert ("| pairs per step | about 12, in 2 groups of pairs with the same prompt |") in (
        tmp_path / "README.md"
    ).read_text()


def test_where_nothing_is_shared_that_is_said(tmp_path, caplog):
    caplog.set_level("INFO", logger="preftune")
    run = trainer(lora_model(), tmp_path, group_by_prompt=True)
    assert "group_by_prompt: no two train pairs (8 in all) share a prompt, so it has no effect." in caplog.messages
    assert len(run.train_dataset) == 8


def test_groups_stay_within_four_times_the_longest_sequence(tmp_path):
    longest = max(len(g.prompt_ids) + len(c) for g in tokenised() for c in g.completions)
    whole = trainer(lora_model(), tmp_path / "a", data=rated(), group_by_prompt=True, max_length=longest)
    assert len(whole.train_dataset) == PROMPTS
    many = [{**row, "chosen": f"{row['chosen']} {i}"} for i in range(12) for row in rated()]
    run = trainer(lora_model(), tmp_path / "b", data=many, group_by_prompt=True, max_length=longest + 3)
    assert run.train_dataset.pairs == 12 * PROMPTS * PAIRS
    assert PROMPTS < len(run.train_dataset) < 12 * PROMPTS
    assert run.train_dataset.lengths.max() <= 4 * (longest + 3)
