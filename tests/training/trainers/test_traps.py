"""The traps of the design that only a whole run can fall into."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from preftune.logps import naive_logps, pack
from preftune.training.step.micro_batches import AUTOMATIC_CPU_TOKENS
from tests.training.dpo_runs import LN2, logged, lora_config, lora_model, trainer, untimed
from tests.training.step import one_of_two_ranks
from tests.training.two_ranks import cases_of, run_two_ranks
from tiny import rows, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def two_ranks(request, tmp_path_factory):
    """What two processes saw, which ran every case with a cache that knows the rows of one of them."""
    folder = tmp_path_factory.mktemp("ranks")
    cache = folder / "cache"
    cases = cases_of(request) | {"lora", one_of_two_ranks.OUT_OF_MEMORY}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFTUNE_CACHE", str(cache))
        # one pair each in turn: the second rank gets the odd rows
        trainer(lora_model(), folder / "warm", data=rows(20)[1::2], max_steps=6).train()
    return run_two_ranks(one_of_two_ranks.__file__, folder, cache=cache, cases=sorted(cases))


@pytest.mark.sample("lora", "full", "uneven")
@pytest.mark.parametrize("case", one_of_two_ranks.CASES)
def test_two_ranks_do_what_one_process_does_with_twice_the_batch(case, two_ranks, tmp_path):
    first, second = (rank[case] for rank in two_ranks)
    alone = one_of_two_ranks.run(case, tmp_path, ranks=1)
    steps = [entry for entry in untimed(alone["history"]) if "loss" in entry]
    assert len(steps) == 3
    compared = {"loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "learning_rate"}
    for one, two in zip(steps, [entry for entry in first["history"] if "loss" in entry], strict=True):
        assert {k: two[k] for k in compared} == pytest.approx({k: one[k] for k in compared}, rel=1e-4, abs=1e-5)
    evaluated = {key: value for key, value in untimed([alone["evaluated"]])[0].items() if key != "epoch"}
    for rank in (first, second):
        assert {key: rank["evaluated"][key] for key in evaluated} == pytest.approx(evaluated, rel=1e-4, abs=1e-5)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.sample("lora", "full", "uneven")
@pytest.mark.parametrize("case", one_of_two_ranks.CASES)
def test_every_rank_has_the_same_gradients_at_every_step(case, two_ranks):
    for rank in two_ranks:
        assert rank[case]["gradient_differences"] == [0.0, 0.0, 0.0]


def test_the_smallest_limit_of_all_ranks_is_that_of_all(two_ranks):
    first, second = (rank[one_of_two_ranks.OUT_OF_MEMORY] for rank in two_ranks)
    assert first["limit"] == second["limit"] > 0
    assert first["limit"] < two_ranks[0]["lora"]["limit"] == AUTOMATIC_CPU_TOKENS


def test_ranks_need_not_miss_the_same_rows(two_ranks):
    first, second = (rank["lora"]["misses"] for rank in two_ranks)
    assert first > second  # one asked the reference where the other did not, and nobody waited for anybody


# --- what the loss sees ---


class FirstGradients(TrainerCallback):
    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def gradients_by_hand(model: Any, groups: Any) -> dict[str, torch.Tensor]:
    """Of DPO's loss while policy and reference agree: -beta/2 times the mean difference of both sides' scores."""
    model.zero_grad()
    lengths = [len(completion) for group in groups for completion in group.completions]
    chosen, rejected = torch.stack([p.sum() for p in naive_logps(model, pack(groups)).split(lengths)]).view(-1, 2).T
    (-0.1 / 2 * (chosen - rejected).mean()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_end_of_sequence_is_trained_once_per_completion_whatever_the_padding_token_is(pad_is_eos, tmp_path):
    model = tiny_model(tie_word_embeddings=False)
    received = copy.deepcopy(model)
    tokenizer = tiny_tokenizer(pad_is_eos=pad_is_eos)
    seen = FirstGradients()
    run = trainer(model, tmp_path, processing_class=tokenizer, max_steps=1, max_grad_norm=0.0, callbacks=[seen])
    run.train()
    first = [run.train_dataset[0], run.train_dataset[1]]
    eos = tokenizer.eos_token_id
    for group in first:
        for completion in group.completions:
            assert list(completion).count(eos) == 1
            assert completion[-1] == eos
    for name, expected in gradients_by_hand(received, first).items():
        torch.testing.assert_close(seen.gradients[name], expected, rtol=1e-3, atol=1e-5, msg=name)
    cut = [type(g)(g.prompt_ids, tuple(c[:-1] for c in g.completions), g.pairs) for g in first]
    without = gradients_by_hand(received, cut)["lm_head.weight"][eos]
    assert (seen.gradients["lm_head.weight"][eos] - without).abs().max() > 0.01


@pytest.mark.sample(2)
@pytest.mark.parametrize("make", [lora_model, tiny_model])
@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}])
def test_gradient_checkpointing_changes_no_loss(how, make, tmp_path):
    plain = trainer(make(), tmp_path / "plain", gradient_checkpointing=False)
    plain.train()
    saving = trainer(make(), tmp_path / "saving", gradient_checkpointing=True, **how)
    saving.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in plain.model.modules())
    assert logged(saving) == pytest.approx(logged(plain), rel=1e-5)
    assert logged(saving, "grad_norm") == pytest.approx(logged(plain, "grad_norm"), rel=1e-4)


# --- dropout ---


def dropout_run(folder: Any, rate: float, **options: Any) -> list[float]:
    run = trainer(tiny_model(), folder, peft_config=lora_config(lora_dropout=rate), **options)
    run.train()
    return logged(run)


def test_the_dropout_of_an_adapter_is_off_and_that_is_said(tmp_path, caplog):
    caplog.set_level("INFO", logger="preftune")
    without = dropout_run(tmp_path / "none", 0.0)
    assert "lora_dropout" not in caplog.text
    assert dropout_run(tmp_path / "off", 0.4) == without
    assert "lora_dropout=0.4 is off" in caplog.text
    assert "disable_dropout=False" in caplog.text


def test_dropout_that_was_asked_for_is_kept_and_does_not_reach_the_reference(tmp_path, caplog):
    caplog.set_level("INFO", logger="preftune")
    without = dropout_run(tmp_path / "none", 0.0)
    losses = dropout_run(tmp_path / "kept", 0.4, disable_dropout=False)
    assert losses[0] == pytest.approx(LN2, abs=1e-6)  # the adapter adds nothing yet, with or without dropout
    assert losses[1:] != pytest.approx(without[1:], rel=1e-3)
    assert "is off" not in caplog.text


def test_dropout_of_the_model_itself_is_off_too(tmp_path):
    run = trainer(tiny_model(attention_dropout=0.5), tmp_path, max_steps=1)
    run.train()
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-6)


@pytest.mark.parametrize("kind", ["bert", "t5", "poly"])
def test_what_is_no_causal_language_model_is_refused(tmp_path, kind):
    """Engine and naive path agree about a model that looks ahead, too."""
    from peft import PolyConfig, get_peft_model
    from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

    from preftune.errors import ModelError

    sizes = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model, message = {
        "bert": (
            lambda: BertLMHeadModel(BertConfig(**sizes, intermediate_size=48, initializer_range=0.3)),
            "is not a causal language model",
        ),
        "t5": (
            lambda: T5ForConditionalGeneration(T5Config(vocab_size=264, d_model=32, num_layers=2)),
            "has an encoder and a decoder",
        ),
        "poly": (
            lambda: get_peft_model(tiny_model(), PolyConfig(r=4, n_skills=2, n_splits=2, target_modules=["q_proj"])),
            "needs the task of every row",
        ),
    }[kind]
    with pytest.raises(ModelError, match=message):
        trainer(model(), tmp_path).train()
