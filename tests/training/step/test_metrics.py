"""Numbers that a run logs: means over pairs, whatever the batch, the accumulation and the evaluation between."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from tests.training.dpo_runs import logged, lora_model, metrics, naive_scores, trainer, untimed
from tiny import rows, tiny_model

OTHER = {"allow_reference_mismatch": True, "learning_rate": 0.0}
"""With another model as reference, pairs have rewards of their own; without learning rate, they keep them."""


class ByHand(NamedTuple):
    """Per-pair numbers of DPO from the oracle's scores."""

    chosen: np.ndarray
    rejected: np.ndarray
    loss: np.ndarray
    logps: np.ndarray
    lengths: np.ndarray


def by_hand(groups: Any, *, beta: float = 0.1, weight: Any = 1.0, margin: Any = 0.0) -> ByHand:
    lengths = [len(completion) for group in groups for completion in group.completions]

    def sums(model: Any) -> torch.Tensor:
        return torch.stack([part.sum() for part in naive_scores(model, groups).split(lengths)]).double()

    policy, reference = sums(tiny_model()), sums(tiny_model(seed=1))
    chosen, rejected = (beta * (policy - reference)).view(-1, 2).T
    loss = torch.as_tensor(weight) * -logsigmoid(chosen - rejected - torch.as_tensor(margin))
    return ByHand(
        chosen.numpy(),
        rejected.numpy(),
        loss.numpy(),
        policy.view(-1, 2).numpy(),
        np.array(lengths).reshape(-1, 2),
    )


def expected_metrics(hand: ByHand) -> dict[str, float]:
    """What should be logged of these pairs."""
    return {
        "loss": hand.loss.mean(),
        "rewards/chosen": hand.chosen.mean(),
        "rewards/rejected": hand.rejected.mean(),
        "rewards/margins": (hand.chosen - hand.rejected).mean(),
        "rewards/accuracies": (hand.chosen > hand.rejected).mean(),
        "logps/chosen": hand.logps[:, 0].mean(),
        "logps/rejected": hand.logps[:, 1].mean(),
        "completions/chosen_length": hand.lengths[:, 0].mean(),
        "completions/rejected_length": hand.lengths[:, 1].mean(),
    }


def rows_of_two_lengths(count: int) -> list[dict[str, Any]]:
    """The second half has long answers, so that a mean of batch means is not the mean; the first row is reversed."""
    made = rows(count)
    made[0] |= {"chosen": made[0]["rejected"], "rejected": made[0]["chosen"]}
    return made[: count // 2] + [{**row, "chosen": row["chosen"] * 4} for row in made[count // 2 :]]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_evaluation_is_the_mean_over_pairs_at_every_batch_size(batch, tmp_path):
    held_out = rows_of_two_lengths(5)
    run = trainer(
        tiny_model(),
        tmp_path,
        ref_model=tiny_model(seed=1),
        eval_dataset=held_out,
        per_device_eval_batch_size=batch,
        **OTHER,
    )
    evaluated = run.evaluate()
    expected = expected_metrics(by_hand(list(run.eval_dataset)))
    assert 0 < expected["rewards/accuracies"] < 1
    for name, value in expected.items():
        assert evaluated[f"eval_{name}"] == pytest.approx(value, rel=1e-4), name


def test_training_metrics_are_means_over_the_pairs_of_the_window(tmp_path):
    run = trainer(
        lora_model(),
        tmp_path,
        data=rows_of_two_lengths(7),  # batches of two, the last of one
        ref_model=tiny_model(seed=1),
        num_train_epochs=2,
        max_steps=-1,
        logging_steps=4,
        **OTHER,
    )
    run.train()
    hand = by_hand(list(run.train_dataset))
    expected = expected_metrics(hand)
    of_batches = hand.loss[:2].mean() + hand.loss[2:4].mean() + hand.loss[4:6].mean() + hand.loss[6]
    expected["loss"] = of_batches / 4  # the loss is a mean over steps, as the optimiser sees it
    assert abs(of_batches / 4 - hand.loss.mean()) > 1e-3
    windows = [record for record in metrics(tmp_path) if "loss" in record]
    assert len(windows) == 2
    for window in windows:
        for name, value in expected.items():
            assert window[name] == pytest.approx(value, rel=1e-4), name


def test_metrics_have_trls_names_and_at_the_start_every_pair_is_a_tie(tmp_path):
    run = trainer(lora_model(), tmp_path, max_steps=1)
    run.train()
    (first,) = [record for record in metrics(tmp_path) if "loss" in record]
    trl = {"loss", "grad_norm", "learning_rate", "epoch"}
    trl |= {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    trl |= {"logps/chosen", "logps/rejected"}
    assert trl <= set(first)
    assert first["rewards/accuracies"] == 0.0  # a tie is no win
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def one_batch_per_step(tmp_path_factory):
    return accumulated(8, 1, tmp_path_factory.mktemp("whole"))


def accumulated(batch: int, steps: int, folder: Any) -> Any:
    """One epoch of 20 pairs in steps of 8, 8 and 4."""
    run = trainer(
        lora_model(),
        folder,
        data=rows(20),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        num_train_epochs=1,
        max_steps=-1,
        max_grad_norm=0.0,
        reference_cache=False,
    )
    run.train()
    return run


@pytest.mark.parametrize(("batch", "steps"), [(2, 4), (1, 8), (3, 3)])
def test_accumulation_changes_neither_updates_nor_logged_losses(batch, steps, one_batch_per_step, tmp_path):
    if (batch, steps) == (3, 3):  # steps of 9, 9 and 2 pairs, against a batch of 9
        one_batch_per_step = accumulated(9, 1, tmp_path / "whole")
    run = accumulated(batch, steps, tmp_path)
    assert run.state.global_step == 3
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
        assert logged(run, name) == pytest.approx(logged(one_batch_per_step, name), rel=1e-4, abs=1e-6), name
    for name, weight in one_batch_per_step.model.named_parameters():
        torch.testing.assert_close(dict(run.model.named_parameters())[name], weight, rtol=1e-3, atol=1e-5, msg=name)


def first_step(folder: Any, data: Any, **options: Any) -> dict[str, float]:
    """What is logged of one step over all of `data`, against another reference."""
    run = trainer(
        lora_model(),
        folder,
        data=data,
        ref_model=tiny_model(seed=1),
        max_steps=1,
        max_grad_norm=0.0,
        **{"per_device_train_batch_size": len(data), **OTHER, **options},
    )
    run.train()
    return {**run.state.log_history[0], "groups": list(run.train_dataset)}  # type: ignore[dict-item]


def test_a_weight_of_two_counts_a_pair_twice_and_the_mean_is_still_over_pairs(tmp_path):
    first, second = rows(2)
    weighted = first_step(tmp_path / "a", [{**first, "weight": 2.0}, {**second, "weight": 1.0}])
    repeated = first_step(tmp_path / "b", [first, first, second])
    plain = first_step(tmp_path / "c", [first, second])
    assert weighted["loss"] * 2 == pytest.approx(repeated["loss"] * 3, rel=1e-5)
    assert weighted["grad_norm"] * 2 == pytest.approx(repeated["grad_norm"] * 3, rel=1e-5)
    hand = by_hand(plain["groups"])
    assert weighted["loss"] == pytest.approx((2 * hand.loss[0] + hand.loss[1]) / 2, rel=1e-5)
    for name in ("rewards/margins", "rewards/accuracies"):  # rewards are what they are, whatever a pair weighs
        assert weighted[name] == pytest.approx(plain[name], rel=1e-5)


def test_weights_survive_accumulation(tmp_path):
    data = [{**row, "weight": float(weight)} for weight, row in enumerate(rows(4))]
    whole = first_step(tmp_path / "whole", data)
    parts = first_step(tmp_path / "parts", data, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    hand = by_hand(whole["groups"], weight=[0.0, 1.0, 2.0, 3.0])
    assert whole["loss"] == pytest.approx(hand.loss.sum() / 4, rel=1e-5)


def test_the_margin_of_a_pair_is_asked_for_by_the_loss(tmp_path):
    data = [{**row, "margin": margin} for margin, row in zip((0.0, 1.5, 3.0), rows(3), strict=True)]
    found = first_step(tmp_path, data)
    hand = by_hand(found["groups"], margin=[0.0, 1.5, 3.0])
    assert found["loss"] == pytest.approx(hand.loss.mean(), rel=1e-5)
    assert found["loss"] > by_hand(found["groups"]).loss.mean() + 0.1


def test_compute_metrics_gets_the_rewards_of_every_pair_and_may_add_metrics(tmp_path):
    seen = []

    def compute(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"best": float(prediction.predictions.max()), "eval_named": 1.0}

    run = trainer(
        tiny_model(),
        tmp_path,
        ref_model=tiny_model(seed=1),
        eval_dataset=rows(5),
        per_device_eval_batch_size=2,
        compute_metrics=compute,
        **OTHER,
    )
    evaluated = run.evaluate()
    hand = by_hand(list(run.eval_dataset))
    np.testing.assert_allclose(seen[0].predictions, np.stack([hand.chosen, hand.rejected], 1), rtol=1e-4)
    assert seen[0].label_ids.tolist() == [0] * 5
    assert evaluated["eval_best"] == pytest.approx(max(hand.chosen.max(), hand.rejected.max()), rel=1e-4)
    assert evaluated["eval_named"] == 1.0


class TrainingFlags(TrainerCallback):
    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.add(model.training)


def test_evaluating_between_steps_changes_nothing_about_the_steps(tmp_path):
    flags = TrainingFlags()
    watched = trainer(
        lora_model(),
        tmp_path / "watched",
        eval_dataset=rows(3, start=40),
        eval_strategy="steps",
        eval_steps=1,
        callbacks=[flags],
    )
    watched.train()
    plain = trainer(lora_model(), tmp_path / "plain")
    plain.train()
    assert logged(watched) == logged(plain)
    assert flags.seen == {True}
    assert len(logged(watched, "eval_loss")) == 3


def test_dropout_is_off_in_an_evaluation_and_on_again_after_it(tmp_path):
    model = lora_model(trained=True, lora_dropout=0.5)
    run = trainer(model, tmp_path, disable_dropout=False, eval_dataset=rows(3, start=40), loss_type="ipo")
    run.model.train()
    assert run.evaluate()["eval_rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert all(module.training for module in run.model.modules())


def test_named_evaluation_sets_are_distinguished(tmp_path):
    run = trainer(
        tiny_model(),
        tmp_path,
        ref_model=tiny_model(seed=1),
        eval_dataset={"short": rows(3), "long": rows_of_two_lengths(4)[2:]},
        **OTHER,
    )
    evaluated = untimed([run.evaluate()])[0]
    for name, groups in run.eval_dataset.items():
        assert evaluated[f"eval_{name}_loss"] == pytest.approx(by_hand(list(groups)).loss.mean(), rel=1e-4)
    assert evaluated["eval_short_loss"] != pytest.approx(evaluated["eval_long_loss"], rel=1e-2)


def test_an_evaluation_of_several_sets_is_left_out_of_the_rates_once(tmp_path):
    run = trainer(
        tiny_model(),
        tmp_path,
        eval_dataset={"a": rows(12, start=40), "b": rows(3, start=60)},
        eval_strategy="steps",
        eval_steps=1,
        logging_steps=1,
        max_steps=3,
    )
    began = time.perf_counter()
    run.train()
    seconds = time.perf_counter() - began
    steps = [record for record in run.state.log_history if "reference/cache_hits" in record]
    assert len(steps) == 3
    pairs = run.args.per_device_train_batch_size
    for record in steps:
        assert 0 <= record["reference/cache_hits"] <= 1
        assert record["pairs_per_second"] * seconds >= pairs  # no step lasts longer than the run,
        assert record["pairs_per_second"] < pairs * 1e5  # nor no time at all
