"""Runs of `PPOTrainer` on tiny models: what is logged, saved, resumed, held in memory, and whether it learns."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from preftune.errors import ConfigError, DatasetError, ModelError, RequestError
from preftune.models import load_model
from preftune.models.roles import VALUE
from preftune.training.ppo import PPOTrainer
from preftune.training.record.stopping import StoppedError
from saved_reward import save_reward
from tiny import save_tiny, tiny_model, tiny_tokenizer

from .ppo_runs import PROMPTS, letters_and_noise, logged, lora, trainer


def adapter(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if ".default." in name}


def test_the_ratio_begins_at_1(tmp_path: Path) -> None:
    """The first mini-batch of the first epoch sees the policy that wrote it, to rounding; later ones do not."""
    trainer(tmp_path, logging_steps=1, num_ppo_epochs=2).train()
    first, second, *_ = logged(tmp_path)
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["val/ratio_var"] == pytest.approx(0.0, abs=1e-6)
    assert first["policy/clipfrac_avg"] == 0.0
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5), "policy and reference begin as one"
    assert abs(second["val/ratio"] - 1) > 1e-4


def test_what_is_logged_and_written(tmp_path: Path) -> None:
    run = trainer(tmp_path, missing_eos_penalty=0.5, kl_target=1.0)
    run.train()
    run.save_model()
    lines = logged(tmp_path)
    assert len(lines) == 2, "once per round"
    expected = """loss grad_norm objective/kl objective/entropy objective/non_score_reward objective/rlhf_reward
        objective/scores objective/kl_coef policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg loss/policy_avg
        loss/value_avg val/clipfrac_avg val/ratio val/ratio_var val/var_explained val/num_eos_tokens
        completions/mean_length completions/eos_share episode""".split()
    assert set(expected) <= set(lines[-1])
    assert lines[-1]["episode"] == 8
    assert 1 <= lines[-1]["completions/mean_length"] <= 6
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (facts["method"], facts["outcome"], facts["episodes"]) == ("ppo", "finished", 8)
    assert facts["reference"]["source"] == "the same model with its adapter switched off"
    assert facts["self_check"]["engine_error"] < 1e-4
    card = (tmp_path / "README.md").read_text()
    assert "proximal policy optimisation" in card
    assert "| rated by | letters_and_noise |" in card
    assert not list(tmp_path.glob(f"*{VALUE}*")), "the value function is no part of the aligned model"
    loaded = load_model(str(tmp_path), base_model=save_tiny(tmp_path / "base"))
    theirs = {name: p for name, p in loaded.named_parameters() if "lora_" in name}
    for name, mine in adapter(run).items():
        assert torch.equal(theirs[name], mine), name


def test_a_step_in_parts_is_the_same_step(tmp_path: Path) -> None:
    whole, parts = trainer(tmp_path / "a"), trainer(tmp_path / "b", max_tokens_per_batch=10)
    accumulated = trainer(tmp_path / "c", per_device_train_batch_size=1, gradient_accumulation_steps=2)
    for one in (whole, parts, accumulated):
        one.train()
    for name, expected in adapter(whole).items():
        torch.testing.assert_close(adapter(parts)[name], expected, rtol=1e-3, atol=2e-5)
        assert torch.equal(adapter(accumulated)[name], expected), name


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    """A checkpoint that is due within a round is written at its end; sampling, penalty and value function go on."""
    options = {"max_steps": 6, "kl_target": 0.5, "kl_horizon": 20, "normalize_rewards": True}
    through = trainer(tmp_path / "through", **options)
    through.train()
    options |= {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "resumed", **options).train()
    names = sorted(folder.name for folder in (tmp_path / "resumed").glob("checkpoint-*"))
    assert names == ["checkpoint-4", "checkpoint-6"], "3 lies within a round of two steps"
    assert not list((tmp_path / "resumed/checkpoint-4").glob(f"*{VALUE}*"))
    again = trainer(tmp_path / "resumed", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-4"))
    for name, expected in adapter(through).items():
        assert torch.equal(adapter(again)[name], expected), name
    for (name, mine), (_, expected) in zip(again.cast.value_state(), through.cast.value_state(), strict=True):
        assert torch.equal(mine, expected), name
    assert again.penalty.coefficient == through.penalty.coefficient != 0.05
    timed = ("time", "memory/peak_gb")
    kept = [{k: v for k, v in line.items() if k not in timed} for line in logged(tmp_path / "resumed")]
    assert kept == [{k: v for k, v in line.items() if k not in timed} for line in logged(tmp_path / "through")]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    run.train()
    (tmp_path / "checkpoint-4/value.safetensors").unlink()
    (tmp_path / "checkpoint-4/preftune_manifest.json").unlink()
    with pytest.raises(ConfigError, match="has no value function"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_half_precision(tmp_path: Path) -> None:
    """Under autocast the ratio begins at 1 as far as bfloat16 resolves; what trains stays float32."""
    run = trainer(tmp_path, bf16=True, logging_steps=1)
    run.train()
    assert logged(tmp_path)[0]["val/ratio"] == pytest.approx(1.0, abs=0.05)
    assert {p.dtype for p in run.cast.trained.parameters() if p.requires_grad} == {torch.float32}


def small_letters(prompt: Any, answer: str, row: Any) -> float:
    """The share of eight places that hold a small letter."""
    return sum(letter.isascii() and letter.islower() for letter in answer) / 8


def test_a_rule_is_learnt(tmp_path: Path) -> None:
    """A random model writes a tenth of small letters; a dozen rounds later several times as many."""
    run = trainer(
        tmp_path,
        reward=small_letters,
        peft_config=None,
        max_steps=96,
        per_device_train_batch_size=16,
        num_ppo_epochs=4,
        max_new_tokens=8,
        generation_batch_size=64,
        learning_rate=3e-3,
        kl_coef=0.0,
        cliprange_value=None,
    )
    run.train()
    scores = [line["objective/scores"] for line in logged(tmp_path)]
    assert scores[0] < 0.2
    assert sum(scores[-3:]) / 3 > 2.5 * scores[0]


def test_sampling_cuts_nothing_off(tmp_path: Path) -> None:
    """The model's own generation config asks for top-k 1, beams and more; rollouts are plain samples."""
    model = tiny_model()
    own = model.generation_config
    own.top_k, own.repetition_penalty, own.num_beams = 1, 5.0, 3
    own.suppress_tokens, own.begin_suppress_tokens, own.forced_eos_token_id = [*range(10, 80)], [*range(80, 200)], 9
    run = trainer(tmp_path, model, temperature=1.0, max_new_tokens=1)
    ids = run.prompts.token_ids[0]
    count = 400
    found = run.sampler(run.model, [run.prompts.prompts[0]] * count, [ids] * count, first=0)
    with torch.no_grad():
        logits = run.model(input_ids=torch.tensor([list(ids)])).logits[0, -1].double()
    firsts = torch.tensor([one.response_ids[0] for one in found])
    assert len(set(firsts.tolist())) > 50
    surprise = -logits.log_softmax(-1)[firsts].mean()
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum()
    assert float(surprise) == pytest.approx(float(entropy), abs=0.1)
    assert any(3 <= token < 200 for token in firsts.tolist())
    assert {9} != {one.response_ids[-1] for one in found}, "no end is forced"
    assert (model.generation_config.num_beams, model.generation_config.top_k) == (3, 1), "and stays what it was"
    again = run.sampler(run.model, [run.prompts.prompts[0]], [ids], first=7)
    assert again[0].response_ids == found[7].response_ids, "the number of an answer decides its draw, not the batch"


def test_at_another_temperature_the_ratio_still_begins_at_1(tmp_path: Path) -> None:
    run = trainer(tmp_path, temperature=0.7, logging_steps=1)
    run.train()
    first = logged(tmp_path)[0]
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    other = trainer(tmp_path / "c", temperature=0.7, ref_model=tiny_model())
    other.train()
    assert logged(tmp_path / "c")[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4), "the reference is scaled alike"
    capped = tiny_model("gemma2")
    with pytest.raises(ConfigError, match="cannot be scaled"):
        trainer(tmp_path / "b", capped, temperature=0.7).train()


def test_filtered_answers_are_not_trained_on(tmp_path: Path) -> None:
    def by_number(prompt: Any, answer: str, row: Any) -> float | None:
        return None if "t" in str(prompt) else float(len(str(prompt)))

    run = trainer(tmp_path, reward=by_number, score_threshold=6.0, data=PROMPTS)
    run.train()
    shares = [line["objective/filtered"] for line in logged(tmp_path)]
    assert 0 < max(shares) < 1
    with pytest.raises(RequestError, match="none of the answers"):
        trainer(tmp_path / "b", score_threshold=100.0).train()


def test_two_things_cannot_rate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a reward must rate"):
        trainer(tmp_path, reward=None)
    with pytest.raises(ConfigError, match="a reward must rate"):
        trainer(tmp_path, reward_model=["x"])
    with pytest.raises(ConfigError, match="needs a reward model that is an adapter"):
        trainer(tmp_path, value_init="reward")
    with pytest.raises(DatasetError, match=r"no prompt \(8 in all\) has at most max_prompt_length=1"):
        trainer(tmp_path, max_prompt_length=1)
    with pytest.raises(ConfigError, match="PPOConfig"):
        PPOTrainer(tiny_model(), object(), PROMPTS, reward=letters_and_noise)  # type: ignore[arg-type]


def test_the_value_may_learn_faster(tmp_path: Path) -> None:
    run = trainer(tmp_path, value_learning_rate=0.5)
    rates = {}
    names = {id(p): name for name, p in run.cast.trained.named_parameters()}
    for group in run.create_optimizer().param_groups:
        rates |= {names[id(p)]: group["lr"] for p in group["params"]}
    assert {rate for name, rate in rates.items() if VALUE in name or "value_head" in name} == {0.5}
    assert {rate for name, rate in rates.items() if ".default." in name} == {1e-2}
    assert len(rates) == sum(p.requires_grad for p in run.cast.trained.parameters())


def test_the_norm_that_is_clipped_is_the_policys_own(tmp_path: Path) -> None:
    """The value's gradients, of another scale, neither count nor shrink the policy's, though one base holds both."""
    norms, weights = [], []
    for weight in (0.0, 1000.0):
        run = trainer(
            tmp_path / f"{weight}", vf_coef=weight, max_grad_norm=0.1, optim="sgd", logging_steps=1, max_steps=2
        )
        run.cast.value.head.weight.data += 0.1  # so that the value's adapter has a gradient at once
        run.train()
        norms.append([line["grad_norm"] for line in logged(tmp_path / f"{weight}")])
        weights.append(adapter(run))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert all(torch.allclose(p, weights[1][name], atol=1e-6) for name, p in weights[0].items())


def test_the_value_has_no_dropout_either(tmp_path: Path) -> None:
    def rates(**options: Any) -> set[float]:
        model = trainer(tmp_path, peft_config=lora(lora_dropout=0.3), **options).model
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates() <= {0.0}
    assert rates(disable_dropout=False) == {0.3}


@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_a_reward_on_the_policys_base_says_what_it_says_alone(tmp_path: Path, kind: str) -> None:
    """Its score is read where it was trained to be: behind what the chat template writes after the end of a turn."""
    from preftune.judges.reward_model import open_reward_model
    from preftune.judges.reward_model_input import write_form
    from preftune.training.online.rollout import rollout_of
    from preftune.training.online.scoring import Score

    base = save_tiny(tmp_path / "base")
    saved = save_reward(tmp_path / "reward", base)
    write_form(saved, "conversations" if kind == "chat" else "plain")
    question: Any = [{"role": "user", "content": "why?"}] if kind == "chat" else "why? "
    run = trainer(tmp_path / "run", base, reward=None, reward_model=[saved], data=[{"prompt": question}])
    tokenizer, (prompt,), (ids,) = tiny_tokenizer(), run.prompts.prompts, run.prompts.token_ids
    end = tokenizer.eos_token_id
    answers = [[*tokenizer("so it is")["input_ids"], end], tokenizer("and cut of")["input_ids"], [end]]
    rollouts = [rollout_of(prompt, ids, tokens, [end], tokenizer, number=n) for n, tokens in enumerate(answers)]
    alone = Score([open_reward_model(saved)])(rollouts).scores
    assert run.cast.reward is not None
    assert run.score(rollouts).scores == pytest.approx(alone, abs=1e-5)
    assert len({round(float(score or 0), 4) for score in alone}) == 3


def test_an_adaptive_penalty_cannot_turn_negative(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kl_horizon=3 is less than the number of answers in a round \(4\)"):
        trainer(tmp_path, kl_target=1.0, kl_horizon=3)
    assert trainer(tmp_path, kl_target=1.0, kl_horizon=4).penalty.horizon == 4


def test_a_prompt_without_room_for_an_answer_is_reported_before_the_first_round(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="positions"):
        trainer(tmp_path, data=[*PROMPTS, {"prompt": "long " * 20}], max_new_tokens=100_000)


def test_the_score_that_is_logged_is_of_all_answers(tmp_path: Path) -> None:
    seen: list[float] = []

    def noted(prompt: Any, answer: str, row: Any) -> float:
        seen.append(letters_and_noise(prompt, answer, row))
        return seen[-1]

    run = trainer(tmp_path, reward=noted, score_threshold=3.2, max_steps=1, logging_steps=1)
    run.train()
    (line,) = logged(tmp_path)
    assert 0 < line["objective/filtered"] < 1
    assert line["objective/scores"] == pytest.approx(sum(seen) / len(seen), rel=1e-5)


def test_a_signal_ends_a_run_after_its_round_with_a_checkpoint_that_goes_on_bit_for_bit(tmp_path: Path) -> None:
    class Send(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:  # the first step of the second round
                signal.raise_signal(signal.SIGTERM)

    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 100}
    through = trainer(tmp_path / "through", **options)
    through.train()
    with pytest.raises(StoppedError):
        trainer(tmp_path / "run", callbacks=[Send()], **options).train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    again = trainer(tmp_path / "run", **options)
    again.train(resume_from_checkpoint="auto")
    for name, expected in adapter(through).items():
        assert torch.equal(adapter(again)[name], expected), name
    again.save_model()
    finished = trainer(tmp_path / "run", **options)
    finished.train(resume_from_checkpoint="auto")
    assert finished.nothing_to_do
    for name, expected in adapter(through).items():
        assert torch.equal(adapter(finished)[name], expected), name


def test_by_default_a_checkpoint_is_written_after_each_pass_over_the_prompts(tmp_path: Path) -> None:
    trainer(tmp_path, num_train_epochs=3.0, max_steps=-1, save_strategy=None).train()
    found = sorted(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*"))
    steps = json.loads((tmp_path / "run.json").read_text())["steps"]
    assert found == [steps * 2 // 3, steps]
