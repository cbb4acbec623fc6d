"""Ranked and scored lists through `DPOTrainer`: the oracle's loss, any batch and budget, resume, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import preftune
from preftune.cli.main import main
from preftune.data import GroupDataset
from preftune.errors import ConfigError
from preftune.logps import naive_logps, pack
from preftune.losses import LOSSES
from preftune.reference import inference
from preftune.training.step.pair_loss import lists_of
from preftune.types import Preference
from tests.training.dpo_runs import logged, lora_model
from tests.training.dpo_runs import trainer as make
from tiny import rows, save_tiny, tiny_model

NAMES = sorted(name for name, loss in LOSSES.items() if loss.lists)
ANSWERS = ("ok", "well, maybe so", "no idea at all really", "hm, no")


def scored_rows(count: int) -> list[dict[str, Any]]:
    """Lists of two, three and four answers; short ones are better."""
    made = []
    for place, row in enumerate(rows(count)):
        answers = [f"{answer} {row['chosen']}" for answer in ANSWERS[: 2 + place % 3]]
        made.append({"prompt": row["prompt"], "responses": answers, "scores": [4.0 - len(a) / 10 for a in answers]})
    return made


def by_the_oracle(run: Any, name: str) -> float:
    """The mean loss of all lists, from one sequence at a time in float64, by the formulas of the papers."""
    model, groups, beta = run.model.double(), list(run.train_dataset), run.args.beta
    batch = pack(groups)
    with inference(model):
        with model.disable_adapter():
            known = naive_logps(model, batch)
        ratios = naive_logps(model, batch) - known
    total, first = 0.0, 0
    for group in groups:
        r = [
            beta * float(ratios[batch.owner_T == first + place].sum()) for place in range(len(group.completions))
        ]  # the best completion stands first
        first += len(r)
        if name == "plackett_luce":
            total += sum(float(torch.tensor(r[k:]).logsumexp(0)) - r[k] for k in range(len(r)))
        else:
            total += float(torch.tensor(r).logsumexp(0)) - r[0]
    return total / len(groups)


@pytest.mark.parametrize("name", ["plackett_luce", "info_nca"])
def test_the_loss_is_the_oracle_s(name, tmp_path):
    run = make(lora_model(tiny_model(dtype=torch.float64)), tmp_path, data=scored_rows(9), loss_type=name, guard="off")
    run.train()
    found = run.evaluate(run.train_dataset)["eval_loss"]
    assert found == pytest.approx(by_the_oracle(run, name), rel=1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", NAMES)
def test_the_update_depends_neither_on_batches_nor_on_the_budget(name, tmp_path):
    def losses(folder: str, **options: Any) -> list[float]:
        run = make(
            tiny_model(),
            tmp_path / folder,
            data=scored_rows(12),
            loss_type=name,
            learning_rate=1e-3,
            max_steps=6,
            **options,
        )
        run.train()
        assert run.train_dataset.pairs == 12
        return logged(run)

    expected = losses("a", per_device_train_batch_size=4)
    singly = losses("b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert singly == pytest.approx(expected, abs=2e-5)
    assert losses("c", per_device_train_batch_size=4, max_tokens_per_batch=60) == pytest.approx(expected, abs=2e-5)
    assert expected[5] < expected[2]  # the same lists


def test_lists_of_pairs_train_as_dpo(tmp_path):
    """To the bit: the same loss, the same gradient."""
    models = []
    for name in ("plackett_luce", "sigmoid"):
        run = make(tiny_model(), tmp_path / name, loss_type=name, learning_rate=1e-3)
        run.train()
        models.append((logged(run), [p.detach().clone() for p in run.model.parameters()]))
    assert models[0][0] == models[1][0]
    assert all(map(torch.equal, models[0][1], models[1][1]))


def test_metrics_are_of_the_best_and_the_worst_and_of_all_ordered_pairs(tmp_path):
    run = make(lora_model(), tmp_path, data=scored_rows(6), loss_type="plackett_luce", guard="off")
    run.train()
    with torch.no_grad():  # so that not all pairs are right
        for name, parameter in run.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    batch = pack(list(run.train_dataset))
    known = run.reference(run.model, batch)
    with inference(run.model):
        lists = lists_of(batch, run.engine(run.model, batch), known)
    rewards = [row[there].tolist() for row, there in zip(0.1 * lists.ratio_NK, lists.there_NK, strict=True)]
    pairs = [[one > other for place, one in enumerate(row) for other in row[place + 1 :]] for row in rewards]
    found = run.evaluate(run.train_dataset)
    margin = sum(row[0] - row[-1] for row in rewards) / len(rewards)
    assert found["eval_rewards/margins"] == pytest.approx(margin, abs=1e-5)
    accuracy = sum(sum(row) / len(row) for row in pairs) / len(pairs)
    assert found["eval_rewards/accuracies"] == pytest.approx(accuracy, abs=1e-6)
    assert 0 < accuracy < 1


def test_weights_of_rows_are_factors_of_their_lists(tmp_path):
    """With all but one list at weight 0, its loss is all there is."""
    data = scored_rows(6)
    run = make(tiny_model(), tmp_path / "a", data=data, loss_type="plackett_luce")
    weighed = [{**row, "weight": 3.0 if place == 2 else 0.0} for place, row in enumerate(data)]
    other = make(tiny_model(), tmp_path / "b", data=weighed, loss_type="plackett_luce")
    alone = run.evaluate(GroupDataset.from_groups([run.train_dataset[2]]))["eval_loss"]
    assert other.evaluate(other.train_dataset)["eval_loss"] == pytest.approx(3 * alone / 6, rel=1e-6)


def test_reference_scores_are_found_again_and_a_resumed_run_is_the_same_to_the_bit(tmp_path):
    options: dict[str, Any] = {
        "data": scored_rows(12), "loss_type": ["lipo", "sft"], "loss_weights": [1.0, 0.1], "max_steps": 6,
        "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3,
    }  # fmt: skip
    whole = make(tiny_model(), tmp_path, **options)
    whole.train()
    part = make(tiny_model(), tmp_path, **options)
    part.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert part.reference.misses == 0
    for one, other in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_command_trains_on_ranked_rows(tmp_path, caplog):
    data = tmp_path / "ranked.jsonl"
    lines = [{"prompt": row["prompt"], "ranked_responses": [*row["responses"], "so"]} for row in scored_rows(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = save_tiny(tmp_path / "model")
    arguments = f"dpo --model {model} --data {data} --loss_type plackett_luce --eval_fraction 0.2 --eval_strategy epoch"
    arguments += f" --output_dir {tmp_path / 'run'} --max_steps 2 --use_cpu --report_to none --guard off --as_chat"
    assert main(arguments.split()) == 0
    assert "60 train pairs form 10 lists of 3 to 5 answers. The batch size counts lists." in caplog.text
    audit = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert audit["train"]["rows_in"] > 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": ["plackett_luce", "ipo"]}, "ipo takes pairs, but the others take ranked lists"),
        ({"loss_type": "nca", "ld_alpha": 0.5}, "ld_alpha=0.5 is not honoured with loss_type=nca"),
        ({"loss_type": "lipo", "group_by_prompt": True}, "a ranked list is already one group"),
        ({"loss_type": "lipo", "nca_tau": 1.0}, "nca_tau=1.0 has no effect with loss_type=lipo"),
        ({"loss_type": "nca", "nca_tau": 0.0}, "nca_tau"),
        ({"loss_type": "lipo", "lipo_labels": "ranks"}, "lipo_labels"),
    ],
)
def test_what_lists_cannot_have_is_refused(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        preftune.DPOConfig(output_dir=str(tmp_path), **options)


def test_margins_and_ratings_that_contradict_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="the rows have margins, which loss_type=lipo does not use"):
        make(tiny_model(), tmp_path, data=preftune.load_pairs(scored_rows(4), margin_from_scores=1.0), loss_type="lipo")
    turned = [
        {"prompt": "a?", "chosen": one, "rejected": other, "score_chosen": 2.0, "score_rejected": 1.0}
        for one, other in (("b", "c"), ("c", "b"))
    ]
    with pytest.raises(ConfigError, match="contradict each other"):
        make(tiny_model(), tmp_path, data=turned, loss_type="lipo")


def test_tokenised_pairs_of_one_prompt_are_lists_of_two(tmp_path):
    run = make(tiny_model(), tmp_path, data=scored_rows(4), loss_type="plackett_luce")
    group = run.train_dataset[2]
    unrated = replace(group, scores=(), pairs=(Preference(0, 1), Preference(1, 2)))
    both = make(tiny_model(), tmp_path, data=GroupDataset.from_groups([unrated]), loss_type="plackett_luce")
    pairs = make(tiny_model(), tmp_path, data=GroupDataset.from_groups([unrated]), loss_type="sigmoid")
    assert both.evaluate(both.train_dataset)["eval_loss"] == pairs.evaluate(pairs.train_dataset)["eval_loss"]
