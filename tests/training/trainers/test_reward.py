"""Reward models: losses like TRL's, gradients like the naive path's, saved as transformers has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline, set_seed

from preftune.errors import ConfigError, SelfCheckError
from preftune.judges.reward_model import open_reward_model
from preftune.losses.reward import bradley_terry
from preftune.models import load_tokenizer, merge
from preftune.training.config.reward import RewardConfig
from preftune.training.trainers.reward import RewardTrainer
from tiny import chat_rows, rows, save_tiny, tiny_model, tiny_tokenizer

STEPS = 20


def config(kind: type, folder: Path, **options: Any) -> Any:
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return kind(output_dir=str(folder), **{**defaults, **options})


def reward_trainer(folder: Path, model: Any = None, data: Any = None, *, peft: Any = None, **options: Any) -> Any:
    held_out = options.pop("eval_dataset", None)
    return RewardTrainer(
        model=tiny_model() if model is None else model,
        args=config(RewardConfig, folder, **options),
        train_dataset=chat_rows(32) if data is None else data,
        eval_dataset=held_out,
        processing_class=options.pop("tokenizer", None) or tiny_tokenizer(),
        peft_config=peft,
    )


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry and "loss" in entry]


@pytest.mark.sample(1)
@pytest.mark.filterwarnings("ignore:::trl")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", ["plain", "centred", "margins"])
def test_losses_agree_with_trl(case, tmp_path):
    causal = AutoModelForSequenceClassification.from_pretrained(save_tiny(tmp_path / "causal"), num_labels=1)
    causal.save_pretrained(tmp_path / "start")
    data = chat_rows(96)
    options: dict[str, Any] = {"train_sampling_strategy": "sequential"}
    if case == "centred":
        options["center_rewards_coefficient"] = 0.05
    if case == "margins":
        data = [{**row, "margin": 0.25 * (i % 3)} for i, row in enumerate(data)]
    found = []
    for kind, trainer in ((trl.RewardConfig, trl.RewardTrainer), (RewardConfig, RewardTrainer)):
        set_seed(0)
        made = trainer(
            model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "start"),
            args=config(kind, tmp_path / "run", **options),
            train_dataset=Dataset.from_list(data),
            processing_class=tiny_tokenizer(),
        )
        made.train()
        found.append(made)
    theirs, ours = found
    losses = logged(ours, "loss")
    assert len(losses) == STEPS
    assert losses[-1] != pytest.approx(losses[0], abs=1e-2)  # it learned, so that the steps differ
    assert losses == pytest.approx(logged(theirs, "loss"), abs=1e-4)
    assert logged(ours, "accuracy") == pytest.approx(logged(theirs, "accuracy"), abs=1e-6)
    assert logged(ours, "margin") == pytest.approx(logged(theirs, "margin"), abs=1e-4)


def test_gradients_are_those_of_the_naive_path_in_float64(tmp_path):
    """The loss of a whole batch by transformers' own forward, one sequence at a time."""
    data = [{**row, "weight": 1 + i % 2, "margin": 0.5 * (i % 3)} for i, row in enumerate(chat_rows(6))]
    gradients = []
    for engine in ("packed", "naive"):
        trainer = reward_trainer(tmp_path, data=data, engine=engine, center_rewards_coefficient=0.1)
        model = trainer.model.double().eval()
        with torch.no_grad():
            model.score.weight.copy_(torch.linspace(-1, 1, model.score.weight.numel()).view(1, -1))
        losses, _ = trainer.batch_loss(model, trainer._batch_of(range(6)))
        assert losses.dtype == torch.float64
        losses.sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    packed, naive = gradients
    for name, expected in naive.items():
        # transformers computes norms and rotary in float32 whatever the model's dtype, hence not 1e-10
        scale = expected.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(packed[name] / scale, expected / scale, rtol=1e-4, atol=1e-4, msg=name)


def test_the_loss_is_that_of_the_scores(tmp_path):
    trainer = reward_trainer(tmp_path, data=[{**row, "weight": 2.0} for row in chat_rows(4)])
    batch = trainer._batch_of(range(4))
    with torch.no_grad():
        losses, table = trainer.batch_loss(trainer.model, batch)
        scores = trainer.engine(trainer.model, batch)
    expected = bradley_terry(
        scores[batch.chosen_N], scores[batch.rejected_N], weight_N=batch.weight_N, margin_N=batch.margin_N
    )
    torch.testing.assert_close(losses, expected.loss_N)
    figures = dict(zip(trainer.columns, table.T, strict=True))
    torch.testing.assert_close(figures["margin"], scores[0::2] - scores[1::2])


@pytest.mark.sample(1)
@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_transformers_pipeline_gives_the_same_scores(tmp_path, pad_is_eos, plain):
    """Padded batches, also where every tutorial would make pad and eos the same and plain texts end with it."""
    make_rows = rows if plain else chat_rows
    tokenizer = tiny_tokenizer(pad_is_eos=pad_is_eos)
    trainer = RewardTrainer(
        model=tiny_model(),
        args=config(RewardConfig, tmp_path, learning_rate=1e-2),
        train_dataset=make_rows(32),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    held_out = make_rows(8, start=32)
    ours = trainer.predict(held_out).predictions
    saved = load_tokenizer(str(tmp_path))
    assert saved.pad_token != saved.eos_token

    def text(row: Any, side: str) -> str:
        if plain:
            return f"{row['prompt']}{row[side]}{saved.eos_token}"
        return saved.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)

    score = pipeline("text-classification", model=str(tmp_path))
    for column, side in enumerate(("chosen", "rejected")):
        found = score([text(row, side) for row in held_out], batch_size=3, add_special_tokens=False)
        assert [one["score"] for one in found] == pytest.approx(ours[:, column].tolist(), abs=1e-4)
    assert ours[:, 0].mean() > ours[:, 1].mean() + 0.5  # it learned
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["LlamaForSequenceClassification"]
    assert list(written["id2label"]) == ["0"]


def test_an_adapter_is_saved_with_its_head(tmp_path):
    base = save_tiny(tmp_path / "base")
    trainer = reward_trainer(
        tmp_path / "run", base, peft=LoraConfig(r=4, target_modules="all-linear"), learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model()
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (adapter["task_type"], adapter["modules_to_save"]) == ("SEQ_CLS", ["score"])
    ours = trainer.predict(chat_rows(4)).predictions
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    again = reward_trainer(tmp_path / "again", PeftModel.from_pretrained(plain, tmp_path / "run", is_trainable=True))
    assert again.predict(chat_rows(4)).predictions == pytest.approx(ours, abs=1e-5)
    by_name = reward_trainer(tmp_path / "again", str(tmp_path / "run"), model_init_kwargs={"is_trainable": True})
    assert by_name.predict(chat_rows(4)).predictions == pytest.approx(ours, abs=1e-5)


def test_it_starts_where_sft_ended(tmp_path):
    """An adapter of SFT is trained further; the score of an untrained head says nothing yet."""
    from preftune.training.config.sft import SFTConfig
    from preftune.training.trainers.sft import SFTTrainer

    base = save_tiny(tmp_path / "base")
    sft = SFTTrainer(
        model=base,
        args=config(SFTConfig, tmp_path / "sft", max_steps=3, learning_rate=1e-2),
        train_dataset=[{"prompt": row["prompt"], "completion": row["chosen"]} for row in chat_rows(16)],
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    sft.train()
    sft.save_model()
    trainer = reward_trainer(tmp_path / "reward", str(tmp_path / "sft"), max_steps=2)
    weights = dict(trainer.model.named_parameters())
    name = next(name for name in weights if "q_proj.lora_B" in name)
    learned = dict(sft.model.named_parameters())[name]
    torch.testing.assert_close(weights[name], learned)
    assert weights[name].abs().max() > 0
    trainer.train()
    assert not torch.equal(weights[name], learned)


def test_a_run_is_recorded_and_its_calibration_too(tmp_path):
    trainer = reward_trainer(
        tmp_path, eval_dataset=chat_rows(8, start=32), eval_strategy="steps", eval_steps=STEPS, learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model()
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["method"], run["outcome"]) == ("reward", "finished")
    assert run["calibration"]["accuracy"] == 1.0
    last = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
    assert last["eval_accuracy"] == 1.0
    assert last["eval_calibration_error"] == pytest.approx(run["calibration"]["error"])
    assert "trained as a reward model" in (tmp_path / "README.md").read_text()


def test_groups_of_a_prompt_give_the_same_update(tmp_path):
    prompt = [{"role": "user", "content": "Which?"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("one", "two two", "three three three")]
    data = [{"prompt": prompt, "chosen": answers[a], "rejected": answers[b]} for a, b in ((0, 1), (0, 2), (1, 2))]
    found = []
    for grouped, batch in ((False, 3), (True, 1)):
        set_seed(5)
        trainer = reward_trainer(
            tmp_path,
            data=data,
            group_by_prompt=grouped,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,
            max_steps=3,
            learning_rate=1e-2,
        )
        trainer.train()
        found.append(logged(trainer, "loss"))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_an_engine_that_is_wrong_stops_the_run(tmp_path, monkeypatch):
    trainer = reward_trainer(tmp_path)
    right = trainer.engine

    class Wrong:
        name = right.name

        def __call__(self, model: Any, batch: Any) -> torch.Tensor:
            return right(model, batch).roll(1)

    trainer.engine = Wrong()
    with torch.no_grad():
        trainer.model.score.weight.mul_(50)
    with pytest.raises(SelfCheckError, match="engine and the naive path disagree on a real score"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"center_rewards_coefficient": -1.0}, "center_rewards_coefficient=-1.0 must be a finite number"),
        ({"max_prompt_length": 2000}, "leaves no room"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 is not honoured"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        config(RewardConfig, tmp_path, **options)


def test_a_trained_classifier_is_trained_further(tmp_path):
    save_tiny(tmp_path / "causal")
    first = reward_trainer(tmp_path / "one", AutoModelForCausalLM.from_pretrained(tmp_path / "causal"), max_steps=3)
    first.train()
    first.save_model()
    second = reward_trainer(tmp_path / "two", str(tmp_path / "one"), max_steps=1)
    assert second.predict(chat_rows(4)).predictions == pytest.approx(first.predict(chat_rows(4)).predictions, abs=1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_as_a_judge_it_gives_the_scores_of_training(tmp_path, plain, adapter):
    """Token for token, also where the base says that padding is eos, and plain texts end with it."""
    base = tiny_model()
    base.config.pad_token_id = base.config.eos_token_id
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer(pad_is_eos=True).save_pretrained(tmp_path / "base")
    trainer = RewardTrainer(
        model=str(tmp_path / "base"),
        args=config(RewardConfig, tmp_path / "run", learning_rate=1e-2),
        train_dataset=(rows if plain else chat_rows)(32),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if adapter else None,
    )
    trainer.train()
    trainer.save_model()
    held_out = (rows if plain else chat_rows)(6, start=32)
    judge = open_reward_model(str(tmp_path / "run"), batch_size=4).load()
    answers = [(row["prompt"], row["chosen"] if plain else row["chosen"][0]["content"], {}) for row in held_out]
    assert judge.score_all(answers) == pytest.approx(trainer.predict(held_out).predictions[:, 0].tolist(), abs=1e-4)


def merged_scores(folder: Path, held_out: Any) -> list[float]:
    """Of the chosen sides, by transformers' pipeline over padded batches."""
    tokenizer = load_tokenizer(str(folder))
    texts = [tokenizer.apply_chat_template([*row["prompt"], *row["chosen"]], tokenize=False) for row in held_out]
    found = pipeline("text-classification", model=str(folder))(texts, batch_size=3, add_special_tokens=False)
    return [one["score"] for one in found]


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_a_merged_adapter_is_a_reward_model_still(tmp_path, pad_is_eos):
    """With its head, its pad token and the note of how it was trained: what transformers' pipeline and a judge need."""
    base = tiny_model()
    base.config.pad_token_id = base.config.eos_token_id
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer(pad_is_eos=pad_is_eos).save_pretrained(tmp_path / "base")
    trainer = RewardTrainer(
        model=str(tmp_path / "base"),
        args=config(RewardConfig, tmp_path / "run", learning_rate=1e-2),
        train_dataset=chat_rows(32),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    held_out = chat_rows(6, start=32)
    expected = trainer.predict(held_out).predictions[:, 0].tolist()
    merge(tmp_path / "run", tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]
    assert merged_scores(tmp_path / "merged", held_out) == pytest.approx(expected, abs=1e-4)
    answers = [(row["prompt"], row["chosen"][0]["content"], {}) for row in held_out]
    assert open_reward_model(str(tmp_path / "merged")).load().score_all(answers) == pytest.approx(expected, abs=1e-4)
    in_memory = merge(trainer.model, tmp_path / "in_memory")
    assert type(in_memory).__name__ == "LlamaForSequenceClassification"
    assert merged_scores(tmp_path / "in_memory", held_out) == pytest.approx(expected, abs=1e-4)


def test_a_judge_on_a_bfloat16_base_does_not_round_its_scores(tmp_path):
    base = save_tiny(tmp_path / "base", dtype=torch.bfloat16)
    lora = LoraConfig(r=4, target_modules="all-linear")
    trainer = reward_trainer(tmp_path / "run", base, peft=lora, learning_rate=1e-2, bf16=None)
    trainer.train()
    trainer.save_model()
    held_out = chat_rows(8, start=32)
    answers = [(row["prompt"], row["chosen"][0]["content"], {}) for row in held_out]
    scores = open_reward_model(str(tmp_path / "run"), batch_size=1).load().score_all(answers)
    rounded = torch.tensor(scores).bfloat16().float().tolist()
    assert scores != rounded
    assert scores == pytest.approx(trainer.predict(held_out).predictions[:, 0].tolist(), abs=5e-3)


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    base = save_tiny(tmp_path / "base")
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "learning_rate": 1e-2}
    for name, peft in (("full", None), ("lora", LoraConfig(r=4, target_modules="all-linear"))):
        whole = reward_trainer(tmp_path / name, base, peft=peft, **options)
        whole.train()
        resumed = reward_trainer(tmp_path / f"{name}-again", base, peft=peft, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-3"))
        for (key, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b), key
        for column in ("loss", "margin", "accuracy"):
            assert logged(resumed, column) == logged(whole, column)
