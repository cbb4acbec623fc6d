"""How the guard is asked for, and what is refused."""

from __future__ import annotations

import pytest

from preftune.errors import ConfigError
from tests.training.dpo_runs import config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guard": "shout"}, "guard='shout' is unknown. Its values are off, warn, stop, rollback"),
        ({"guard_budget": 0.7}, "guard_budget=0.7 must be between 0 and 0.5"),
        ({"guard_prompts": "1"}, "give at least 2"),
        (
            {"guard": "rollback", "load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            "would both choose the weights",
        ),
    ],
)
def test_impossible_settings_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **options)


def test_the_guard_is_off_unless_it_is_asked_for_and_yamls_off_is_off(tmp_path):
    assert config(tmp_path).guard == "off"
    assert config(tmp_path, guard=False).guard == "off"
    assert config(tmp_path, guard="warn", guard_prompts="12").guard_prompts == 12


def test_the_command_line_watches_unless_a_flag_or_a_recipe_says_otherwise(tmp_path):
    from preftune.cli.flags.recipe import read_recipe
    from preftune.cli.train.dpo import read_request

    words = ["--model", "m", "--data", "d", "--output_dir", str(tmp_path), "--use_cpu"]
    assert read_request(words).config.guard == "warn"
    assert read_request([*words, "--guard", "off"]).config.guard == "off"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("guard: off\nguard_budget: 0.1\nguard_prompts: 6\n")
    config = read_request(words, read_recipe(str(recipe))).config
    assert (config.guard, config.guard_budget, config.guard_prompts) == ("off", 0.1, 6)
    assert read_request([*words, "--guard", "stop"], read_recipe(str(recipe))).config.guard == "stop"
