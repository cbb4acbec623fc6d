"""KTO: TRL's numbers, and an update that does not depend on how a step is cut up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import preftune
from models_zoo import random_model
from preftune.data import load_labelled, tokenize_labelled
from preftune.errors import ConfigError
from preftune.training.step.kl_baseline import mismatched
from preftune.types import TokenizedGroup
from tests.training.two_ranks import run_two_ranks
from tiny import VOCABULARY, rows, save_tiny, tiny_model, tiny_tokenizer

from . import one_of_two_kto_ranks as ranks
from .one_of_two_kto_ranks import answers, history, made


@pytest.mark.sample(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("lora", {}),
        ("full", {"lora": False, "learning_rate": 1e-3}),
        ("weights", {"desirable_weight": 0.7, "undesirable_weight": 1.4, "beta": 0.3}),
        ("apo", {"loss_type": "apo_zero_unpaired"}),
    ],
)
def test_it_is_trl_s(case, options, tmp_path):
    ours, theirs = (made(tmp_path, library=library, **options) for library in (preftune, trl))
    assert history(ours) == pytest.approx(history(theirs), abs=1e-4)
    assert history(ours, "kl") == pytest.approx(history(theirs, "kl"), abs=2e-3)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert history(ours, name) == pytest.approx(history(theirs, name), abs=1e-3)
    assert max(history(ours, "kl")) > 0.01 or case == "apo"  # so that the baseline plays a part
    assert history(ours)[-1] < history(ours)[0] - 0.1


@pytest.mark.sample(0)
def test_the_update_does_not_depend_on_micro_batches(tmp_path, monkeypatch):
    """z is of the whole step: rows one by one, or cut by a token budget, train the same. No run finds scores of another
    one, so that own answers are scored with those to other prompts, in one group that a budget may cut.
    """

    def made(folder: Path, **options: Any) -> Any:
        monkeypatch.setenv("PREFTUNE_CACHE", str(folder / "cache"))
        return ranks.made(folder, **options)

    whole = made(tmp_path / "a")
    expected = history(whole)
    assert max(history(whole, "kl")) > 0.01
    singly = made(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert history(singly) == pytest.approx(expected, abs=2e-5)
    for budget in (40, 60, 100):
        cut = made(tmp_path / str(budget), max_tokens_per_batch=budget)
        assert history(cut) == pytest.approx(expected, abs=2e-5)
        assert history(cut, "kl") == pytest.approx(history(whole, "kl"), abs=2e-4)
        assert cut.result_facts()["reference_scores"]["computed"] == 48


@pytest.mark.sample(0)
def test_two_ranks_train_as_one(tmp_path):
    alone = made(tmp_path / "alone")
    expected = history(alone)
    one, other = run_two_ranks(ranks.__file__, tmp_path)
    weights = {name: p for name, p in alone.model.named_parameters() if p.requires_grad}
    for name, value in one["weights"].items():
        torch.testing.assert_close(value, other["weights"][name], rtol=0, atol=0)
        torch.testing.assert_close(value, weights[name].detach(), rtol=1e-3, atol=1e-4)
    assert one["loss"] == pytest.approx(expected, abs=1e-4)
    assert one["kl"] == pytest.approx(history(alone, "kl"), abs=1e-3)
    assert one["accumulated_kl"] == pytest.approx(history(alone, "kl"), abs=1e-3)
    assert one["eval_kl"][0] == pytest.approx(alone.evaluate(alone.train_dataset)["eval_kl"], abs=1e-3)


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path):
    whole = made(tmp_path / "whole", save_strategy="steps", save_steps=5)
    whole.train()
    part = made(tmp_path / "part", save_strategy="steps", save_steps=5)
    part.args.output_dir = whole.args.output_dir
    part.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-5"))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), part.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("named", [True, False])
def test_a_reference_that_no_one_else_holds_scores_the_mismatched_answers(named, tmp_path):
    folder = save_tiny(tmp_path / "reference", seed=1)
    losses = {}
    for kept in (True, False):
        reference = preftune.load_model(folder)
        trainer = preftune.KTOTrainer(
            model=tiny_model(),
            ref_model=reference if kept else folder if named else preftune.load_model(folder),
            args=preftune.KTOConfig(
                **ranks.options_for(tmp_path / f"run{kept}", max_steps=3, allow_reference_mismatch=True)
            ),
            train_dataset=answers(12),
            processing_class=tiny_tokenizer(),
        )
        losses[kept] = history(trainer)
    assert losses[False] == losses[True]


def test_the_reference_reads_a_prompt_once_a_step(tmp_path, monkeypatch):
    """Its own answer and the one to another prompt share it; in the second epoch the own score is known."""
    trainer = made(tmp_path, data=answers(8), max_steps=4, per_device_train_batch_size=4)
    read = []
    score = trainer.reference.source.score

    def reading(model, batch, engine):
        if trainer.state.global_step or read:
            read.append([len(group.completions) for group in batch.groups])
        return score(model, batch, engine)

    def first(*args, **kwargs):
        read.append([])  # what the checks of the first step read is not counted
        return measure(*args, **kwargs)

    measure = trainer._measure
    monkeypatch.setattr(trainer.reference.source, "score", reading)
    monkeypatch.setattr(trainer, "_measure", first)
    hits = history(trainer, "reference/cache_hits")
    assert [one for one in read if one] == [[2] * 4, [2] * 4, [1] * 4, [1] * 4]
    assert hits == [0.0, 0.0, 1.0, 1.0]
    assert trainer.result_facts()["reference_scores"] == {"computed": 8, "from_cache": 8}
    assert not trainer.reference.ahead


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path):
    results = []
    for size in (1, 8):
        trainer = made(tmp_path / str(size), per_device_eval_batch_size=size)
        trainer.train()
        results.append(trainer.evaluate(answers(10)))
    for name in ("eval_loss", "eval_kl", "eval_rewards/margins", "eval_rewards/accuracies"):
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-5)


def test_pairs_train_as_answers(tmp_path):
    trainer = made(tmp_path, data=rows(24))
    assert len(trainer.train_dataset) == 48
    assert history(trainer)[-1] < history(trainer)[0] - 0.1
    record = (Path(trainer.args.output_dir) / "run.json").read_text()
    assert '"answers": 48' in record
    assert '"good": 24' in record


def test_mismatched_answers_are_to_other_prompts():
    def group(prompt: int, answer: int) -> TokenizedGroup:
        return TokenizedGroup([prompt], ([answer],), (), id=str(answer))

    groups = [group(1, 11), group(1, 12), group(2, 21)]
    found = mismatched(groups, range(3))
    assert [(one.prompt_ids, one.completions[0]) for one in found] == [([1], [21]), ([1], [21]), ([2], [12])]
    assert mismatched(groups[:2], range(2)) == []


def test_bco_s_delta_is_the_mean_of_all_rewards_before_the_step(tmp_path):
    trainer = made(tmp_path, loss_type="bco")
    assert history(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert history(trainer)[-1] < history(trainer)[0] - 0.1
    count = total = 0.0
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    for number, step in enumerate(steps):
        assert step["delta"] == pytest.approx(total / count if count else 0.0, abs=1e-5)
        good = sum((4 * number + row) % 48 % 3 != 2 for row in range(4))
        total += good * step.get("rewards/chosen", 0.0) + (4 - good) * step.get("rewards/rejected", 0.0)
        count += 4
    assert "kl" not in steps[0]


@pytest.mark.parametrize("loss", ["bco", "apo_zero_unpaired"])
def test_without_kto_s_baseline_full_fine_tuning_needs_no_copy_of_the_model(loss, tmp_path):
    trainer = made(tmp_path, lora=False, loss_type=loss)
    assert trainer.reference.source.description.startswith("a pass over all rows")
    assert history(trainer)[-1] < history(trainer)[0]


def test_bco_resumes_with_its_mean_and_has_trl_s_names(tmp_path):
    options = {"method": "BCO", "save_strategy": "steps", "save_steps": 5}
    whole = made(tmp_path / "whole", **options)
    whole.train()
    part = made(tmp_path / "part", **options)
    part.args.output_dir = whole.args.output_dir
    part.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-5"))
    assert part.reward_mean == pytest.approx(whole.reward_mean, rel=1e-6)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), part.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(ConfigError, match="weights that match the prompts"):
        preftune.BCOConfig(output_dir=str(tmp_path), prompt_sample_size=512, use_cpu=True)


def test_mismatched_answers_are_cut_to_the_longest_row():
    """As TRL does. Uncut, two rows that fit make one for which a model without rope has no position."""
    long = TokenizedGroup([1] * 6, ([11, 12],), (), id="long")
    answer = TokenizedGroup([2], ([21, 22, 23, 24, 25, 26],), (), id="answer", scored=(((0, 1), (2, 6)),))
    last = TokenizedGroup([3] * 7, ([31],), (), id="last", scored=(((0, 1),),))
    found = mismatched([answer, long, last], range(3), longest=7)
    assert [(one.prompt_ids, one.completions[0]) for one in found] == [([2], [31]), ([1] * 6, [21])]
    assert found[1].spans(0) == ((0, 1),)
    (cut,) = mismatched([answer, long], range(1, 2), longest=10)
    assert (list(cut.completions[0]), cut.spans(0)) == ([21, 22, 23, 24], ((0, 1), (2, 4)))


def test_rows_that_fit_train_a_model_with_a_table_of_positions(tmp_path):
    data = [
        {"prompt": "p" * 40, "completion": "yes", "label": True},
        {"prompt": "why?", "completion": "q" * 40, "label": False},
    ]
    trainer = preftune.KTOTrainer(
        random_model("gpt2", vocab_size=VOCABULARY, n_positions=64, max_position_embeddings=64),
        args=preftune.KTOConfig(**ranks.options_for(tmp_path, max_steps=1, per_device_train_batch_size=2)),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    assert history(trainer)[0] == pytest.approx(0.5, abs=1e-4)


def test_the_ratio_of_good_and_bad_is_advised(tmp_path, caplog):
    caplog.set_level("INFO", logger="preftune")
    made(tmp_path, data=answers(48))
    assert "32 good and 16 bad answers" in caplog.text
    assert "undesirable_weight=2 makes it 1" in caplog.text


def test_settings_far_from_what_people_use_are_named(tmp_path, caplog):
    caplog.set_level("INFO", logger="preftune")
    made(tmp_path / "a", beta=30.0)
    assert (
        "beta=30 is outside 0.05..0.5, the usual range of KTO: the policy will hardly leave the reference"
        in caplog.text
    )
    made(tmp_path / "b", loss_type="bco", beta=1e-4, learning_rate=0.5)
    assert "the usual range of BCO: the policy may drift far from the reference. 0.1 is usual." in caplog.text
    assert "learning_rate=0.5 destroys a language model" in caplog.text


def test_one_row_a_step_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="an optimiser step has only one row"):
        made(tmp_path, per_device_train_batch_size=1)


def test_a_row_of_weight_0_has_no_loss(tmp_path):
    data = [{**row, "weight": 0.0} if not row["label"] else {**row, "weight": 1.0} for row in answers(12)]
    trainer = made(tmp_path, data=data, max_steps=1)
    assert history(trainer)[0] == pytest.approx(0.5 * 3 / 4, abs=1e-4)


def test_a_prompt_whose_end_belongs_to_an_answer_is_the_same_prompt():
    """A token that spans the end of the prompt is a part of the answer, and the prompt's ids are fewer."""
    same, merged, other = ((5, 6, 7), (1,)), ((5, 6), (9, 2)), ((5, 8, 7), (3,))
    groups = [TokenizedGroup(prompt, (answer,), ()) for prompt, answer in (same, merged, other)]
    assert [one.completions[0] for one in mismatched(groups, range(3))] == [(3,), (3,), (9, 2)]
    assert mismatched(groups[:2], range(2)) == []


def test_the_tokenizer_s_merges_make_such_prompts():
    backend = Tokenizer(models.BPE(vocab={"<e>": 0, "a": 1, ":": 2, "b": 3, ":b": 4}, merges=[(":", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", pad_token="<e>")
    data = [{"prompt": "a:", "completion": text, "label": True} for text in ("a", "b")]
    groups = list(tokenize_labelled(load_labelled([*data, {**data[0], "prompt": "b:"}]), tokenizer)[0])
    assert [list(group.prompt_ids) for group in groups] == [[1, 2], [1], [3, 2]]
    assert [list(one.completions[0]) for one in mismatched(groups, range(3))] == [[1, 0], [1, 0], [4, 0]]
