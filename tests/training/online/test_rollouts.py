"""Prompts in their order, answers as token ids, and vLLM in place of the model's own sampling."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.data import load_pairs
from preftune.errors import DatasetError, ModelError
from preftune.training.online.prompts import open_prompts, prepare_prompts
from preftune.training.online.rollout import TransformersSampler, rollout_of
from preftune.training.online.vllm_rollout import VllmSampler
from tests.training.ppo.ppo_runs import PROMPTS, lora
from tiny import chat_rows, rows, save_tiny, tiny_model, tiny_tokenizer


def test_every_prompt_comes_once_per_pass_in_another_order() -> None:
    prompts = prepare_prompts(PROMPTS, tiny_tokenizer(), max_prompt_length=None)
    drawn = prompts.drawn(0, 24, seed=1)
    passes = [drawn[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(one) == list(range(8)) for one in passes)
    assert passes[0] != passes[1]
    assert prompts.drawn(5, 6, seed=1) == drawn[5:11], "whoever goes on in the middle draws the same"
    assert prompts.drawn(0, 8, seed=2) != passes[0]


def test_prompts_of_pairs_conversations_and_lines(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    pairs = prepare_prompts(rows(4), tokenizer, max_prompt_length=None)
    assert [p.prompt for p in pairs.prompts] == [row["prompt"] for row in rows(4)]
    chats = prepare_prompts(chat_rows(4), tokenizer, max_prompt_length=None)
    assert tokenizer.decode(chats.token_ids[0]).endswith("<|im_start|>assistant\n")
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\ntwo\n")
    assert len(prepare_prompts(str(lines), tokenizer, max_prompt_length=None)) == 2
    assert prepare_prompts(open_prompts([{"prompt": "x", "key": 3}]), tokenizer, max_prompt_length=5).prompts[
        0
    ].kept == {"key": 3}
    short = prepare_prompts([{"prompt": "ab"}, {"prompt": "abcd"}], tokenizer, max_prompt_length=3)
    assert (len(short), short.too_long) == (1, 1)
    with pytest.raises(DatasetError, match="the shortest has 4"):
        prepare_prompts([{"prompt": "abcd"}], tokenizer, max_prompt_length=3)


def test_the_end_is_part_of_what_was_written() -> None:
    tokenizer = tiny_tokenizer()
    prompt = prepare_prompts(PROMPTS, tokenizer, max_prompt_length=None).prompts[0]
    ended = rollout_of(prompt, [5], [10, 11, 2, 0, 0], [2], tokenizer, number=3)
    assert (ended.response_ids, ended.finished) == ((10, 11, 2), True)
    assert ended.text == tokenizer.decode([10, 11])
    cut = rollout_of(prompt, [5], [10, 11], [2], tokenizer, number=3)
    assert (cut.response_ids, cut.finished) == ((10, 11), False)
    nothing = rollout_of(prompt, [5], [2, 0], [2], tokenizer, number=3)
    assert (nothing.response_ids, nothing.text) == ((2,), ""), "the end itself is an action"
    assert ended.group.completions == ((10, 11, 2),)


def test_answers_do_not_depend_on_the_batch() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model()
    prompts = prepare_prompts(PROMPTS, tokenizer, max_prompt_length=None)
    found = []
    for batch_size in (1, 8):
        sampler = TransformersSampler(
            tokenizer, max_new_tokens=5, temperature=1.0, batch_size=batch_size, seed=4, autocast=None
        )
        found.append([one.response_ids for one in sampler(model, prompts.prompts, prompts.token_ids, first=0)])
    assert found[0] == found[1]


class FakeVllm:
    """What is used of vLLM; its answers are the tokens 10, 11 and the end."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.asked: list[tuple[Any, Any, Any]] = []
        self.alphas: list[float] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module, lora_module, request = (types.ModuleType(n) for n in ("vllm", "vllm.lora", "vllm.lora.request"))
        outer = self

        class LLM:
            def __init__(self, **options: Any) -> None:
                outer.made.append(options)

            def generate(self, prompts: Any, params: Any, *, use_tqdm: bool, lora_request: Any) -> Any:
                weights = Path(lora_request[2]) / "adapter_model.safetensors"
                config = json.loads((weights.parent / "adapter_config.json").read_text())
                outer.alphas.append(config["lora_alpha"])
                outer.asked.append((prompts, params, (lora_request[1], weights.is_file())))
                said = types.SimpleNamespace(token_ids=(10, 11, 2))
                return [types.SimpleNamespace(outputs=[said]) for _ in prompts]

        module.LLM, module.SamplingParams = LLM, lambda **options: options  # type: ignore[attr-defined]
        request.LoRARequest = lambda name, number, path: (name, number, path)  # type: ignore[attr-defined]
        for name, made in {"vllm": module, "vllm.lora": lora_module, "vllm.lora.request": request}.items():
            monkeypatch.setitem(sys.modules, name, made)
        monkeypatch.setattr("preftune.training.online.vllm_rollout.available", lambda: True)


def test_vllm_gets_the_adapter_of_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import get_peft_model

    from preftune.models import load_model

    fake, tokenizer = FakeVllm(), tiny_tokenizer()
    fake.install(monkeypatch)
    torch.manual_seed(0)
    model = get_peft_model(load_model(save_tiny(tmp_path / "base")), lora(task_type="CAUSAL_LM"))
    sampler = VllmSampler(tokenizer, model=model, folder=tmp_path, max_new_tokens=5, temperature=0.9, seed=1)
    prompts = prepare_prompts(PROMPTS, tokenizer, max_prompt_length=None)
    for first in (0, 8):
        found = sampler(model, prompts.prompts, prompts.token_ids, first=first)
        for module in model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", 2.0)
    assert fake.alphas == [alpha := model.peft_config["default"].lora_alpha, 2 * alpha]
    assert [one.response_ids for one in found] == [(10, 11, 2)] * 8
    assert found[0].number == 8
    assert len(fake.made) == 1
    assert fake.made[0]["model"] == str(tmp_path / "base")
    assert [one[2] for one in fake.asked] == [(1, True), (2, True)]
    assert fake.asked[0][1][0] | {"seed": 0} == {
        "max_tokens": 5, "temperature": 0.9, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "stop_token_ids": [2], "seed": 0,
    }  # fmt: skip
    assert len({params["seed"] for _, all_params, _ in fake.asked for params in all_params}) == 16
    assert not (tmp_path / "vllm-adapter").exists()


def test_vllm_that_is_not_there_or_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {"folder": tmp_path, "max_new_tokens": 5, "temperature": 1.0, "seed": 0}
    with pytest.raises(ModelError, match="one of them is missing"):
        VllmSampler(tiny_tokenizer(), model=tiny_model(), **options)
    FakeVllm().install(monkeypatch)
    with pytest.raises(ModelError, match="this policy is different"):
        VllmSampler(tiny_tokenizer(), model=tiny_model(), **options)


def test_prompts_of_opened_pairs_say_what_opening_left_out(caplog):
    rated = [{"prompt": f"{i}?", "completions": ["yes", "no"], "scores": [5, 5 if i == 2 else 1]} for i in range(4)]
    for source in (rated, load_pairs(rated)):
        with caplog.at_level("INFO", "preftune"):
            assert len(prepare_prompts(source, tiny_tokenizer(), max_prompt_length=None)) == 3
        assert "(rows 2): two answers have the same rating" in caplog.text
        caplog.clear()


def test_repeated_prompts_are_counted(tmp_path, caplog):
    data = [{"prompt": "a?"}, {"prompt": "b?"}, {"prompt": "a?"}]
    caplog.set_level("INFO", logger="preftune")
    found = prepare_prompts(data, tiny_tokenizer(), max_prompt_length=None)
    assert (len(found), found.repeated) == (2, 1)
    assert "1 row repeats a prompt; each is asked once" in caplog.text
