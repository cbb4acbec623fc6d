"""`max_tokens_per_batch`: a step is computed in parts of bounded size, and everything it does stays the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune import DPOConfig
from preftune.data import GroupDataset
from preftune.errors import ConfigError
from preftune.logps import make_engine, pack
from preftune.training.step import micro_batches as planning
from preftune.training.step.micro_batches import plan_micro_batches, separate_tokens, shared_tokens, split_group
from preftune.training.step.optimizer_step import micro_batches
from preftune.types import Preference, TokenizedGroup
from tests.training.dpo_runs import logged, lora_model, trainer, untimed
from tiny import rows, tiny_model

UNLIMITED, ONE_GROUP = 10**6, 1


def groups_of_many_sizes() -> list[TokenizedGroup]:
    """Ordinary pairs of very different lengths, and groups of several completions with several pairs."""
    made = []
    for i in range(8):
        prompt = [3 + (7 * i + j) % 250 for j in range(2 + 5 * i % 17)]
        ids = tuple(
            [3 + (11 * i + 31 * k + j) % 250 for j in range(1 + (3 * i + 7 * k) % 13)] for k in range(2 + i % 3)
        )
        pairs = tuple(Preference(k, n, 1.0 + 0.5 * k, 0.1 * n) for n in range(len(ids)) for k in range(n))
        made.append(TokenizedGroup(prompt, ids, pairs, id=str(i)))
    return made


LARGEST = max(group.tokens for group in groups_of_many_sizes())


# --- the plan ---

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(LENGTHS, st.integers(1, 100))
def test_a_plan_has_everything_once_in_order_and_within_the_budget(lengths, budget):
    plan = plan_micro_batches(lengths, budget)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    assert all(batch == sorted(batch) for batch in plan)
    assert [batch[0] for batch in plan] == sorted(batch[0] for batch in plan)
    totals = [sum(lengths[index] for index in batch) for batch in plan]
    assert all(total <= budget or len(batch) == 1 for total, batch in zip(totals, plan, strict=True))


@given(LENGTHS, st.integers(1, 100))
def test_no_two_micro_batches_of_a_plan_would_fit_into_one(lengths, budget):
    totals = [sum(lengths[index] for index in batch) for batch in plan_micro_batches(lengths, budget)]
    assert all(a + b > budget for at, a in enumerate(totals) for b in totals[:at])


def test_an_item_goes_where_the_least_room_is_left():
    assert plan_micro_batches([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert plan_micro_batches([5, 7, 3, 5], 10) == [[0, 3], [1, 2]]  # first fit would put the 3 beside the 5
    assert plan_micro_batches([4, 11, 4], 10) == [[0, 2], [1]]
    assert plan_micro_batches([], 10) == []


@given(st.integers(0, 7), st.integers(1, 80))
def test_a_group_beyond_the_budget_is_split_by_its_pairs(which, budget):
    group = groups_of_many_sizes()[which]
    parts = split_group(group, budget, shared_tokens)

    def compared(part: TokenizedGroup) -> list[Any]:
        return [(part.completions[p.chosen], part.completions[p.rejected], p.weight, p.margin) for p in part.pairs]

    assert [pair for part in parts for pair in compared(part)] == compared(group)
    assert all(part.prompt_ids == group.prompt_ids and part.id == group.id for part in parts)
    assert all(part.tokens <= budget or len(part.pairs) == 1 for part in parts)
    if group.tokens <= budget:
        assert parts == [group]
    if sum(len(g.pairs) for g in parts) > 1 and group.tokens > budget:
        assert len(parts) > 1


def test_a_split_group_keeps_what_is_scored_and_context_costs_like_all_tokens():
    scored = (((1, 2),), (), ((0, 1), (2, 3)))
    pairs = (Preference(0, 1), Preference(2, 1))
    group = TokenizedGroup([1, 2], ([4, 5], [6], [7, 8, 9]), pairs, scored=scored)
    first, second = split_group(group, 5, shared_tokens)
    assert (first.completions, first.scored) == (([4, 5], [6]), (((1, 2),), ()))
    assert (second.completions, second.scored) == (([6], [7, 8, 9]), ((), ((0, 1), (2, 3))))
    assert shared_tokens(group) == 8
    assert separate_tokens(group) == 12


def test_engines_count_what_they_compute():
    group = TokenizedGroup([1, 2, 3], ([4], [5, 6]), (Preference(0, 1),))
    assert (shared_tokens(group), separate_tokens(group)) == (6, 9)


def test_batches_are_packed_again_only_where_they_differ():
    groups = groups_of_many_sizes()
    batches = [pack(groups[:4]), pack(groups[4:5]), pack(groups[5:])]
    assert micro_batches(batches, None, shared_tokens) == batches
    one, *others = micro_batches(batches[:1], UNLIMITED, shared_tokens)
    assert one is batches[0]
    assert others == []
    assert any(part is batches[1] for part in micro_batches(batches, groups[4].tokens, shared_tokens))


@pytest.mark.parametrize("budget", [None, UNLIMITED, LARGEST + 20, LARGEST, LARGEST // 2, ONE_GROUP])
@pytest.mark.parametrize("name", ["packed", "separate"])
def test_in_float64_the_gradients_do_not_depend_on_the_budget(name, budget):
    model = tiny_model("gpt2", dtype=torch.float64)  # layer norms in float64; RMS norms compute in float32
    engine, loss = make_engine(model, name), DPOConfig(output_dir="unused").objective()
    groups = groups_of_many_sizes()
    pairs = sum(len(group.pairs) for group in groups)

    def gradients(parts: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for part in parts:
            policy = engine(model, part).sides(part)
            reference = policy._replace(chosen_N=policy.chosen_N.detach() + 0.3, rejected_N=policy.rejected_N.detach())
            out = loss(policy, reference, beta=0.1, weight_N=part.weight_N, margin_N=part.margin_N)
            (out.loss_N.sum() / pairs).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    whole = gradients([pack(groups)])
    cost = planning.cost_of(engine)
    parts = micro_batches([pack(groups[:5]), pack(groups[5:])], budget, cost)
    assert sum(part.pairs for part in parts) == pairs
    if budget == ONE_GROUP:
        assert {part.pairs for part in parts} == {1}
    for parameter, gradient in gradients(parts).items():
        torch.testing.assert_close(gradient, whole[parameter], rtol=1e-9, atol=1e-12, msg=parameter)


# --- whole runs ---


def data_of_two_lengths(count: int) -> list[dict[str, Any]]:
    """The second half of every eight is longer, too."""
    return [{**row, "chosen": row["chosen"] * (1 + 3 * (i % 2) + i % 8 // 4)} for i, row in enumerate(rows(count))]


class Watched:
    """An engine that remembers the sizes of what it computed, with gradients and without."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.name = engine, engine.name
        self.trained: list[int] = []
        self.scored: list[int] = []

    def __call__(self, model, batch):
        (self.trained if torch.is_grad_enabled() else self.scored).append(batch.input_ids.shape[1])
        return self.engine(model, batch)


def run(folder: Any, *, model: Any = None, callbacks: Any = None, resume: Any = None, **options: Any) -> Any:
    """Three steps of eight pairs."""
    settings = {"per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
    settings |= {"data": data_of_two_lengths(24), "include_num_input_tokens_seen": "all", **options}
    made = trainer(model if model is not None else lora_model(trained=True), folder, callbacks=callbacks, **settings)
    made.engine = made.reference.engine = Watched(made.engine)
    made.train(resume_from_checkpoint=resume)
    return made


def weights(made: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in made.model.named_parameters() if p.requires_grad}


def assert_same_run(made: Any, expected: Any) -> None:
    """The same steps, metrics and weights, to rounding."""
    assert made.state.global_step == expected.state.global_step
    assert made.state.num_input_tokens_seen == expected.state.num_input_tokens_seen
    for entry, other in zip(untimed(made.state.log_history), untimed(expected.state.log_history), strict=True):
        ties = abs(other.get("rewards/margins", 1)) < 1e-6  # at the start, where rounding decides who wins
        left_out = {"reference/cache_hits", *(["rewards/accuracies"] if ties else [])}
        entry, other = ({k: v for k, v in e.items() if k not in left_out} for e in (entry, other))
        assert entry == pytest.approx(other, rel=1e-4, abs=1e-5)
    for name, weight in weights(expected).items():
        torch.testing.assert_close(weights(made)[name], weight, rtol=1e-4, atol=2e-6, msg=name)


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unlimited"))


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("budget", "accumulation"), [(UNLIMITED, 1), (UNLIMITED, 4), (200, 1), (200, 4), (ONE_GROUP, 1), (None, 4)]
)
def test_the_update_and_the_metrics_do_not_depend_on_the_budget(budget, accumulation, unlimited, tmp_path):
    size = 8 // accumulation
    made = run(
        tmp_path,
        max_tokens_per_batch=budget,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    assert_same_run(made, unlimited)
    assert any((weights(made)[n] - p).abs().max() > 1e-3 for n, p in weights(fresh()).items())
    parts = len(made.engine.trained)
    if budget == UNLIMITED:
        assert parts == 3  # the micro-batches of the data loader were put together
    elif budget == ONE_GROUP:
        assert parts == 24
    elif budget is None:
        assert parts == 3 * accumulation
    else:
        assert 3 < parts < 24
        assert max(made.engine.trained) <= budget


def fresh() -> Any:
    class Holder:
        model = lora_model(trained=True)

    return Holder


def test_the_pairs_and_tokens_of_a_step_are_counted_once(tmp_path):
    data = GroupDataset.from_groups(groups_of_many_sizes())
    whole = run(tmp_path / "whole", data=data, max_steps=1)
    parts = run(tmp_path / "parts", data=data, max_steps=1, max_tokens_per_batch=ONE_GROUP, logging_steps=10)
    assert len(parts.engine.trained) == sum(len(group.pairs) for group in data)
    assert_same_counts(parts, whole)


def assert_same_counts(made: Any, expected: Any) -> None:
    (entry,), (other,) = ([e for e in r.state.log_history if "train_loss" in e] for r in (made, expected))
    assert entry["total_flos"] == other["total_flos"]
    assert entry["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


def test_work_is_counted_once_per_step(tmp_path, monkeypatch):
    def counted(folder: str, budget: int | None) -> tuple[int, ...]:
        options = {"max_tokens_per_batch": budget, "logging_strategy": "no", "data": rows(8)}
        made = trainer(lora_model(), tmp_path / folder, **options)
        made.train()
        return made._work.units, made._work.packed_tokens, made._work.separate_tokens, made._work.flops

    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "a"))
    whole = counted("whole", None)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "b"))
    assert counted("parts", ONE_GROUP) == pytest.approx(whole)
    assert whole[0] == 6


def test_the_last_step_of_an_epoch_is_whole_too(tmp_path):
    """Ten pairs in micro-batches of two, four to a step: steps of eight and of two."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    options |= {"data": data_of_two_lengths(10), "max_steps": -1, "num_train_epochs": 2}
    whole = run(tmp_path / "whole", **options)
    assert whole.state.global_step == 4
    assert_same_run(run(tmp_path / "parts", max_tokens_per_batch=100, **options), whole)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    options = {
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
        "max_tokens_per_batch": 150,
        "logging_steps": 2,
    }
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "train_sampling_strategy": "random"}
    options |= {"optim": "adamw_torch", "learning_rate": 1e-2, "disable_dropout": False}
    whole = run(tmp_path / "whole", model=lora_model(lora_dropout=0.3), **options)
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    resumed = run(tmp_path / "resumed", model=lora_model(lora_dropout=0.3), resume=checkpoint, **options)
    assert logged(resumed) == logged(whole)
    assert all(torch.equal(weights(resumed)[name], weight) for name, weight in weights(whole).items())


@pytest.mark.parametrize("budget", [LARGEST, ONE_GROUP])
def test_evaluation_and_the_reference_pass_respect_the_budget(budget, tmp_path, monkeypatch):
    groups = GroupDataset.from_groups(groups_of_many_sizes())

    def evaluated(folder: str, tokens: int | None) -> tuple[dict[str, Any], Any, int]:
        monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / folder / "cache"))
        options = {"data": groups, "eval_dataset": groups, "per_device_eval_batch_size": 8, "max_steps": 1}
        made = run(tmp_path / folder, model=tiny_model(), max_tokens_per_batch=tokens, learning_rate=0.05, **options)
        predicted = made.predict(groups).predictions
        return untimed([made.evaluate()])[0], predicted, max(made.engine.scored)

    whole, rewards, largest = evaluated("whole", None)
    assert largest == sum(group.tokens for group in groups)
    parts, same_rewards, largest = evaluated("parts", budget)
    assert largest <= LARGEST
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert same_rewards == pytest.approx(rewards, rel=1e-3, abs=1e-5)  # every pair in its place
    assert len({float(value) for value in rewards[:, 0]}) > 8


def test_a_cpu_may_have_a_budget_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "AUTOMATIC_CPU_TOKENS", 150)
    made = run(tmp_path / "automatic", max_steps=1)
    assert 0 < max(made.engine.trained) <= 150
    asked = run(tmp_path / "asked", max_steps=1, max_tokens_per_batch=UNLIMITED)
    assert len(asked.engine.trained) == 1


def test_without_being_asked_it_never_computes_more_at_a_time_than_the_batches_that_were(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "AUTOMATIC_CPU_TOKENS", UNLIMITED)
    made = run(tmp_path, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert max(made.engine.trained) == max(group.tokens for group in list(made.train_dataset)[:8])


# --- what must be there to train on ---


def test_dropping_the_only_batch_is_reported_with_the_numbers(tmp_path):
    options = {"per_device_train_batch_size": 4, "dataloader_drop_last": True}
    with pytest.raises(ConfigError, match=r"3 rows fill less than one batch \(per_device_train_batch_size=4\)"):
        trainer(lora_model(), tmp_path, data=rows(3), **options)
    made = trainer(lora_model(), tmp_path, data=rows(4), **options)
    made.train()
    assert made.state.global_step == 3
