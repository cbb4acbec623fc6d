"""Every loss of pairs through model, engine and trainer: the oracle's value, and an update that does not depend on how
the step is cut up.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from preftune.logps import naive_logps, pack
from preftune.logps.batch import GroupLogps
from preftune.losses import LOSSES, Pairs
from preftune.reference import inference
from preftune.training.step.pair_loss import gold_of, lists_of
from preftune.types import Sides
from tests.training.dpo_runs import logged, nudge, trainer
from tiny import rows, tiny_model

NEEDED: dict[str, dict[str, Any]] = {
    "exo_pair": {"label_smoothing": 0.01}, "robust": {"label_smoothing": 0.1},
}  # fmt: skip
MEASURED = {name for name, loss in LOSSES.items() if loss.gap is not None}
"""Losses that follow running moments: test_whole_step_losses.py has their values."""
OF_THE_STEP = MEASURED | {name for name, loss in LOSSES.items() if loss.sorts}
"""Losses whose value depends on all pairs of the step, as their papers have it."""


def data(name: str) -> list[dict[str, Any]]:
    made = rows(8)
    if LOSSES[name].needs_gold:
        return [{**row, "reference": f"{row['chosen']}, of course"} for row in made]
    return [{**row, "margin": 0.2 * (n % 3)} for n, row in enumerate(made)] if LOSSES[name].needs_margins else made


def made(name: str, folder: Any, **options: Any) -> Any:
    """A run whose policy is not its reference from the start, where there is one."""
    model, known = tiny_model(), {}
    if LOSSES[name].reference:
        known = {"ref_model": tiny_model(), "allow_reference_mismatch": True}
        nudge(known["ref_model"], 0.02)
    # Adam divides by the gradient's size, so one that is nothing but rounding may be a step as large as any
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "adam_epsilon": 1e-4,
        **NEEDED.get(name, {}),
        **options,
    }
    return trainer(model, folder, data=data(name), loss_type=name, **known, **settings)


def by_the_oracle(run: Any, name: str) -> float:
    """The first step's loss: every sequence by itself in float64, sums over its tokens, and the paper's formula on them
    (which tests/losses compares with values by hand).
    """
    batch = pack([run.train_dataset[row] for row in range(4)])

    golden = gold_of(batch) if run.objective.needs_gold else None

    def sides(model: Any) -> tuple[Sides, GroupLogps]:
        with inference(model.double()):
            flat = naive_logps(model, batch).double()
        sums = torch.stack([flat[batch.owner_T == one].sum() for one in range(batch.completions)])
        lengths = torch.stack([(batch.owner_T == one).sum() for one in range(batch.completions)]).double()
        chosen, rejected = batch.chosen_N, batch.rejected_N
        return Sides(sums[chosen], sums[rejected], lengths[chosen], lengths[rejected]), GroupLogps(
            flat, batch.owner_T, batch.completions
        )

    policy, scored = sides(run.model)
    reference = known = None
    if LOSSES[name].reference:
        reference, known = sides(run.ref_model)
        assert (policy.chosen_N - reference.chosen_N).abs().min() > 1e-3
    objective = run.objective
    margin = batch.margin_N.double()
    rejected_margin = None
    if objective.sorts:
        margin, rejected_margin = objective.step_margins(Pairs(policy, reference, margin))
    found = objective(
        policy, reference, weight_N=batch.weight_N.double(), margin_N=margin, rejected_margin_N=rejected_margin,
        whole_N=policy.chosen_N, delta=0.0, tokens_per_pair=float(policy.chosen_length_N.mean()),
        gold_N=None if golden is None else scored.sum_K[golden],
        gold_tokens_per_pair=1.0 if golden is None else float(scored.length_K[golden].mean()),
        lists=lists_of(batch, scored, known) if objective.takes_lists else None,
    )  # fmt: skip
    return float(found.loss_N.mean())


@pytest.mark.sample(12)
@pytest.mark.parametrize("name", sorted(LOSSES.keys() - MEASURED))
def test_the_loss_of_the_first_step_is_the_oracle_s(name, tmp_path):
    run = made(name, tmp_path)
    expected = by_the_oracle(made(name, tmp_path / "oracle"), name)
    run.train()
    assert logged(run)[0] == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.sample(9)
@pytest.mark.parametrize("name", LOSSES)
def test_the_update_depends_neither_on_micro_batches_nor_on_a_token_budget(name, tmp_path):
    runs = [
        made(name, tmp_path / "whole"),
        made(name, tmp_path / "singly", per_device_train_batch_size=1, gradient_accumulation_steps=4),
        made(name, tmp_path / "budget", max_tokens_per_batch=90),
    ]
    for run in runs:
        run.train()
    whole, *others = runs
    for other in others:
        assert logged(other) == pytest.approx(logged(whole), rel=1e-4, abs=1e-5)
        for (weight, one), (_, two) in zip(whole.model.named_parameters(), other.model.named_parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-3, msg=weight)


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", sorted(LOSSES.keys() - OF_THE_STEP))
def test_a_pair_s_loss_does_not_depend_on_the_other_pairs_of_the_step(name, tmp_path):
    """Evaluated in batches of 1 and of 8: those that sort, and the likelihood over all tokens, are said to differ."""
    found = []
    for size in (1, 8):
        run = made(name, tmp_path / str(size), per_device_eval_batch_size=size, eval_dataset=data(name))
        found.append(run.evaluate()["eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-6)
