from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from preftune.errors import ModelError, RequestError
from preftune.judges.cache import VerdictCache
from preftune.judges.reward_model import RewardModel, open_reward_model
from tests.models.tiny import tiny_llama, tiny_tokenizer

CHAT = [{"role": "user", "content": "What is it?"}]
ITEMS = [
    (CHAT, "a", {}),
    (CHAT, "a much longer answer, with words", {}),
    ("What is it?", "b", {}),
    (CHAT, "c" * 40, {}),
]


def tiny_reward_model(labels: int = 1) -> LlamaForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=264,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.3,
            num_labels=labels,
        )
        return LlamaForSequenceClassification(config).eval()


def saved(folder: Path, *, labels: int = 1, template: bool = True) -> str:
    tiny_reward_model(labels).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_batches_score_as_one_answer_alone_would(tmp_path: Path) -> None:
    model, tokenizer = tiny_reward_model(), tiny_tokenizer()
    expected = []
    for prompt, answer, _ in ITEMS:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=True)
        with torch.no_grad():
            expected.append(float(model(input_ids=torch.tensor([ids["input_ids"]])).logits))
    scorer = open_reward_model(saved(tmp_path / "rm"), batch_size=3).load()
    assert scorer.score_all(ITEMS) == pytest.approx(expected, abs=1e-5)
    assert scorer(*ITEMS[1]) == pytest.approx(expected[1], abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 4


def test_scores_are_kept_under_the_models_content(tmp_path: Path, monkeypatch) -> None:
    name, cache = saved(tmp_path / "rm"), VerdictCache(tmp_path / "verdicts")
    seen: list[tuple[int, int]] = []
    first = open_reward_model(name, cache=cache).load().score_all(ITEMS, progress=lambda *step: seen.append(step))
    assert seen[-1] == (4, 4)
    monkeypatch.setattr(RewardModel, "_score", lambda *ignored: pytest.fail("computed again"))
    assert open_reward_model(name, cache=cache).load().score_all(ITEMS) == first
    cache.close()


def test_a_model_that_changes_in_memory_keeps_its_scores_under_what_it_is(tmp_path: Path) -> None:
    cache, model = VerdictCache(tmp_path / "verdicts"), tiny_reward_model()
    scorer = RewardModel.held(model, tiny_tokenizer(), name="rm", cache=cache)
    before = scorer.score_all(ITEMS)
    with torch.no_grad():
        model.score.weight.mul_(2)
    assert scorer.score_all(ITEMS) == pytest.approx([2 * (score or 0) for score in before])
    assert RewardModel.held(tiny_reward_model(), tiny_tokenizer(), name="rm", cache=cache).score_all(ITEMS) == before
    cache.close()


def through_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def another_scaling(model: Any) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 5 * value for name, value in module.scaling.items()}


@pytest.mark.parametrize("change", [through_data, another_scaling, lambda model: model.set_adapter("other")])
def test_adapters_and_changes_through_data_count_too(change: Callable[[Any], None], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_reward_model(), config := LoraConfig(task_type="SEQ_CLS", init_lora_weights=False))
    model.add_adapter("other", config)
    cache = VerdictCache(tmp_path / "verdicts")
    scorer = RewardModel.held(model, tiny_tokenizer(), name="rm", cache=cache)
    before = scorer.score_all(ITEMS)
    change(model)
    fresh = RewardModel.held(model, tiny_tokenizer(), name="rm").score_all(ITEMS)
    assert scorer.score_all(ITEMS) == fresh != before
    cache.close()


def test_without_a_template_prompt_and_answer_are_two_texts(tmp_path: Path) -> None:
    scorer = open_reward_model(saved(tmp_path / "rm", template=False)).load()
    assert scorer(CHAT, "a", {}) == scorer("What is it?", "a", {})
    assert math.isfinite(scorer([*CHAT, {"role": "assistant", "content": "?"}, *CHAT], "a", {}))


def test_a_classifier_of_two_texts_is_reported_which_is_which(tmp_path: Path) -> None:
    """BERT adds an embedding of the text's number, so dropping it would change every score."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = BertConfig(vocab_size=264, pad_token_id=0, num_labels=1, initializer_range=0.5, **sizes)
        model = BertForSequenceClassification(config).eval()

    class Pairs:
        """The tiny tokenizer's bytes, with the types that BERT's tokenizer gives."""

        chat_template = None

        def __call__(self, first: str, second: str) -> dict[str, list[int]]:
            one, two = (tiny_tokenizer()(text)["input_ids"] for text in (first, second))
            return {"input_ids": [*one, *two], "token_type_ids": [0] * len(one) + [1] * len(two)}

    encoded = {name: torch.tensor([ids]) for name, ids in Pairs()("What is it?", "a").items()}
    with torch.no_grad():
        expected = float(model(**encoded).logits)
        assert float(model(input_ids=encoded["input_ids"]).logits) != pytest.approx(expected, abs=1e-3)
    found = RewardModel.held(model, Pairs(), name="bert").score_all([(CHAT, "a", {}), (CHAT, "longer", {})])
    assert found[0] == pytest.approx(expected, abs=1e-5)


def test_what_is_no_reward_model(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelError, match="no trained head for scores"):
        open_reward_model(str(tmp_path / "lm")).load()
    with pytest.raises(ModelError, match="has 3 labels"):
        open_reward_model(saved(tmp_path / "three", labels=3)).load()
    with pytest.raises(ModelError, match="There is no model at"):
        open_reward_model(str(tmp_path / "nowhere" / "at" / "all")).load()


def test_an_adapter_with_its_own_head(tmp_path: Path) -> None:
    """PEFT's sequence classifiers keep the head in the adapter; the base is a language model."""
    tiny_llama().save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        base = LlamaForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1, pad_token_id=0)
        options = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
        model = get_peft_model(base, LoraConfig(**options)).eval()
    model.save_pretrained(tmp_path / "adapter")
    ids = tiny_tokenizer().apply_chat_template([*CHAT, {"role": "assistant", "content": "a"}], tokenize=True)
    with torch.no_grad():
        expected = float(model(input_ids=torch.tensor([ids["input_ids"]])).logits)
    assert open_reward_model(str(tmp_path / "adapter")).load()(CHAT, "a", {}) == pytest.approx(expected, abs=1e-5)


def test_limits(tmp_path: Path) -> None:
    name = saved(tmp_path / "rm")
    with pytest.raises(ModelError, match="has 128 positions"):
        open_reward_model(name).load()(CHAT, "x" * 200, {})
    model = LlamaForSequenceClassification.from_pretrained(name)
    model.resize_token_embeddings(60)
    with pytest.raises(ModelError, match="has only 60 embeddings"):
        RewardModel.held(model, tiny_tokenizer(), name="rm")(CHAT, "x", {})
    with pytest.raises(RequestError, match="--batch_size 0"):
        open_reward_model(name, batch_size=0).load()


def test_a_score_that_is_kept_is_another_one_for_another_tokenizer_or_padding(tmp_path):
    from tokenizers import normalizers

    cache, model = VerdictCache(tmp_path), tiny_reward_model()
    items = [("hi there", "yes, here", {}), ("hi", "a longer answer, even here", {})]

    def scores(tokenizer, **options):
        return RewardModel.held(model, tokenizer, name="reward", **options).score_all(items)

    first = scores(tiny_tokenizer(), cache=cache)
    assert scores(tiny_tokenizer(), cache=cache) == first
    other = tiny_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Replace("e", "a")
    assert scores(other, cache=cache) == scores(other) != first
    model.config.pad_token_id = tiny_tokenizer().eos_token_id
    assert scores(tiny_tokenizer(), cache=cache) == scores(tiny_tokenizer())


def test_rows_behind_virtual_tokens_are_scored_alone():
    """transformers would read a shorter row's score at the end of its padding."""
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny_reward_model(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    scorer = RewardModel.held(model, tiny_tokenizer(), name="reward")
    items = [("hi", "no", {}), ("hi there, how are you?", "a longer answer", {})]
    assert scorer.score_all(items) == [scorer.score_all([item])[0] for item in items]


def test_torn_weights_are_named(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path / "rm"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="are damaged or were copied in part"):
        open_reward_model(str(folder)).load().score_all([("p", "a", {})])
