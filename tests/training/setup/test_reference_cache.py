"""Across runs: what the reference said once is never computed again, and what changed is never answered from before.

That holds for the self-check of a second run too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.errors import ReferenceMismatchError
from preftune.reference.inventory import list_stores
from preftune.storage.cache_folder import cache_folder
from tests.training.dpo_runs import LN2, logged, lora_model, naive_scores, nudge, reference_scores, trainer
from tests.training.record.test_resume import OPTIONS, PowerCut
from tiny import chat_rows, rows, tiny_model, tiny_tokenizer

from .test_reference_table import counted_scores


@pytest.mark.parametrize("make", [lora_model, tiny_model])
def test_a_beta_sweep_of_five_asks_the_reference_nothing(make, tmp_path):
    options: dict[str, Any] = {"data": rows(6), "eval_dataset": rows(2, start=40), "eval_strategy": "epoch"}
    trainer(make(), tmp_path / "first", **options).train()
    losses = set()
    for beta in (0.05, 0.1, 0.2, 0.3, 0.5):
        run = trainer(make(), tmp_path / str(beta), beta=beta, **options)
        scored = counted_scores(run)
        run.train()
        assert scored == []
        assert run.reference.misses == 0
        assert logged(run, "reference/cache_hits") == [1.0] * 3
        losses.add(round(logged(run)[-1], 6))
    assert len(losses) == 5  # they were five different runs


def test_a_resumed_run_asks_the_reference_nothing_and_its_metrics_say_so(tmp_path):
    options = {**OPTIONS, "data": rows(14), "eval_dataset": rows(3, start=40)}
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(lora_model(), tmp_path, callbacks=[PowerCut()], precompute_ref_log_probs=True, **options).train()
    resumed = trainer(lora_model(), tmp_path, **options)
    scored = counted_scores(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert scored == []
    assert resumed.reference.misses == 0
    assert logged(resumed, "reference/cache_hits")[-2:] == [1.0] * 2  # of the steps after the checkpoint


@pytest.mark.parametrize("make", [lora_model, tiny_model])
def test_a_second_run_in_half_precision_asks_the_reference_nothing(make, tmp_path):
    for folder in ("first", "second"):
        run = trainer(make(), tmp_path / folder, bf16=True, data=rows(6))
        scored = counted_scores(run)
        run.train()
        assert bool(scored) == (folder == "first")
    assert logged(run, "reference/cache_hits") == [1.0] * 3


def test_a_chosen_reference_in_half_precision_is_compared_bit_for_bit_every_time(tmp_path):
    """Its scores may be known from a run with another policy, which differed from this one by less than rounding."""
    for folder in ("first", "second"):
        run = trainer(lora_model(), tmp_path / folder, ref_model=tiny_model(), bf16=True)
        scored = counted_scores(run)
        run.train()
        assert scored


def changed_weight() -> tuple[Any, dict[str, Any]]:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.5
    return model, {}


def changed_template() -> tuple[Any, dict[str, Any]]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['role'] + '\n'", "m['role'] + ': '")
    return tiny_model(), {"processing_class": tokenizer}


def changed_truncation() -> tuple[Any, dict[str, Any]]:
    return tiny_model(), {"max_length": 56}


def completions(run: Any) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    return {(tuple(g.prompt_ids), tuple(c)) for g in run.train_dataset for c in g.completions}


@pytest.mark.parametrize("change", [changed_weight, changed_template, changed_truncation])
def test_what_changed_is_a_miss_and_never_a_wrong_hit(change, tmp_path):
    epoch: dict[str, Any] = {"data": chat_rows(8), "max_steps": 4}
    first = trainer(lora_model(), tmp_path / "first", **epoch)
    first.train()
    model, options = change()
    second = trainer(lora_model(model), tmp_path / "second", **epoch, **options)
    expected = naive_scores(model, second.train_dataset)
    second.train()
    new = completions(second) if change is changed_weight else completions(second) - completions(first)
    assert len(new) > 0
    assert second.reference.misses == len(new)
    if change is changed_truncation:  # what was not cut is known
        assert 0 < second.reference.hits == len(completions(second) & completions(first))
    found = reference_scores(second, second.train_dataset)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("make", [lora_model, tiny_model])
def test_scores_of_a_model_that_was_changed_before_training_are_kept_under_its_own_address(make, tmp_path):
    run = trainer(make(), tmp_path / "first")
    made_of = run.reference.source.fingerprint
    unwrapped = run.model.get_base_model() if make is lora_model else run.model
    source = tiny_model(seed=5)
    if make is lora_model:
        unwrapped.model.embed_tokens.load_state_dict(source.model.embed_tokens.state_dict())
    else:
        unwrapped.load_state_dict(source.state_dict())
    run.train()
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)
    assert run.reference.source.fingerprint != made_of
    assert run._record.facts["reference"]["fingerprint"] == run.reference.source.fingerprint
    innocent = trainer(make(), tmp_path / "second")
    expected = naive_scores(tiny_model(), innocent.train_dataset)
    found = reference_scores(innocent, innocent.train_dataset)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_an_adapter_that_was_loaded_after_the_trainer_was_made_is_the_reference(tmp_path):
    run = trainer(lora_model(), tmp_path)
    nudge(run.model, 0.05)
    run.evaluate(rows(2, start=40))
    assert "frozen copy" in run.reference.source.description
    run.train()
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)


def test_a_reference_model_that_was_changed_after_it_was_let_go_scores_no_new_rows(tmp_path):
    other = tiny_model()
    run = trainer(lora_model(), tmp_path, ref_model=other)
    run.train()
    run.evaluate(rows(2, start=40))
    with torch.no_grad():
        other.model.norm.weight.mul_(2.0)
    with pytest.raises(ReferenceMismatchError, match="weights of the ref_model were changed"):
        run.evaluate(rows(2, start=60))


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_a_run_whose_cache_was_torn_scores_again_and_trains_the_same(kept, tmp_path, caplog):
    first = trainer(tiny_model(), tmp_path / "first")
    first.train()
    first.reference.store.close()
    (file,) = list_stores(cache_folder() / "reference")
    file.path.write_bytes(file.path.read_bytes()[: int(file.size * kept)])
    again = trainer(tiny_model(), tmp_path / "again")
    again.train()
    assert any("was damaged" in line for line in caplog.messages)
    assert logged(again) == pytest.approx(logged(first), rel=1e-6)
    third = trainer(tiny_model(), tmp_path / "third")
    scored = counted_scores(third)
    third.train()
    assert scored == []


def test_the_store_of_a_run_says_whose_scores_it_holds(tmp_path):
    model = tiny_model()
    model.config._name_or_path = "somebody/small"
    run = trainer(lora_model(model), tmp_path)
    run.train()
    (file,) = list_stores(cache_folder() / "reference")
    assert file.path == Path(run.reference.store.path)
    assert file.model == "somebody/small"
    assert (file.note["engine"], file.note["dtype"], file.note["device"]) == ("packed", "float32", "cpu")
    assert file.note["reference"] == "the same model with its adapter switched off"
    assert file.completions == 12  # three steps of two pairs
