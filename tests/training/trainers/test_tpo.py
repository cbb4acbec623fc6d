"""TPO: the gold answer in every form of rows, its likelihood by the oracle, any batch, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

import preftune
from preftune.cli.main import main
from preftune.errors import ConfigError, DatasetError
from preftune.logps import naive_logps, pack
from preftune.reference import inference
from tests.training.dpo_runs import trainer as make
from tests.training.trainers.test_reference_free import triples
from tiny import rows, save_tiny, tiny_model, tiny_tokenizer


def decoded(group: Any) -> list[str]:
    return [tiny_tokenizer().decode(list(ids), skip_special_tokens=True) for ids in group.completions]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [turn("user", "Why?")]
FORMS = {
    "texts": {"prompt": "Why?", "chosen": " so", "rejected": " no", "reference": " so it is"},
    "the prompt repeated": {"prompt": "Why?", "chosen": " so", "rejected": " no", "reference": "Why? so it is"},
    "turns": {
        "prompt": ASKED, "chosen": [turn("assistant", "so")], "rejected": [turn("assistant", "no")],
        "reference": [turn("assistant", "so it is")],
    },
    "without a prompt": {
        "chosen": [*ASKED, turn("assistant", "so")], "rejected": [*ASKED, turn("assistant", "no")],
        "reference": [*ASKED, turn("assistant", "so it is")],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_gold_answer_is_the_third_completion(form, tmp_path):
    run = make(tiny_model(), tmp_path, data=[FORMS[form]] * 2, loss_type="tpo", guard="off")
    group = run.train_dataset[0]
    assert [text.strip() for text in decoded(group)] == ["so", "no", "so it is"]
    assert (group.pairs[0][:2], group.gold) == ((0, 1), 2)


def test_the_chosen_answer_may_be_the_gold_one(tmp_path):
    data = [{**row, "reference": row["chosen"]} for row in rows(4)]
    run = make(tiny_model(), tmp_path, data=data, loss_type="tpo", guard="off")
    assert len(run.train_dataset) == 4


def test_the_likelihood_is_the_oracle_s_mean_over_gold_tokens(tmp_path):
    run = make(tiny_model(), tmp_path, data=triples(6), loss_type="tpo", tpo_alpha=2.0, guard="off")
    without = make(tiny_model(), tmp_path / "b", data=triples(6), loss_type="tpo", tpo_alpha=0.0, guard="off")
    assert all(len(group.completions) == 2 for group in without.train_dataset)
    batch = pack(list(run.train_dataset))
    with inference(run.model):
        logps_T = naive_logps(run.model, batch)
    golden = logps_T[batch.owner_T % 3 == 2]
    found = run.evaluate(run.train_dataset)["eval_loss"] - without.evaluate(without.train_dataset)["eval_loss"]
    assert found == pytest.approx(-2.0 * float(golden.mean()), rel=1e-5)


def test_long_gold_answers_are_cut_and_counted(tmp_path):
    data = [{**row, "reference": "gold " * 40} for row in triples(4)]
    run = make(tiny_model(), tmp_path, data=data, loss_type="tpo", max_length=60, guard="off")
    assert run.reports["train"].truncated["reference"].count == 4
    assert max(run.train_dataset.segment_lengths) <= 60


def test_the_command_trains_on_triples(tmp_path):
    data = tmp_path / "triples.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in triples(8)))
    arguments = f"dpo --model {save_tiny(tmp_path / 'model')} --data {data} --loss_type tpo --max_steps 1 --use_cpu"
    assert main([*arguments.split(), "--output_dir", str(tmp_path / "run"), "--report_to", "none"]) == 0
    notes = json.loads((tmp_path / "run" / "audit.json").read_text())["train"]["notes"]
    assert not any("reference" in note for note in notes)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DatasetError, match="has no column 'reference', the third answer"):
        make(tiny_model(), tmp_path, data=rows(4), loss_type="tpo")
    with pytest.raises(DatasetError, match="missing or null"):
        make(tiny_model(), tmp_path, data=[{**row, "reference": None} for row in rows(4)] + triples(1), loss_type="tpo")
    pairs = make(tiny_model(), tmp_path, data=rows(4), guard="off").train_dataset
    with pytest.raises(ConfigError, match="row 0 has no gold answer"):
        make(tiny_model(), tmp_path, data=pairs, loss_type="tpo", guard="off").train()
    with pytest.raises(ConfigError, match="a gold answer belongs to its row"):
        preftune.DPOConfig(str(tmp_path), loss_type="tpo", group_by_prompt=True)
    with pytest.raises(ConfigError, match="is not a loss of TPOTrainer"):
        preftune.TPOConfig(str(tmp_path), loss_type="dpo")
    assert preftune.TPOConfig(str(tmp_path), loss_type="tpo-l", use_cpu=True, bf16=False).loss_type == ["tpo_l"]
