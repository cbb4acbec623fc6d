"""Out of memory: the step is done again in smaller parts, the update stays the same, and only a single pair stops it.

On a CPU the kernel would end the process, so the error of a graphics card is raised by hand.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune import load_model
from preftune.data import GroupDataset
from preftune.errors import OutOfMemoryError
from preftune.logps.score_groups import is_out_of_memory
from preftune.training.step.memory import TokenLimit
from preftune.training.step.micro_batches import AUTOMATIC_CPU_TOKENS
from preftune.training.step.optimizer_step import RandomState
from tests.training.dpo_runs import logged, lora_config, lora_model, strict_json, trainer
from tests.training.trainers.test_token_budget import (
    assert_same_run,
    data_of_two_lengths,
    groups_of_many_sizes,
    weights,
)
from tiny import save_tiny, tiny_model

ERROR = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Tight:
    """An engine on a device with room for so many tokens."""

    def __init__(self, engine: Any, tokens: int, *, when: Callable[[], bool] = torch.is_grad_enabled) -> None:
        self.engine, self.name, self.tokens, self.when = engine, engine.name, tokens, when
        self.computed: list[int] = []
        self.errors = 0

    def __call__(self, model, batch):
        answer = self.engine(model, batch)
        if self.when() and batch.input_ids.shape[1] > self.tokens:
            self.errors += 1
            raise torch.OutOfMemoryError(ERROR)
        self.computed.append(batch.input_ids.shape[1])
        return answer


class Held:
    """What autograd keeps a tensor in."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()  # an output of a node would hold its own graph


class FullInBackward:
    """An engine whose first attempt at a step runs out in the backward pass of the step's second micro-batch. When the
    step is begun again, nothing of the first attempt may be in memory.
    """

    def __init__(self, engine: Any) -> None:
        self.engine, self.name = engine, engine.name
        self.forwards = self.errors = 0
        self.kept: weakref.WeakSet[Held] = weakref.WeakSet()

    def __call__(self, model, batch):
        self.forwards += torch.is_grad_enabled()
        if self.errors:
            assert not self.kept, "the graph of the first attempt is still there"
        if not torch.is_grad_enabled() or self.errors:
            return self.engine(model, batch)
        with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda held: held.tensor):
            answer = self.engine(model, batch)
        if self.forwards == 2:
            answer.token_logps_T.register_hook(self.fail)
        return answer

    def keep(self, tensor: torch.Tensor) -> Held:
        held = Held(tensor)
        self.kept.add(held)
        return held

    def fail(self, gradient):
        assert self.kept
        self.errors += 1
        raise torch.OutOfMemoryError(ERROR)


def make(folder: Path, *, model: Any = None, **options: Any) -> Any:
    """Three steps of two micro-batches of four pairs."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "optim": "sgd"}
    settings |= {"learning_rate": 0.5, "max_grad_norm": 0.0, "data": data_of_two_lengths(24)}
    settings |= {"include_num_input_tokens_seen": "all", **options}
    return trainer(lora_model(trained=True) if model is None else model, folder, **settings)


def warned(caplog: Any) -> list[str]:
    return [record.message for record in caplog.records if "out of memory" in record.message]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    made = make(tmp_path_factory.mktemp("undisturbed"))
    made.train()
    return made


def test_out_of_memory_in_a_forward_halves_the_budget_and_changes_nothing_else(undisturbed, tmp_path, caplog):
    made = make(tmp_path)
    sizes = [sum(g.tokens for g in list(made.train_dataset)[at : at + 4]) for at in range(0, 24, 4)]
    room = sizes[0]
    assert sizes[1] > room  # the first micro-batch of the step fits and leaves gradients, the second does not
    assert sizes[1] // 2 < room
    made.engine = Tight(made.engine, room)
    made.train()
    assert_same_run(made, undisturbed)
    assert made.engine.errors == 1  # and none in the two steps that followed
    assert made.step_limit.tokens == sizes[1] // 2
    (line,) = warned(caplog)
    assert f"4 pairs of {sizes[1]} tokens" in line
    assert f"max_tokens_per_batch={sizes[1] // 2}" in line
    assert "the update stays the same" in line


def test_out_of_memory_in_a_backward_throws_the_gradients_of_the_attempt_away(undisturbed, tmp_path, caplog):
    made = make(tmp_path)
    made.engine = FullInBackward(made.engine)
    made.train()
    assert made.engine.errors == 1
    assert_same_run(made, undisturbed)
    assert len(warned(caplog)) == 1


def test_it_is_halved_as_often_as_it_takes(undisturbed, tmp_path, caplog):
    made = make(tmp_path)
    largest = max(group.tokens for group in made.train_dataset)
    made.engine = Tight(made.engine, largest)
    made.train()
    assert_same_run(made, undisturbed)
    assert made.engine.errors == len(warned(caplog)) > 1
    assert made.step_limit.tokens <= 2 * largest


def test_the_reference_of_a_step_may_be_what_does_not_fit(undisturbed, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    made = make(tmp_path / "run", data=data_of_two_lengths(24))
    made.reference.engine = Tight(made.engine, 150, when=lambda: True)
    made.train()
    assert made.reference.engine.errors == len(warned(caplog)) > 0
    assert_same_run(made, undisturbed)


def test_a_group_of_several_pairs_is_split_before_it_is_given_up(tmp_path):
    data = GroupDataset.from_groups(groups_of_many_sizes())
    whole, tight = (make(tmp_path / name, data=data, max_steps=2, optim="sgd") for name in ("whole", "tight"))
    whole.train()
    largest = max(g.tokens for g in data)
    tight.engine = Tight(tight.engine, largest - 1)
    tight.train()
    assert tight.engine.errors > 0
    assert_same_run(tight, whole)


def test_dropout_of_the_second_attempt_is_that_of_a_first_one(tmp_path):
    """A step that was begun again does what it does with the smaller budget from the start, bit for bit."""
    options = {"disable_dropout": False, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}

    def run(name: str, **more: Any) -> Any:
        made = make(tmp_path / name, model=lora_model(trained=True, lora_dropout=0.3), **options, **more)
        if not more:
            made.engine = Tight(made.engine, 300)
        made.train()
        return made

    disturbed = run("disturbed")
    assert disturbed.engine.errors == 1
    budgeted = run("budgeted", max_tokens_per_batch=disturbed.step_limit.tokens)
    assert logged(disturbed) == logged(budgeted)
    assert all(torch.equal(weights(disturbed)[name], weight) for name, weight in weights(budgeted).items())
    without = make(tmp_path / "without", **(options | {"disable_dropout": True}))
    without.train()
    assert logged(without)[1:] != pytest.approx(logged(budgeted)[1:], rel=1e-3)


def test_the_random_state_is_put_back():
    torch.manual_seed(5)
    state = RandomState.of(torch.device("cpu"))
    first = torch.rand(3)
    state.restore()
    assert torch.equal(torch.rand(3), first)


def test_a_resumed_run_begins_with_the_budget_it_had_come_down_to(tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3}
    made = make(tmp_path / "whole", **options)
    made.engine = Tight(made.engine, 150)
    made.train()
    assert made.engine.errors > 0
    again = make(tmp_path / "again", **options)
    again.engine = Tight(again.engine, 150)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert again.engine.errors == 0
    assert again.step_limit.tokens == made.step_limit.tokens
    assert f"at most {made.step_limit.tokens} tokens at a time" in caplog.text
    assert logged(again) == logged(made)
    assert all(torch.equal(weights(again)[name], weight) for name, weight in weights(made).items())


def test_a_run_that_never_ran_out_leaves_no_budget_behind(tmp_path):
    made = make(tmp_path, save_strategy="steps", save_steps=3, max_tokens_per_batch=200)
    made.train()
    assert strict_json((tmp_path / "checkpoint-3" / "preftune_state.json").read_text())["step_limit"] is None


def test_other_errors_are_no_reason_to_try_again(tmp_path):
    made = make(tmp_path)

    class Broken:
        name, calls = "packed", 0

        def __call__(self, model, batch):
            if torch.is_grad_enabled():
                Broken.calls += 1
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return made.reference.engine(model, batch)

    made.engine = Broken()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        made.train()
    assert Broken.calls == 1
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 5.60 GB)"))


def test_a_limit_only_falls():
    limit = TokenLimit(100)
    limit.lower(200)
    assert limit.tokens == 100
    limit.lower(40)
    limit.resume(70)
    limit.follow(None)
    assert (limit.tokens, limit.fell_to) == (40, 40)
    limit.follow(30)
    assert limit.tokens == 30


# --- scoring ---


def test_evaluation_out_of_memory_has_the_same_numbers(tmp_path, caplog):
    groups = GroupDataset.from_groups(groups_of_many_sizes())
    made = make(tmp_path, eval_dataset=groups, per_device_eval_batch_size=8, max_steps=1)
    made.train()
    expected, rewards = made.evaluate(), made.predict(groups).predictions
    largest = max(group.tokens for group in groups)
    made.engine = Tight(made.engine, largest - 1, when=lambda: True)
    evaluated = made.evaluate()
    named = [name for name in expected if "rewards" in name or "logps" in name or "length" in name or "loss" in name]
    assert len(named) == 9
    assert {n: evaluated[n] for n in named} == pytest.approx({n: expected[n] for n in named}, rel=1e-4, abs=1e-5)
    assert made.engine.errors == len(warned(caplog)) > 0
    assert "per_device_eval_batch_size" in warned(caplog)[0]
    assert "the numbers stay the same" in warned(caplog)[0]
    assert made.step_limit.tokens == AUTOMATIC_CPU_TOKENS  # a step keeps more, and finds out for itself
    errors = made.engine.errors
    assert made.predict(groups).predictions == pytest.approx(rewards, rel=1e-3, abs=1e-5)
    assert made.engine.errors == errors


def test_the_reference_pass_out_of_memory_has_the_same_scores(tmp_path, monkeypatch, caplog):
    def scored(name: str, room: int) -> Any:
        monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / name / "cache"))
        made = make(tmp_path / name, model=tiny_model(), learning_rate=0.05, precompute_ref_batch_size=16)
        made.reference.engine = Tight(made.engine, room, when=lambda: True)
        made.train()
        return made

    whole, tight = scored("whole", 10**6), scored("tight", 150)
    assert max(whole.reference.engine.computed) > 150 >= max(tight.reference.engine.computed)
    assert tight.reference.engine.errors == len(warned(caplog)) > 0
    assert "precompute_ref_batch_size" in warned(caplog)[0]
    assert_same_run(tight, whole)


# --- a single pair ---


def given_up(made: Any) -> str:
    """What a run says when not even one pair fits."""
    made.engine = Tight(made.engine, 0)
    with pytest.raises(OutOfMemoryError) as caught:
        made.train()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert caught.value.exit_code == 1
    recorded = strict_json((Path(made.args.output_dir) / "run.json").read_text())
    assert recorded["outcome"] == "failed"
    assert "OutOfMemoryError" in recorded["error"]
    return str(caught.value)


def test_a_single_pair_that_does_not_fit_names_the_fixes_that_apply_best_first(tmp_path, caplog):
    made = make(tmp_path, model=tiny_model(), max_steps=1)
    said = given_up(made)
    assert "a single pair of" in said
    assert len(warned(caplog)) >= 2  # four pairs, two pairs, and then it stops
    in_order = ["gradient_checkpointing=True", "--use_peft", "load_in_4bit=True", "max_length below", "a smaller model"]
    places = [said.index(fix) for fix in in_order]
    assert places == sorted(places)
    assert said.count("saves about") == len(in_order)
    for taken in ("per_device_train_batch_size", "max_tokens_per_batch"):
        assert taken not in said


def test_no_fix_is_named_that_is_taken_already(tmp_path):
    save_tiny(tmp_path / "base", hidden_size=64, intermediate_size=64)
    model = load_model(tmp_path / "base", load_in_4bit=True)
    said = given_up(
        trainer(
            model,
            tmp_path / "run",
            peft_config=lora_config(),
            per_device_train_batch_size=1,
            gradient_checkpointing=True,
        )
    )
    for fix in ("gradient_checkpointing", "--use_peft", "load_in_4bit"):
        assert fix not in said
    assert "max_length below" in said


def test_a_single_pair_that_cannot_be_scored_has_no_training_s_fixes(tmp_path):
    made = make(tmp_path, eval_dataset=data_of_two_lengths(4), max_steps=1)
    made.train()
    made.engine = Tight(made.engine, 0, when=lambda: True)
    with pytest.raises(OutOfMemoryError, match="load_in_4bit=True") as caught:
        made.evaluate()
    assert "gradient_checkpointing" not in str(caught.value)


def test_an_optimiser_whose_state_does_not_fit_has_no_fixes_for_batches(tmp_path):
    made = make(tmp_path, model=tiny_model())
    made.create_optimizer()

    def step(closure: Any = None) -> None:
        raise torch.OutOfMemoryError(ERROR)

    made.optimizer.step = step
    with pytest.raises(OutOfMemoryError, match="outside of a batch") as caught:
        made.train()
    fixes = str(caught.value)
    assert [c in fixes for c in ("--use_peft", "load_in_4bit", "a smaller model")] == [True] * 3
    assert [c in fixes for c in ("gradient_checkpointing", "max_length")] == [False] * 2
