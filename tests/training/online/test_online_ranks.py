"""Methods that sample, on two ranks (gloo): what one process does with the same batch, with half of the work each."""

from __future__ import annotations

import pytest
import torch

from tests.training.two_ranks import cases_of, run_two_ranks

from . import one_of_two_online_ranks as ranks

TIMED = ("time", "_per_second", "_runtime", "total_flos", "memory/", "useful_tflops")


@pytest.fixture(scope="module")
def two_ranks(request, tmp_path_factory):
    cases = cases_of(request) | {"rloo"}
    return run_two_ranks(ranks.__file__, tmp_path_factory.mktemp("ranks"), cases=sorted(cases))


@pytest.mark.sample("grpo", "online", "ppo")
@pytest.mark.parametrize("case", ranks.CASES)
def test_two_ranks_do_what_one_process_does(case, two_ranks, tmp_path):
    alone = ranks.run(case, tmp_path, ranks=1)
    for rank in two_ranks:
        assert rank[case]["sampled"] == alone["sampled"]
        for one, two in zip(alone["history"], rank[case]["history"], strict=True):
            assert one.keys() == two.keys()
            compared = {key: value for key, value in one.items() if not any(mark in key for mark in TIMED)}
            assert {key: two[key] for key in compared} == pytest.approx(compared, rel=1e-4, abs=1e-5, nan_ok=True)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(rank[case]["weights"][name], weight, rtol=1e-3, atol=1e-5, msg=name)
            assert torch.equal(rank[case]["weights"][name], two_ranks[0][case]["weights"][name]), name


def test_an_error_of_one_rank_ends_all_of_them(two_ranks):
    for rank in two_ranks:
        assert "no connection" in rank["failing"]


def test_each_rank_scores_its_share(two_ranks, tmp_path):
    alone = ranks.run("rloo", tmp_path, ranks=1)["rewarded"]
    assert [rank["rloo"]["rewarded"] for rank in two_ranks] == [alone / 2, alone / 2]
