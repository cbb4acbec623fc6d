"""Two ranks write one checkpoint, stop together when one of them gets a signal, and go on bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from preftune.errors import ConfigError
from preftune.storage.file_hashes import check_files
from preftune.training.record.manifest import read_manifest
from tests.training.dpo_runs import lora_model, trainer
from tests.training.two_ranks import run_two_ranks
from tiny import rows

from . import one_of_two_resumed_ranks

pytestmark = pytest.mark.sample(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed-ranks")
    return folder, run_two_ranks(one_of_two_resumed_ranks.__file__, folder)


def test_a_signal_to_one_rank_ends_both_after_the_step_and_they_go_on_bit_for_bit(ranks):
    folder, seen = ranks
    for rank in seen:
        assert rank["code"] == 143
        assert all(torch.equal(rank["resumed"][name], weight) for name, weight in rank["whole"].items())
        assert rank["losses"][0] == rank["losses"][1]
    assert json.loads((folder / "cut" / "run.json").read_text())["resumed_from_step"] == 5


def test_the_checkpoint_of_all_ranks_is_whole(ranks):
    folder, _ = ranks
    manifest = read_manifest(folder / "cut" / "checkpoint-5")
    assert manifest is not None
    assert manifest.processes == 2
    check_files(folder / "cut" / "checkpoint-5", manifest.files)
    expected = {"rng_state_0.pth", "rng_state_1.pth", "preftune_state.json", "preftune_state_rank1.json"}
    assert expected <= set(manifest.files)


def test_what_is_refused_is_refused_on_every_rank(ranks):
    assert all("beta (0.1 before, 0.9 now)" in rank["refused"] for rank in ranks[1])


def test_another_number_of_processes_is_a_difference(ranks):
    options = {**one_of_two_resumed_ranks.OPTIONS, "per_device_train_batch_size": 2}
    made = trainer(lora_model(lora_dropout=0.2), ranks[0] / "cut", data=rows(12), **options)
    with pytest.raises(ConfigError, match=r"the number of processes \(2 before, 1 now\)"):
        made.train(resume_from_checkpoint=str(ranks[0] / "cut" / "checkpoint-4"))
