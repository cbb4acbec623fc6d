"""Useful FLOPs are those of the benchmarks' formula; time and cost follow from a rate."""

from __future__ import annotations

import pytest
from shapes import PairTokens
from work import ModelSize
from work import useful_flops as formula

from preftune.plan.devices import CARDS, Device
from preftune.plan.shape import shape_of
from preftune.plan.work import Rate, assumed_rate, useful_flops, work_of
from preftune.plan.workload import MicroBatch, RowLengths
from tests.plan.cases import model, settings, workload


@pytest.mark.parametrize("reference", [0, 1])
@pytest.mark.parametrize(("lora", "passes"), [(True, 2), (False, 3)])
def test_useful_flops_are_those_of_the_benchmarks(lora, passes, reference):
    policy = model(lora=lora)
    pairs = [PairTokens(40, 30, 26), PairTokens(11, 5, 70)]
    batch = MicroBatch.of([RowLengths(p, (c, r), c + r, 2 * p + c + r) for p, c, r in pairs])
    expected = formula(ModelSize.of(policy.config), pairs, passes=passes, reference=reference)
    assert useful_flops(shape_of(policy), batch, reference=reference) == pytest.approx(expected)


def test_time_and_cost_by_hand():
    shape, load = shape_of(model(lora=True)), workload(rows=100)
    work = work_of(shape, settings(), load, Rate(1e9, "a test"), price_per_hour=36.0)
    both = useful_flops(shape, load.sampled, reference=1)
    assert work.flops == pytest.approx(100 * both)
    assert work.seconds == pytest.approx(100 * both / 1e9)
    assert work.cost == pytest.approx(work.seconds / 100)


def test_reference_scores_are_computed_in_the_first_epoch_only():
    from dataclasses import replace

    shape, load = shape_of(model(lora=True)), workload(rows=100)
    one, three = (work_of(shape, settings(), replace(load, epochs=n), Rate(1e9, "")).flops for n in (1.0, 3.0))
    assert three - one == pytest.approx(2 * 100 * useful_flops(shape, load.sampled, reference=0))
    none = work_of(shape, settings(reference="none"), load, Rate(1e9, "")).flops
    assert none == pytest.approx(100 * useful_flops(shape, load.sampled, reference=0))


def test_eight_devices_take_an_eighth_of_the_time_and_cost_the_same():
    shape, load, card = shape_of(model(lora=True)), workload(), CARDS["h100"]
    one, eight = (
        work_of(shape, settings(card, bf16=True, gpus=n), load, Rate(1e12, ""), price_per_hour=2.0) for n in (1, 8)
    )
    assert eight.seconds == pytest.approx(one.seconds / 8)
    assert eight.cost == pytest.approx(one.cost)


def test_assumptions_are_said():
    rate = assumed_rate(settings(CARDS["l4"], bf16=True))
    assert rate.flops == pytest.approx(0.36 * 715 / 989 * 121e12)
    assert rate.source == (
        "assumed: 36% of 87.5 TFLOP/s, 72% of the published 121; both shares were measured on an H200"
    )
    unknown = Device("a card", "cuda", 10**10, None, "bfloat16", rate_from="unknown")
    assert assumed_rate(settings(unknown, bf16=True)).flops is None
