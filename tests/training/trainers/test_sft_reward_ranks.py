"""SFT and reward models on two ranks (gloo): what one process does with twice the batch."""

from __future__ import annotations

import pytest
import torch

from tests.training.two_ranks import run_two_ranks

from . import one_of_two_sft_reward_ranks as ranks

COMPARED = {
    "sft": {"loss", "grad_norm", "mean_token_accuracy"},
    "reward": {"loss", "grad_norm", "margin", "accuracy", "mean_reward"},
}

pytestmark = pytest.mark.sample(0)  # test_sharded_ranks.py has both


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder that two processes wrote into, and what each of them saw."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, run_two_ranks(ranks.__file__, folder)


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_ranks_do_what_one_process_does_with_twice_the_batch(case, two_ranks, tmp_path):
    folder, both = two_ranks
    alone, compared = ranks.run(case, tmp_path, ranks=1), COMPARED[case.partition(",")[0]]
    steps = [entry for entry in alone["history"] if "loss" in entry]
    assert len(steps) == 3
    for one, two in zip(steps, [entry for entry in both[0][case]["history"] if "loss" in entry], strict=True):
        expected = {key: one[key] for key in compared}
        assert {key: two[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    evaluated = {f"eval_{key}": alone["evaluated"][f"eval_{key}"] for key in compared - {"grad_norm"}}
    if case.startswith("reward"):
        evaluated["eval_calibration_error"] = alone["evaluated"]["eval_calibration_error"]
    for rank in both:
        found = {key: rank[case]["evaluated"][key] for key in evaluated}
        assert found == pytest.approx(evaluated, rel=1e-4, abs=1e-5)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(rank[case]["weights"][name], weight, rtol=1e-3, atol=1e-5, msg=name)
    assert (folder / case / "model.safetensors").is_file()
    assert (folder / "reward" / "preftune_reward.json").is_file()
