"""Every row of the design's table "who is the reference?", by short runs against a copy of the model as received.

Also what TRL gets wrong here: the reference of a model in memory is what the model is, never what its name says.
"""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM, TrainerCallback

from preftune.errors import ConfigError, ModelError, ReferenceMismatchError
from preftune.reference import AdapterOff, AsReceived, ExplicitModel, FrozenCopy
from preftune.training.step.collate import probes
from tests.training.dpo_runs import LN2, logged, lora_config, lora_model, naive_scores, nudge, reference_scores, trainer
from tiny import rows, save_tiny, tiny_model


def with_biases() -> Any:
    return tiny_model(attention_bias=True)


def saved_and_loaded(folder: Any) -> Any:
    """An adapter that supervised fine-tuning left on disk, loaded to be trained further."""
    lora_model(trained=True).save_pretrained(folder / "sft")
    return PeftModel.from_pretrained(tiny_model(), folder / "sft", is_trainable=True)


def two_adapters(folder: Any) -> Any:
    """The second of two adapters is trained; both arrive with weights of their own."""
    lora_model(trained=True).save_pretrained(folder / "one")
    other = lora_model(r=2)
    nudge(other, 0.03)
    other.save_pretrained(folder / "two")
    model = PeftModel.from_pretrained(tiny_model(), folder / "one")
    model.load_adapter(folder / "two", "second", is_trainable=True)
    model.set_adapter("second")
    return model


def like_loftq() -> Any:
    """Base weights replaced by rounded ones, the adapter holds most of the rest (PEFT's own needs scipy)."""
    model = lora_model()
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_A"):
                weight = module.base_layer.weight
                rounded = (weight * 8).round() / 8
                left, values, right = torch.linalg.svd(weight - rounded)
                rank, scale = module.r["default"], module.scaling["default"]
                module.lora_A["default"].weight.copy_(values[:rank, None] * right[:rank] / scale)
                module.lora_B["default"].weight.copy_(left[:, :rank])
                weight.copy_(rounded)
    return model


ROWS = {
    "fresh LoRA": (lambda _: lora_model(), AdapterOff),
    "fresh LoRA, head trained whole": (lambda _: lora_model(modules_to_save=["lm_head"]), FrozenCopy),
    "fresh DoRA": (lambda _: lora_model(use_dora=True), (AdapterOff, FrozenCopy)),  # as rounding has it
    "SFT adapter that continues": (saved_and_loaded, FrozenCopy),
    "second of two adapters": (two_adapters, FrozenCopy),
    "PiSSA": (lambda _: lora_model(init_lora_weights="pissa"), FrozenCopy),
    "OLoRA": (lambda _: lora_model(init_lora_weights="olora"), FrozenCopy),
    "LoftQ": (lambda _: like_loftq(), FrozenCopy),
    "all biases": (lambda _: lora_model(with_biases(), bias="all"), FrozenCopy),
    "biases of LoRA layers": (lambda _: lora_model(with_biases(), bias="lora_only"), FrozenCopy),
    "full": (lambda _: tiny_model(), AsReceived),
}


class CountModels(TrainerCallback):
    """How many models are in memory while the policy is trained."""

    def __init__(self) -> None:
        self.counts: set[int] = set()

    def on_step_end(self, args, state, control, **kwargs):
        self.counts.add(models_in_memory())


def models_in_memory() -> int:
    gc.collect()
    return sum(type(thing) is LlamaForCausalLM for thing in gc.get_objects())


@pytest.mark.sample(4)
@pytest.mark.parametrize("row", ROWS)
def test_the_reference_is_the_model_as_received(row, tmp_path):
    make, source = ROWS[row]
    model = make(tmp_path)
    received = copy.deepcopy(model)
    # a cache would answer with what was scored before the first step; live sources must know it after the last, too
    run = trainer(model, tmp_path / "run", reference_cache=source is AsReceived)
    assert isinstance(run.reference.source, source)
    expected = naive_scores(received, run.train_dataset)
    run.train()
    torch.testing.assert_close(reference_scores(run, run.train_dataset), expected, rtol=1e-5, atol=1e-4)
    assert (naive_scores(run.model, run.train_dataset) - expected).abs().max() > 0.1  # the policy has moved
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)
    assert logged(run)[2] < 0.6
    assert logged(run, "rewards/margins")[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("row", ["fresh LoRA", "SFT adapter that continues", "full"])
def test_no_second_model_is_in_memory_while_the_policy_is_trained(row, tmp_path):
    model, count = ROWS[row][0](tmp_path), CountModels()
    before = models_in_memory()
    trainer(model, tmp_path / "run", max_steps=1, callbacks=[count]).train()
    assert count.counts == {before}


def test_a_frozen_copy_holds_the_adapter_and_nothing_else(tmp_path):
    run = trainer(lora_model(trained=True), tmp_path)
    held = sum(tensor.numel() for tensor in run.reference.source._received.values())
    assert held == sum(p.numel() for p in run.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "hinge", "ipo"])
def test_every_loss_begins_where_policy_and_reference_agree(loss, tmp_path):
    run = trainer(lora_model(), tmp_path, loss_type=loss, max_steps=1)
    run.train()
    assert logged(run)[0] == pytest.approx({"hinge": 1.0, "ipo": 25.0}.get(loss, LN2), rel=1e-5)


@pytest.mark.parametrize("init", [True, "pissa"])
def test_a_peft_config_makes_the_adapter_and_the_reference_is_the_bare_model(init, tmp_path):
    run = trainer(tiny_model(), tmp_path, peft_config=lora_config(init_lora_weights=init))
    run.train()
    expected = naive_scores(tiny_model(), run.train_dataset)
    torch.testing.assert_close(reference_scores(run, run.train_dataset), expected, rtol=1e-4, atol=1e-3)


# --- an explicit ref_model ---


@pytest.mark.parametrize("make", [tiny_model, lora_model])
def test_an_explicit_reference_that_agrees_is_used_and_let_go_after_the_pass(make, tmp_path):
    reference = tiny_model()
    gone = weakref.ref(reference)
    run = trainer(make(), tmp_path, ref_model=reference)
    assert isinstance(run.reference.source, ExplicitModel)
    del reference
    gc.collect()
    assert gone() is not None  # the pass is still to come
    expected = naive_scores(gone(), run.train_dataset)
    run.train()
    gc.collect()
    assert gone() is None
    torch.testing.assert_close(reference_scores(run, run.train_dataset), expected, rtol=1e-5, atol=1e-4)
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)


def test_a_reference_named_by_its_folder_is_loaded_for_the_pass_only(tmp_path):
    base = save_tiny(tmp_path / "base")
    run = trainer(Path(base), tmp_path / "run", ref_model=Path(base))
    gc.collect()
    gone = weakref.ref(run.reference.source._held)
    run.train()
    gc.collect()
    assert gone() is None
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)


def test_a_reference_that_disagrees_is_an_error_with_the_distance_and_the_option_that_means_it(tmp_path):
    other = tiny_model(seed=1)
    run = trainer(lora_model(), tmp_path, ref_model=other)
    with pytest.raises(ReferenceMismatchError, match=r"by [\d.]+ nat per token") as caught:
        run.train()
    assert "allow_reference_mismatch=True" in str(caught.value)
    looked_at = run.train_dataset.select(probes(run.train_dataset.lengths))
    per_completion = (naive_scores(run.model, looked_at) - naive_scores(other, looked_at)).split(
        [len(completion) for group in looked_at for completion in group.completions]
    )
    distance = max(abs(float(part.sum())) for part in per_completion)
    assert f"{distance:.3g} nat on a whole completion" in str(caught.value)
    assert run.state.global_step == 0


def test_a_reference_that_disagrees_is_used_when_the_user_means_it(tmp_path):
    other = tiny_model(seed=1)
    run = trainer(lora_model(), tmp_path, ref_model=other, allow_reference_mismatch=True)
    run.train()
    expected = naive_scores(other, run.train_dataset)
    torch.testing.assert_close(reference_scores(run, run.train_dataset), expected, rtol=1e-5, atol=1e-4)
    assert logged(run)[0] != pytest.approx(LN2, abs=1e-2)


def test_a_reference_that_is_the_policy_itself_is_refused(tmp_path):
    model = tiny_model()
    with pytest.raises(ConfigError, match="Leave ref_model out"):
        trainer(model, tmp_path, ref_model=model)


@pytest.mark.parametrize("how", ["peft_config", "get_peft_model"])
def test_a_reference_that_shares_the_policys_weights_is_refused(how, tmp_path):
    base = tiny_model()
    policy = base if how == "peft_config" else lora_model(base)
    options = {"peft_config": lora_config()} if how == "peft_config" else {}
    with pytest.raises(ConfigError, match="Leave ref_model out"):
        trainer(policy, tmp_path, ref_model=base, **options)


def test_an_adapter_without_peft_model_around_it_is_refused_with_the_way_to_load_it(tmp_path):
    model = tiny_model()
    model.add_adapter(lora_config())  # as AutoModelForCausalLM.from_pretrained does for an adapter's folder
    with pytest.raises(ModelError, match="load_model"):
        trainer(model, tmp_path)


# --- names lie, weights do not ---


def test_a_merged_model_with_the_name_of_its_base_is_its_own_reference(tmp_path):
    name = save_tiny(tmp_path / "base")
    model = lora_model(AutoModelForCausalLM.from_pretrained(name), trained=True).merge_and_unload()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    assert model.config._name_or_path == name
    received = copy.deepcopy(model)
    assert (naive_scores(received, DATA) - naive_scores(tiny_model(), DATA)).abs().max() > 0.1
    run = trainer(model, tmp_path / "run")
    run.train()
    expected = naive_scores(received, run.train_dataset)
    torch.testing.assert_close(reference_scores(run, run.train_dataset), expected, rtol=1e-5, atol=1e-4)
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)


# --- rows that turn up after training ---


def late_rows() -> list[dict[str, str]]:
    return rows(5, start=40)


def fully_trained(model: Any, folder: Any, **options: Any) -> Any:
    run = trainer(model, folder, **options)
    run.train()
    return run


def test_late_rows_of_a_full_run_are_scored_by_the_model_loaded_again(tmp_path):
    name = save_tiny(tmp_path / "base")
    run = fully_trained(AutoModelForCausalLM.from_pretrained(name), tmp_path / "run", per_device_eval_batch_size=2)
    evaluated = run.evaluate(late_rows())
    late = groups_of(late_rows())
    torch.testing.assert_close(
        reference_scores(run, late), naive_scores(tiny_model(), late), rtol=1e-5, atol=1e-4
    )  # fmt: skip
    moved = (naive_scores(run.model, late) - naive_scores(tiny_model(), late)).abs().max()
    assert moved > 0.1
    assert evaluated["eval_rewards/margins"] != pytest.approx(0, abs=1e-3)


def test_the_model_loaded_again_is_loaded_once_an_evaluation_and_not_kept(tmp_path):
    name = save_tiny(tmp_path / "base")
    run = fully_trained(AutoModelForCausalLM.from_pretrained(name), tmp_path / "run", per_device_eval_batch_size=1)
    loads, reload = [], run.reference.source._reload

    def counted():
        loads.append(weakref.ref(model := reload()))
        return model

    run.reference.source._reload = counted
    run.evaluate(late_rows())
    gc.collect()
    assert [model() for model in loads] == [None]
    run.evaluate(late_rows())  # known by now
    assert len(loads) == 1


def test_late_rows_raise_when_the_folder_holds_other_weights_by_now(tmp_path):
    name = save_tiny(tmp_path / "base")
    run = fully_trained(AutoModelForCausalLM.from_pretrained(name), tmp_path / "run")
    run.model.save_pretrained(name)  # the trained policy under the name of what it was trained from
    with pytest.raises(ReferenceMismatchError, match="weights differ"):
        run.evaluate(late_rows())


def test_late_rows_raise_when_the_folder_is_gone(tmp_path):
    name = save_tiny(tmp_path / "base")
    run = fully_trained(AutoModelForCausalLM.from_pretrained(name), tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ReferenceMismatchError, match="cannot be loaded again"):
        run.evaluate(late_rows())


def test_late_rows_raise_when_the_reference_was_only_in_memory(tmp_path):
    run = fully_trained(tiny_model(), tmp_path)
    with pytest.raises(ReferenceMismatchError, match="Pass this data as eval_dataset"):
        run.evaluate(late_rows())
    run.evaluate(rows(4))  # rows that were trained on are known


def test_late_rows_of_an_adapter_are_scored_at_any_time(tmp_path):
    run = fully_trained(lora_model(trained=True), tmp_path)
    received = lora_model(trained=True)
    run.evaluate(late_rows())
    late = groups_of(late_rows())
    torch.testing.assert_close(reference_scores(run, late), naive_scores(received, late), rtol=1e-5, atol=1e-4)


def test_late_rows_raise_when_the_explicit_reference_is_gone_and_are_scored_while_the_user_holds_it(tmp_path):
    reference = tiny_model()
    run = fully_trained(lora_model(), tmp_path, ref_model=reference)
    run.evaluate(late_rows())
    del reference
    gc.collect()
    with pytest.raises(ReferenceMismatchError, match="released"):
        run.evaluate(rows(5, start=60))


def test_evaluation_rows_of_a_full_run_are_scored_before_the_first_step(tmp_path):
    held_out = {"one": rows(3, start=40), "two": rows(3, start=50)}
    run = trainer(tiny_model(), tmp_path, eval_dataset=held_out, eval_strategy="steps", eval_steps=1)
    before = run.evaluate()
    run.train()
    assert before["eval_one_loss"] == pytest.approx(LN2, abs=1e-6)
    assert logged(run, "eval_two_rewards/margins")[-1] > 0.1


# --- nothing is computed twice ---


def counted_scores(run: Any) -> list[int]:
    """Counts the groups that the reference is asked to score from now on."""
    scored: list[int] = []
    score = run.reference.source.score

    def counting(model, batch, engine):
        scored.append(len(batch.groups))
        return score(model, batch, engine)

    run.reference.source.score = counting
    return scored


@pytest.mark.parametrize("row", ["fresh LoRA", "full"])
def test_a_second_run_over_the_same_rows_asks_the_reference_nothing(row, tmp_path):
    make, _ = ROWS[row]
    held_out = rows(4, start=40)
    options: dict[str, Any] = {
        "eval_dataset": held_out,
        "eval_strategy": "epoch",
        "num_train_epochs": 2,
        "max_steps": -1,
    }
    first = trainer(make(tmp_path), tmp_path / "first", **options)
    scored = counted_scores(first)
    first.train()
    assert sum(scored) == 8 + 4 + 3  # every row once, although there were two epochs, and the self-check's
    sweep = {"beta": 0.3, "learning_rate": 1e-4, "seed": 9, "loss_type": "ipo", "run_name": "another"}
    options |= {"train_sampling_strategy": "random", "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3}
    second = trainer(make(tmp_path), tmp_path / "second", data=rows(8)[::-1], **options, **sweep)
    scored = counted_scores(second)
    second.train()
    assert scored == []
    assert second.reference.misses == 0
    assert second.reference.hits > 0
    assert logged(second, "reference/cache_hits")[0] == 1.0


def test_a_truncated_dataset_is_scored_anew(tmp_path):
    trainer(lora_model(), tmp_path / "first", max_steps=4).train()
    second = trainer(lora_model(), tmp_path / "second", max_steps=4, max_length=20)
    scored = counted_scores(second)
    second.train()
    assert sum(scored) > 0
    expected = naive_scores(tiny_model(), second.train_dataset)
    torch.testing.assert_close(reference_scores(second, second.train_dataset), expected, rtol=1e-5, atol=1e-4)


def groups_of(data: Any) -> Any:
    from preftune.data import load_pairs, tokenize_pairs
    from tiny import tiny_tokenizer

    return tokenize_pairs(load_pairs(data), tiny_tokenizer(), max_length=1024, max_prompt_length=None)[0]


DATA = groups_of(rows(4))
