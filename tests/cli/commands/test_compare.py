"""`preftune compare` from its command line to its report, on a random model; the trainings run in this process."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from preftune.cli.commands import compare
from preftune.cli.main import main
from preftune.training import stages
from tests.cli.command import write_rows
from tests.generation.chat_server import serving
from tiny import chat_rows

RULES = """
def vowels(prompt, answer, row):
    return sum(letter in "aeiou" for letter in answer)

def by_length(prompt, answer_a, answer_b, row):
    return "tie" if len(answer_a) == len(answer_b) else "a" if len(answer_a) > len(answer_b) else "b"
"""
FAST = [
    "--budget", "8pairs", "--dpo", "beta=0.1,0.5", "learning_rate=1e-2", "--ppo", "kl_coef=0.01,0.1",
    "learning_rate=1e-2", "max_new_tokens=4", "num_mini_batches=2", "per_device_train_batch_size=1", "--both",
    "use_peft=true", "use_cpu=true", "per_device_train_batch_size=4",
    "--max_new_tokens", "4", "--judge", "rule:compare_rules:by_length",
]  # fmt: skip


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The trainings that were run."""
    made: list[str] = []

    def here(stage: stages.Stage, watch: object = None) -> int:
        made.append(stage.folder.name)
        code = main([stage.command, "--config", str(stage.folder / "recipe.yaml"), "--no_report"])
        (stage.folder / "log.txt").write_text("")
        return code

    monkeypatch.setattr(stages, "_run", here)
    return made


@pytest.fixture
def pairs(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compare_rules.py").write_text(RULES)
    return write_rows(tmp_path / "pairs.jsonl", chat_rows(30))


def test_a_whole_comparison_and_what_is_done_again(preftune, tiny_model, pairs, calls, tmp_path) -> None:
    words = ["compare", "--model", tiny_model, "--data", pairs, "--gold", "rule:compare_rules:vowels", *FAST]
    result = preftune(*words, "--seeds", "0", "1")
    assert result.code == 0, result.err
    # the chosen ones of the first seed are trained once more with the second
    first = ["dpo-1-seed0", "reward-seed0", "ppo-1-seed0", "dpo-2-seed0", "ppo-2-seed0"]
    assert calls[:5] == first
    assert sorted(name.partition("-")[0] for name in calls[5:]) == ["dpo", "ppo", "reward"]
    assert all(name.endswith("seed1") for name in calls[5:])
    found = json.loads(Path("runs/compare/compare.json").read_text())
    assert found["data"] == {"name": pairs, "train": 21, "tune": 3, "test": 6, "held_out": 9}
    assert found["verdict"] in result.out
    assert found["verdict"].startswith(("No difference shown", "DPO is ahead", "PPO is ahead"))
    assert [trial["used_of_the_budget"] for trial in found["trials"]] == [8, 8, 8, 8]
    assert all(trial["peak_gb"] > 0 and trial["distance"]["kl"] for trial in found["trials"])
    assert sum(trial["chosen"] for trial in found["trials"]) == 2
    assert found["duels"][0]["n"] == 12
    assert found["methods"]["ppo"]["gold"]["mean"] >= 0
    assert len(found["methods"]["dpo"]["per_seed"]) == 2
    page = Path("runs/compare/report.html").read_text()
    assert "Reward against KL" in page
    recipe = Path("runs/compare/trials/ppo-1-seed0/recipe.yaml").read_text()
    assert "kl_coef: '0.01'" in recipe
    assert "reference_cache" not in Path("runs/compare/trials/dpo-2-seed0/recipe.yaml").read_text()
    assert "total_episodes: 8" in recipe  # 8 pairs, of which the reward model had its share

    calls.clear()
    again = preftune(*words, "--seeds", "0", "1")
    assert again.code == 0
    assert calls == []
    assert json.loads(Path("runs/compare/compare.json").read_text())["trials"] == found["trials"]


def test_rows_of_the_data_that_give_no_pair_are_counted(tmp_path, capsys) -> None:
    rated = [{"prompt": f"{i}?", "completions": ["yes", "no"], "scores": [5, 5 if i == 2 else 1]} for i in range(4)]
    data = write_rows(tmp_path / "rated.jsonl", rated)
    words = ["--model", "m", "--data", data, "--judge", "longer"]
    compare._read(compare._parser(["dpo", "ppo"]).parse_args(words))
    assert capsys.readouterr().err.count("(rows 2): two answers have the same rating") == 1


def cache_hits(trial: str) -> list[float]:
    lines = Path(f"runs/compare/trials/{trial}/metrics.jsonl").read_text().splitlines()
    return [line["reference/cache_hits"] for line in map(json.loads, lines) if "reference/cache_hits" in line]


@pytest.mark.sample(0)
def test_many_methods_are_one_race_with_every_direct_comparison(preftune, tiny_model, pairs, calls) -> None:
    words = [
        "compare",
        "--model",
        tiny_model,
        "--data",
        pairs,
        "--methods",
        "dpo,ipo",
        "simpo",
        "kto",
        "grpo",
        "--seeds",
        "0",
        "1",
    ]
    words += ["--budget", "8pairs", "--trials", "1", "--both", "use_peft=true", "use_cpu=true"]
    words += [
        "per_device_train_batch_size=4",
        "--grpo",
        "num_generations=2",
        "max_new_tokens=4",
        "--max_new_tokens",
        "4",
    ]
    result = preftune(*words, "--judge", "rule:compare_rules:by_length")
    assert result.code == 0, result.err
    methods = ["dpo", "ipo", "simpo", "kto", "grpo"]
    trained = [f"{name}-1" for name in methods]
    assert calls == [f"{name}-seed{seed}" for seed in (0, 1) for name in (*trained[:4], "reward", trained[4])]
    found = json.loads(Path("runs/compare/compare.json").read_text())
    assert list(found["methods"]) == methods
    assert [(duel["first"], duel["second"]) for duel in found["duels"]] == [*itertools.combinations(methods, 2)]
    assert {duel["n"] for duel in found["duels"]} == {12}
    assert {duel["confidence_of_ahead"] for duel in found["duels"]} == {1 - 0.05 / 10}
    assert {model["name"] for model in found["scores"]["models"]} == {"start", *methods}
    assert [trial["used_of_the_budget"] for trial in found["trials"]] == [8] * 5
    recipe = Path("runs/compare/trials/simpo-1-seed0/recipe.yaml").read_text()
    assert "loss_type: simpo" in recipe
    assert cache_hits("dpo-1-seed0") == [0.0, 0.0]  # the first trial waits for the reference, the others look it up
    assert cache_hits("ipo-1-seed0") == [1.0, 1.0]
    page = Path("runs/compare/report.html").read_text()
    assert "Against each other" in page
    assert "DPO, IPO, SimPO, KTO or GRPO?" in page


@pytest.mark.sample(0)
def test_stopped_in_the_middle_it_goes_on(preftune, tiny_model, pairs, calls, monkeypatch) -> None:
    words = ["compare", "--model", tiny_model, "--data", pairs, "-o", "out", *FAST]
    train = stages._run

    def stopped(stage: stages.Stage, watch: object = None) -> int:
        if stage.command == "ppo":
            raise KeyboardInterrupt
        return train(stage)

    monkeypatch.setattr(stages, "_run", stopped)
    result = preftune(*words)
    assert result.code == 130
    assert "the same command continues" in result.message
    monkeypatch.setattr(stages, "_run", train)
    calls.clear()
    assert preftune(*words).code == 0
    assert calls == ["ppo-1-seed0", "dpo-2-seed0", "ppo-2-seed0"]


def test_a_method_none_of_whose_trials_finishes_is_an_error(preftune, tiny_model, pairs, calls, monkeypatch) -> None:
    train = stages._run

    def broken(stage: stages.Stage, watch: object = None) -> int:
        code = train(stage) if stage.command != "ppo" else 1
        if stage.command == "ppo":
            (stage.folder / "log.txt").write_text("preftune: out of memory. Lower it.\n")
        return code

    monkeypatch.setattr(stages, "_run", broken)
    result = preftune("compare", "--model", tiny_model, "--data", pairs, *FAST)
    assert result.code == 2
    assert "ppo-1-seed0 (kl_coef 0.01) did not finish: out of memory. Lower it. Its log is" in result.out
    assert "No trial of PPO finished" in result.message


@pytest.mark.parametrize(("words", "said"), [
    (["--dpo", "bata=0.1"], "--dpo bata=...: there is no such setting. Did you mean 'beta'?"),
    (["--dpo", "beta=-1", "--ppo", "kl_coef=1"], "beta"),
    (["--ppo", "kl_coef=x,y,z"], "kl_coef"),
    (["--both", "seed=3"], "the comparison sets seed itself"),
    (["--both", "kl_coef=3"], "there is no such setting"),
    (["--dpo", "beta=0.1,0.2", "--ppo", "kl_coef=1,2,3"], "2 of DPO, 3 of PPO"),
    (["--methods", "dpo,ipo", "--ppo", "kl_coef=1"], "--ppo has settings of ppo, which is not compared (--methods dpo"),
    (["--methods", "dpo,ipoo"], "--methods ipoo: there is no such method. Did you mean 'ipo'?"),
    (["--methods", "dpo,sigmoid"], "--methods sigmoid: there is no such method. It is called dpo."),
    (["--methods", "dpo,both"], "--methods both: there is no such method. Known are dpo, cdpo, "),
    (["--methods", "dpo"], "give at least two"),
    (["--methods", "dpo,kto,dpo"], "dpo is given twice"),
    (["--methods", "dpo,ipo", "--reward", "learning_rate=1"], "none of the methods trains a reward model"),
    (["--methods", "dpo,ipo", "--ppo", "kl_coef=1"], "--ppo"),
    (["--methods", "dpo,ipo", "--ipo", "loss_type=sigmoid"], "the comparison sets loss_type itself"),
    (["--methods", "kto,grpo", "--grpo", "num_generations=3"], "which is not a multiple of num_generations=3"),
    (["--trials", "4"], "a method has 3 usual values"),
    (["--budget", "soon"], "--budget soon: give a time"),
    (["--both", "lr_scheduler_type=linear"], "the comparison sets lr_scheduler_type itself"),
    (["--both", "warmup_steps=10"], "the comparison sets warmup_steps itself"),
    (["--both", "model_revision=v2"], "the comparison sets model_revision itself"),
    (["--dpo", "group_by_prompt=true", "--budget", "9pairs"], "With group_by_prompt batches count prompts"),
    (["--seeds", "0", "0"], "a seed is given twice"),
    (["--samples", "0"], "--samples 0: give at least 1"),
    (["--judge", "auto"], "--judge auto is only for preftune eval"),
    (["--judge", "nobody"], "There is no judge 'nobody'"),
    (["--model", "nowhere"], "nowhere"),
    (["--data", "nothing.jsonl"], "nothing.jsonl"),
    (["--max_calls", "3"], "--max_calls has no effect"),
    (["--test_prompts", "29"], "each part needs 2"),
    (["-o", "pairs.jsonl"], "is a file"),
])  # fmt: skip
def test_what_is_wrong_is_reported_before_anything_is_trained(words, said, preftune, tiny_model, pairs, calls) -> None:
    usual = {"--model": tiny_model, "--data": pairs, "--judge": "shorter"}
    for flag, value in usual.items():
        if flag not in words:
            words = [*words, flag, value]
    result = preftune("compare", *words)
    assert result.code == 2
    assert said in result.message
    assert calls == []
    assert len(result.err.strip().splitlines()) == 1


def test_a_prompt_that_cannot_be_answered_is_reported_before_anything_is_trained(
    preftune, tiny_model, pairs, calls
) -> None:
    words = ["compare", "--model", tiny_model, "--data", pairs, "--judge", "shorter", "--max_new_tokens", "100000"]
    result = preftune(*words)
    assert result.code == 2
    assert "the model has only" in result.message
    assert calls == []


@pytest.mark.sample(0)
def test_a_policy_that_its_last_step_wrecked_counts_as_a_trial_that_failed(
    preftune, tiny_model, pairs, calls, monkeypatch
) -> None:
    train = stages._run

    def wrecks(stage: stages.Stage, watch: object = None) -> int:
        code = train(stage)
        if stage.folder.name == "dpo-1-seed0":
            file = stage.folder / "adapter_model.safetensors"
            save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file)
        return code

    monkeypatch.setattr(stages, "_run", wrecks)
    result = preftune("compare", "--model", tiny_model, "--data", pairs, *FAST)
    assert result.code == 0, result.err
    assert "dpo-1-seed0 (beta 0.1) did not finish: " in result.out
    assert "chosen for DPO: beta 0.5" in result.out
    assert "These trials did not finish, and count as trials: DPO with beta 0.1" in result.out


@pytest.mark.sample(0)
def test_remote_code_is_allowed_in_the_trainings_as_well(preftune, tiny_model, pairs, calls) -> None:
    assert preftune("compare", "--model", tiny_model, "--data", pairs, *FAST, "--trust_remote_code").code == 0
    for name in ("dpo-1", "ppo-1", "reward"):
        recipe = Path(f"runs/compare/trials/{name}-seed0/recipe.yaml").read_text()
        assert "trust_remote_code: 'true'" in recipe


def test_a_rule_that_misses_its_column_says_so_before_anything_is_trained(preftune, tiny_model, pairs, calls) -> None:
    words = [word if word != "rule:compare_rules:by_length" else "key-fact" for word in FAST]
    result = preftune("compare", "--model", tiny_model, "--data", pairs, *words)
    assert result.code == 2
    assert "A row has no usable 'key_fact'" in result.message
    assert calls == []


@pytest.mark.sample(0)
def test_a_chat_model_judges_within_its_cap_and_is_asked_again_where_it_said_nothing(
    preftune, tiny_model, pairs, calls
) -> None:
    said = ["I do not know."]
    with serving(lambda body: said[0]) as server:
        words = [
            "compare", "--model", tiny_model, "--data", pairs, "--judge", server.spec(), "--max_new_tokens", "4",
            "--budget", "8pairs", "--dpo", "beta=0.1", "learning_rate=1e-1", "--ppo", "kl_coef=0.01",
            "max_new_tokens=4",
            "num_mini_batches=2", "per_device_train_batch_size=1", "--both", "use_peft=true", "use_cpu=true",
            "per_device_train_batch_size=4",
        ]  # fmt: skip
        first = preftune(*words)
        assert first.code == 0, first.err
        assert "the judge compares at most 24 pairs of answers, each in both orders" in first.err
        asked = len(server.asked)
        assert asked > 0
        said[0] = "[[A]]"
        assert preftune(*words).code == 0
        assert len(server.asked) == asked
        again = preftune(*words, "--ask_again")
        assert again.code == 0
        assert len(server.asked) > asked


def test_every_flag_is_on_the_help_page(preftune) -> None:
    result = preftune("compare", "--help")
    assert result.code == 0
    for option in compare._parser()._actions:
        assert not option.option_strings or option.option_strings[-1] in result.out
