"""Advice that fits: learning rates, beta, names of metrics, what PPO's knobs are, a destroyed model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from preftune import SFTConfig, SFTTrainer
from preftune.cli.train.train_command import _finish
from preftune.errors import ConfigError, PreftuneError
from preftune.evaluation.two_models.advice import next_steps
from preftune.statistics.intervals import win_rate
from preftune.training.guard.figures import Facts
from preftune.training.setup.advice import advise
from preftune.training.setup.arguments import check_evaluation
from preftune.training.step.metrics import PER_PAIR
from tests.training.dpo_runs import trainer
from tiny import rows, tiny_model, tiny_tokenizer


def advice(rate: float, *, pairs: int = 20_000, full: bool = False) -> str:
    config = SimpleNamespace(beta=0.1, loss="sigmoid", learning_rate=rate)
    lines = advise(config, pairs=pairs, has_chat_template=True, full=full, epochs=1.0)  # type: ignore[arg-type]
    return " ".join(lines)


@pytest.mark.parametrize(
    ("rate", "says"),
    [
        (5e-7, "is low for an adapter"),
        (5e-6, ""),
        (5e-5, ""),
        (1e-4, "is high for an adapter"),
        (5e-4, "is high for an adapter"),
        (1.0, "destroys a language model"),
    ],
)
def test_the_learning_rate_of_an_adapter(rate: float, says: str) -> None:
    assert says in advice(rate)
    assert says or "learning_rate" not in advice(rate)


def test_a_few_hundred_pairs_bear_a_higher_rate() -> None:
    assert "learning_rate" not in advice(3e-4, pairs=300)
    assert "is high for an adapter" in advice(5e-4, pairs=300)
    assert "destroys" in advice(1.0, full=True)


def test_the_guard_advises_from_what_is_set() -> None:
    def facts(beta: float, epochs: float = 1.0) -> Facts:
        return Facts(beta=beta, learning_rate=5e-5, full=False, steps=10, epochs=epochs)

    assert facts(0.1).hold_back == "Halve the learning rate first; then raise beta to 0.2 to 0.5."
    assert facts(0.3, 3).hold_back.endswith("then raise beta to 0.5; train for one epoch, which is usually enough.")
    assert facts(0.9).hold_back == "Halve the learning rate first."
    assert "beta" not in facts(0.9).too_free
    assert "beta (0.1) too low" in facts(0.1).too_free


def test_the_next_step_after_ppo_speaks_of_ppo() -> None:
    undecided, worse = win_rate([1, 0] * 10), win_rate([0] * 20)
    for result, spoilt in ((undecided, ()), (worse, ()), (worse, ("repeats",))):
        told = " ".join(next_steps(result, worse=spoilt, method="ppo", kl_coef=0.05, learning_rate=1e-5))
        assert "kl_coef (now 0.05)" in told
        assert "beta" not in told
        assert "pairs that differ" not in told
    assert "beta" in " ".join(next_steps(worse, method="dpo"))
    assert "beta" not in " ".join(next_steps(worse, worse=("repeats",), method="sft"))
    assert "0.5 keeps" in " ".join(next_steps(worse, worse=("repeats",), beta=0.3))
    assert "0.2 to 0.5" not in " ".join(next_steps(worse, worse=("repeats",), beta=0.3))


def checked(metric: str, eval_dataset: object = object(), **options) -> str:
    args = SimpleNamespace(eval_strategy="steps", metric_for_best_model=metric)
    check_evaluation(args, eval_dataset, PER_PAIR, has_own_metrics=False, **options)  # type: ignore[arg-type]
    return args.metric_for_best_model


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("eval/reward_margin", "eval_rewards/margins"),
        ("reward_margins", "eval_rewards/margins"),
        ("eval_rewards/margins", "eval_rewards/margins"),
        ("rewards/margins", "eval_rewards/margins"),
        ("margin", "eval_rewards/margins"),
        ("accuracy", "eval_rewards/accuracies"),
        ("eval_rewards_accuracies", "eval_rewards/accuracies"),
        ("eval/loss", "eval_loss"),
        ("loss", "eval_loss"),
    ],
)
def test_the_metric_for_the_best_model_as_people_write_it(written: str, meant: str) -> None:
    assert checked(written) == meant


def test_a_loss_is_to_be_low_however_it_is_written() -> None:
    args = SimpleNamespace(eval_strategy="steps", metric_for_best_model="Loss", greater_is_better=True)
    check_evaluation(args, object(), PER_PAIR, has_own_metrics=False)  # type: ignore[arg-type]
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_loss", False)


def test_a_metric_that_is_not_there_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'eval_rewards/accuracies'"):
        checked("eval_rewards/acuracies_")
    with pytest.raises(ConfigError, match="is not a metric of this evaluation"):
        checked("rewards")  # fits several
    sets = {"easy": object(), "hard": object()}
    assert checked("eval_hard_reward_margin", sets) == "eval_hard_rewards/margins"
    assert checked("eval_hard_long_loss", {**sets, "hard_long": object()}) == "eval_hard_long_loss"
    with pytest.raises(ConfigError, match="does not name its evaluation set"):
        checked("loss", sets)
    args = SimpleNamespace(eval_strategy="steps", metric_for_best_model="my_own")
    check_evaluation(args, object(), PER_PAIR, has_own_metrics=True)  # type: ignore[arg-type]
    assert args.metric_for_best_model == "my_own"


def test_a_destroyed_model_is_not_pushed(monkeypatch, tmp_path: Path) -> None:
    pushed = []
    trainer = SimpleNamespace(
        save_model=lambda: None,
        create_model_card=lambda: None,
        is_world_process_zero=lambda: True,
        push_to_hub=lambda **_: pushed.append(1),
        state=SimpleNamespace(global_step=1),
    )
    config = SimpleNamespace(push_to_hub=True, output_dir=str(tmp_path))
    request = SimpleNamespace(config=config, saves_adapter=True, report=False)
    monkeypatch.setattr("preftune.training.setup.broken.broken_by_training", lambda trainer: "The model is destroyed.")
    monkeypatch.setattr("preftune.cli.train.train_command.held_out_metrics", lambda trainer: None)
    with pytest.raises(PreftuneError, match="destroyed"):
        _finish(SimpleNamespace(holds_out=False), trainer, request)  # type: ignore[arg-type]
    assert not pushed


def test_a_destroyed_model_ends_the_command_with_a_failure(tmp_path: Path, capsys, monkeypatch) -> None:
    from preftune.cli.main import main
    from tiny import chat_rows, save_tiny

    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(16)), encoding="utf-8")
    words = f"dpo --model {tmp_path / 'model'} --data {pairs} --output_dir {tmp_path / 'run'}"
    words += " --learning_rate 1 --guard off --max_steps 6 --no_report --report_to none --use_cpu"
    for more in ("", " --resume auto"):  # a loop that starts it again until it succeeds
        code = main((words + more).split())
        said = capsys.readouterr()
        assert code == 1
        assert "destroyed" in said.err
    assert "Done" not in said.out


@pytest.mark.parametrize(("bias", "says"), [(-40.0, True), (0.0, False)], ids=["never ends", "may end"])
def test_a_base_model_that_ships_a_template_is_recognised(tmp_path: Path, caplog, bias: float, says: bool) -> None:
    import torch

    from preftune import DPOConfig, DPOTrainer
    from tiny import chat_rows, tiny_model, tiny_tokenizer

    model, tokenizer = tiny_model(), tiny_tokenizer()
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight.data.copy_(model.lm_head.weight.data)
    head.bias.data.zero_()
    head.bias.data[tokenizer.eos_token_id] = bias
    model.lm_head = head
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", reference_cache=False)
    with caplog.at_level("INFO", logger="preftune"):
        DPOTrainer(model=model, args=args, train_dataset=chat_rows(8), processing_class=tokenizer)
    assert ("probably a base model" in caplog.text) == says


def test_evaluation_prompts_that_are_trained_on_are_counted(tmp_path: Path, caplog) -> None:
    with caplog.at_level("INFO", logger="preftune"):
        trainer(tiny_model(), tmp_path / "a", data=rows(8), eval_dataset={"seen": rows(12), "new": rows(4, start=40)})
    assert "8 of 12 evaluation prompts (seen) are also in the training data" in caplog.text
    assert "(new)" not in caplog.text
    caplog.clear()
    texts = [{"text": f"The {word} is here."} for word in ("cat", "dog", "owl")]
    with caplog.at_level("INFO", logger="preftune"):
        settings = SFTConfig(output_dir=str(tmp_path / "b"), report_to=[])
        SFTTrainer(
            tiny_model(), args=settings, train_dataset=texts[:2], eval_dataset=texts, processing_class=tiny_tokenizer()
        )
    assert "are also in the training data" not in caplog.text  # the first token alone is no prompt
