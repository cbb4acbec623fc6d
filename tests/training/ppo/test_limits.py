"""A run of PPO ends after so many tokens, those that it sampled included."""

from __future__ import annotations

import json
from pathlib import Path

from .ppo_runs import trainer


def test_a_run_ends_after_so_many_tokens_sampled_and_trained_on_over_its_resumes(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", save_strategy="steps", save_steps=4, max_steps=8)
    whole.train()
    used = json.loads((tmp_path / "whole/run.json").read_text())["spent"]
    assert used["tokens"] > 0
    assert used["seconds"] > 0
    made = trainer(tmp_path / "cut", max_steps=8, max_train_tokens=used["tokens"] // 2)
    made.train()
    record = json.loads((tmp_path / "cut/run.json").read_text())
    assert 0 < record["steps"] < 8
    assert record["ended_by"] == "max_train_tokens"
    assert used["tokens"] // 2 <= record["spent"]["tokens"] < used["tokens"]
    again = trainer(tmp_path / "whole", max_steps=8)
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert json.loads((tmp_path / "whole/run.json").read_text())["spent"]["tokens"] == used["tokens"]
