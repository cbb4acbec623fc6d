"""The `sweep` block of a recipe: what it means, and what is refused with the fix."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.errors import RequestError
from preftune.sweep.plan import Choice, Range, read_plan

RECIPE = {"model_name_or_path": "sft", "dataset_name": "pairs.jsonl", "eval_fraction": 0.1}
SEARCH = {"learning_rate": {"low": 1e-6, "high": 1e-4, "log": True}, "beta": [0.05, 0.1]}


def plan(block: Any = None, **recipe: Any) -> Any:
    return read_plan({**RECIPE, **recipe, "sweep": {"search": SEARCH, **(block or {})}}, name="r.yaml")


def test_what_a_recipe_says_and_what_it_leaves_out() -> None:
    found = plan()
    assert found.space == [Range("learning_rate", 1e-6, 1e-4, None, True), Choice("beta", [0.05, 0.1])]
    assert (found.command, found.objective, found.direction) == ("dpo", "eval_rewards/accuracies", "maximize")
    assert (found.trials, found.seeds, found.sampler, found.pruner) == (20, [42], "tpe", "median")
    assert found.recipe == RECIPE
    assert plan(seed=7).seeds == [7]
    assert plan({"objective": "eval_loss"}).direction == "minimize"
    assert plan({"command": "sft"}).objective == "eval_loss"
    assert plan({"command": "reward"}).objective == "eval_accuracy"
    assert plan({"pruner": None}).pruner == "none"
    assert plan({"objective": "win_rate", "judge": "longer"}).limit == 64


def test_the_values_of_a_range() -> None:
    assert Range("epochs", 1, 3).whole
    assert Range("epochs", 1, 3).grid == [1, 2, 3]
    assert Range("beta", 0.1, 0.5, 0.2).grid == [0.1, 0.3, 0.5]
    assert Range("beta", 0.1, 0.5).grid is None


def test_an_objective_whose_scale_is_searched_is_named() -> None:
    assert "another scale for each beta" in plan({"objective": "eval_rewards/margins"}).note
    assert "another scale for each beta" in plan({"objective": "eval_loss"}).note
    assert not plan().note
    assert not plan({"objective": "eval_loss", "search": {"learning_rate": [1e-5, 2e-5]}}).note


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"serach": {}}, "serach: there is no such setting. Did you mean 'search'?"),
        ({"search": {}}, "has no ranges to search. Add a block"),
        ({"search": {"beta": 0.1}}, "search: beta: give values, as"),
        ({"search": {"beta": {"low": 0.5, "high": 0.1}}}, "low must be below high"),
        ({"search": {"beta": {"low": 0, "high": 1, "log": True}}}, "low above 0, and no step"),
        ({"search": {"beta": {"low": "a", "high": 1}}}, "must be numbers"),
        ({"search": {"beta": {"low": 0.1, "high": 1, "log": "false"}}}, "log: 'false' is neither true nor false"),
        ({"search": {"beta": {"low": 0.1, "high": 1, "kind": 2}}}, "kind: a range has low, high, step, log"),
        ({"search": {"beta": [0.1, 0.1]}}, "has a value twice"),
        ({"search": {"seed": [1, 2]}}, "seed is set by the sweep"),
        ({"trials": 0}, "trials: 0: give a whole number"),
        ({"seeds": [1, 1]}, "give different whole numbers"),
        ({"sampler": "cmaes"}, "one of tpe, random, grid"),
        ({"sampler": "grid"}, "grid needs values, or ranges with a step"),
        ({"direction": "up"}, "one of maximize, minimize"),
        ({"objective": "win_rate"}, "belong together"),
        ({"judge": "longer"}, "belong together"),
        ({"prompts": "x"}, "prompts and limit belong to objective: win_rate"),
    ],
)
def test_mistakes_are_named_with_the_fix(block: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as error:
        plan(block)
    assert words in str(error.value)
    assert "r.yaml" in str(error.value)


def test_a_held_out_objective_needs_held_out_rows() -> None:
    with pytest.raises(RequestError, match=r"holds none out\. Add eval_fraction: 0\.1"):
        plan(eval_fraction=None)
