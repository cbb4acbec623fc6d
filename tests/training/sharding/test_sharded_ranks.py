"""Two ranks that share one model (FSDP2 over gloo) do what one process does with the whole of it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from preftune import load_model
from preftune.errors import ModelError
from tests.training.two_ranks import cases_of, run_two_ranks

from . import one_of_two_sharded_ranks as ranks

RESUMED = ["lora", "full", "reward"]
"""The head of a reward model has one row, of which the second rank has none."""
EXACT = {"rtol": 1e-3, "atol": 1e-5}
BFLOAT16 = {"rel": 0.05, "abs": 0.05}
"""Products of other row lengths round otherwise."""


@pytest.fixture(scope="module")
def two_ranks(request, tmp_path_factory):
    """The folder that two processes wrote into, and what each of them saw."""
    folder = tmp_path_factory.mktemp("ranks")
    resumed = cases_of(request, "resumed")
    for case in resumed:
        ranks.made(case, folder / "alone", ranks=1, save_strategy="steps", save_steps=1).train()
    cases = cases_of(request) | {"eight layers"} | {f"{case}, resumed" for case in resumed}
    return folder, run_two_ranks(ranks.__file__, folder, cases=sorted(cases))


@pytest.mark.sample("lora", "full", "uneven, full", "kto", "sft", "reward")
@pytest.mark.parametrize("case", ranks.CASES)
def test_sharded_ranks_do_what_one_process_does(case, two_ranks, tmp_path):
    _, both = two_ranks
    alone = ranks.run(case, tmp_path, ranks=1)
    loose = BFLOAT16 if case == "bfloat16" else {"rel": 1e-4, "abs": 1e-5}
    steps = [entry for entry in alone["history"] if "loss" in entry]
    assert len(steps) == 3
    assert all(rank[case]["sharded"] for rank in both)
    assert not alone["sharded"]
    for one, two in zip(steps, [entry for entry in both[0][case]["history"] if "loss" in entry], strict=True):
        compared = [key for key in one if key in ("loss", "grad_norm") or key.startswith(("rewards/", "logps/"))]
        assert {key: two[key] for key in compared} == pytest.approx({key: one[key] for key in compared}, **loose)
    for rank in both:
        assert rank[case]["evaluated"]["eval_loss"] == pytest.approx(alone["evaluated"]["eval_loss"], **loose)
        assert rank[case]["fingerprint"] == alone["fingerprint"]
        assert rank[case]["weights"].keys() == alone["weights"].keys()
        start = dict(ranks.CASES[case][1]().named_parameters()) if case == "bfloat16" else {}
        for name, weight in alone["weights"].items():
            found = rank[case]["weights"][name]
            if start:  # Adam makes steps of rounding
                assert (found - weight).norm() <= 0.1 * (weight - start[name].detach()).norm(), name
            else:
                torch.testing.assert_close(found, weight, **EXACT, msg=name)


@pytest.mark.sample("lora", "full")
@pytest.mark.parametrize("case", ["lora", "full", "bfloat16"])
def test_margins_begin_at_zero(case, two_ranks):
    """Gathered in bfloat16, embeddings and norms would round otherwise than when the reference was scored."""
    for rank in two_ranks[1]:
        first = rank[case]["history"][0]
        assert first["rewards/margins"] == 0
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)


def test_each_rank_holds_half_of_weights_gradients_and_optimiser(two_ranks, tmp_path):
    alone = ranks.run("eight layers", tmp_path, ranks=1)["held"]
    for of, count in alone.items():
        parts = [rank["eight layers"]["held"][of] for rank in two_ranks[1]]
        assert sum(parts) == count > 0
        assert max(parts) <= 0.51 * count, of


def test_the_first_time_that_memory_runs_out_ends_the_run(two_ranks):
    """The others are in the middle of a pass, and cannot repeat the step."""
    for rank in two_ranks[1]:
        assert "max_tokens_per_batch" in rank["out of memory"]


@pytest.mark.sample("lora", "full", "sft", "reward")
@pytest.mark.parametrize("case", ["lora", "full", "tied", "received in bfloat16", "sft", "reward"])
def test_what_is_saved_is_whole(case, two_ranks, tmp_path):
    folder, _ = two_ranks
    ranks.run(case, tmp_path, ranks=1)
    file = "adapter_model.safetensors" if case == "lora" else "model.safetensors"
    one, two = (load_file(place / case / file) for place in (tmp_path, folder))
    assert two.keys() == one.keys()
    for name, weight in one.items():
        assert two[name].dtype == weight.dtype
        if weight.dtype == torch.bfloat16:  # float32 weights that differ in the last bit may be rounded apart
            assert (two[name] == weight).float().mean() > 0.999, name
            torch.testing.assert_close(two[name], weight, rtol=2**-7, atol=0, msg=name)
        else:
            torch.testing.assert_close(two[name], weight, **EXACT, msg=name)
    if case != "lora":
        configs = [json.loads((place / case / "config.json").read_text()) for place in (tmp_path, folder)]
        assert configs[0] == configs[1]


@pytest.mark.sample("full", "reward")
@pytest.mark.parametrize("resumed", RESUMED)
def test_the_weights_of_the_best_checkpoint_are_those_of_one_process(resumed, two_ranks, tmp_path):
    alone = ranks.best(resumed, tmp_path, ranks=1)
    for rank in two_ranks[1]:
        for name, weight in alone.items():
            torch.testing.assert_close(rank[f"{resumed}, best"][name], weight, **EXACT, msg=name)
            torch.testing.assert_close(rank[f"{resumed}, best in parts"][name], weight, **EXACT, msg=name)


@pytest.mark.sample("full", "reward")
@pytest.mark.parametrize("resumed", RESUMED)
def test_a_checkpoint_goes_on_with_another_number_of_ranks(resumed, two_ranks, tmp_path):
    folder, both = two_ranks
    alone = ranks.run(resumed, tmp_path / "whole", ranks=1)["weights"]
    back = ranks.made(resumed, tmp_path / "again", ranks=1, max_steps=4, allow_changed=True)
    back.train(resume_from_checkpoint=str(folder / "continued" / resumed / "checkpoint-3"))
    parts = ranks.made(resumed, tmp_path / "parts", ranks=1, max_steps=4, allow_changed=True)
    parts.train(resume_from_checkpoint=str(folder / "in parts" / resumed / "checkpoint-3"))
    further = ranks.made(resumed, tmp_path / "further", ranks=1, max_steps=4)
    further.train()
    here = {name: p.detach() for name, p in further.model.named_parameters() if p.requires_grad}
    for name, weight in alone.items():
        for rank in both:
            torch.testing.assert_close(rank[f"{resumed}, continued"][name], weight, **EXACT, msg=name)
            torch.testing.assert_close(rank[f"{resumed}, in parts"][name], here[name], **EXACT, msg=name)
        for one in (back, parts):
            found = dict(one.model.named_parameters())[name].detach()
            torch.testing.assert_close(found, here[name], **EXACT, msg=name)


@pytest.mark.sample("full")
@pytest.mark.parametrize("resumed", ranks.JUDGED)
def test_guard_and_judge_see_the_answers_of_one_process(resumed, two_ranks, tmp_path):
    """No rank has the whole weights: all generate together, also after a resume."""
    alone = ranks.answering(resumed, tmp_path, ranks=1)
    for rank in two_ranks[1]:
        found = rank[f"{resumed}, answers"]
        for steps in (2, 3):
            assert found[f"{steps} steps"] == alone[f"{steps} steps"]
            assert len(alone[f"{steps} steps"]["eval_answers.jsonl"]) == 4 * steps
            assert len({line["policy"] for line in alone[f"{steps} steps"]["samples.jsonl"]}) > 1
            assert found[f"{steps} on"]
            for one, two in zip(alone[f"{steps} looks"], found[f"{steps} looks"], strict=True):
                compared = [key for key in one if key not in ("time", "guard/seconds", "guard/share_of_time")]
                assert {k: two[k] for k in compared} == pytest.approx({k: one[k] for k in compared}, rel=1e-3, abs=1e-4)
            assert len(alone[f"{steps} looks"]) == steps


@pytest.mark.sample("full")
@pytest.mark.parametrize("resumed", ["lora", "full"])
def test_each_rank_writes_its_part_of_a_checkpoint(resumed, two_ranks):
    folder, _ = two_ranks
    checkpoint = folder / "in parts" / resumed / "checkpoint-3"
    for what in ["optimizer_of_ranks"] + ["weights_of_ranks"] * (resumed == "full"):
        files = list((checkpoint / what).glob("*.safetensors"))
        assert len(files) == 2
        sizes = [sum(tensor.numel() for tensor in load_file(file).values()) for file in files]
        assert max(sizes) <= 0.6 * sum(sizes)
    assert (checkpoint / "model.safetensors").exists() is False
    if resumed == "full":
        with pytest.raises(ModelError, match="only training continues"):
            load_model(str(checkpoint))
    assert (checkpoint / "adapter_model.safetensors").exists() == (resumed == "lora")
