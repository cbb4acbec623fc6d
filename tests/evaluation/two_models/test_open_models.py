"""Who answers for whom: one loaded model or two, transformers, vLLM (a stand-in for its API) or the dataset."""

from __future__ import annotations

import json
import sys
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from preftune.errors import ModelError, RequestError
from preftune.evaluation.two_models.open_models import AnswerOptions, match_up
from preftune.generation import vllm_backend as vllm_answers
from preftune.generation.backends import GivenAnswers, ModelAnswerer, TwoSides
from preftune.generation.generate import generate
from preftune.generation.lazy_model import ModelSource
from preftune.generation.settings import SamplingSettings
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

CHATS = [[{"role": "user", "content": text}] for text in ("Hi", "What is that?", "Why?")]
ROWS: list[dict[str, Any]] = [{"id": str(n), "prompt": chat} for n, chat in enumerate(CHATS)]
GREEDY = SamplingSettings(max_new_tokens=6, temperature=0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


def save_adapter(base: str, folder: Path, **options: Any) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**written, **options}))
    return str(folder)


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_adapter(base, tmp_path_factory.mktemp("adapters") / "adapter")


def matched(model: str, baseline: str | None = None, *, backend: Any = "auto", **loading: Any) -> Any:
    with ExitStack() as opened:
        return match_up(model, baseline, opened, AnswerOptions(sampling=GREEDY, backend=backend, model=loading))


def texts(match: Any, side: str) -> list[str]:
    return [answer.text for answer in match.generate(side, CHATS, ROWS)]


def test_an_adapter_answers_for_both(base: str, adapter: str) -> None:
    match = matched(adapter)
    plain = generate(AutoModelForCausalLM.from_pretrained(base), tiny_tokenizer(), CHATS, max_new_tokens=6)
    assert texts(match, "base") == [answer.text for answer in plain]
    assert texts(match, "aligned") != texts(match, "base")
    sides = match.generate.sides
    assert sides["base"].source is sides["aligned"].source
    assert match.settings["base"] != match.settings["aligned"]
    with (models := match.load_models()).baseline() as loaded:
        assert loaded is models.model
    match.release()
    assert not sides["base"].source.loaded


def test_an_adapter_that_changed_its_base_is_not_its_own_baseline(base: str, tmp_path: Path) -> None:
    match = matched(save_adapter(base, tmp_path / "pissa", init_lora_weights="pissa_niter_4"))
    assert match.generate.sides["base"].source is not match.generate.sides["aligned"].source
    assert "the base is loaded separately" in match.notes[0]
    assert match.baseline == base


def test_two_models_are_loaded_one_after_the_other(base: str, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    (tmp_path / "other" / "run.json").write_text(json.dumps({"model": {"name": base}}))
    match = matched(other)
    assert match.baseline == base
    sides = match.generate.sides
    first = texts(match, "base")
    assert (sides["base"].source.loaded, sides["aligned"].source.loaded) == (True, False)
    assert texts(match, "aligned") != first
    assert (sides["base"].source.loaded, sides["aligned"].source.loaded) == (False, True)
    models = match.load_models()
    with models.baseline() as loaded:
        assert loaded is not models.model


def test_an_identity_follows_the_contents_and_no_path(base: str, tmp_path: Path) -> None:
    copy, other = save_tiny(tmp_path / "copy"), save_tiny(tmp_path / "other", seed=1)
    assert ModelSource(copy).identity == ModelSource(base).identity
    assert ModelSource(other).identity != ModelSource(base).identity
    assert ModelSource(base, load_in_4bit=True).identity != ModelSource(base).identity
    template = tmp_path / "copy" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert ModelSource(copy).identity != ModelSource(base).identity


@pytest.mark.parametrize(
    "name", ["vocab.json", "merges.txt", "added_tokens.json", "spm.model", "sentencepiece.bpe.model", "modeling_own.py"]
)
def test_vocabularies_and_code_of_its_own_are_part_of_an_identity(name: str, base: str, tmp_path: Path) -> None:
    copy = Path(save_tiny(tmp_path / "copy"))
    (copy / name).write_text("{}")
    assert ModelSource(str(copy)).identity != ModelSource(base).identity


def test_the_identity_of_a_model_in_memory_holds_all_that_shapes_an_answer() -> None:
    def identity(model: Any, tokenizer: Any) -> str:
        return ModelSource.held(model, tokenizer, name="m").identity

    seen = [identity(tiny_model(), tiny_tokenizer()), identity(tiny_model(seed=1), tiny_tokenizer())]
    longer, other, fewer = tiny_tokenizer(), tiny_tokenizer(), tiny_model()
    longer.add_tokens(["<new>"])
    other.chat_template += " "
    fewer.generation_config.repetition_penalty = 1.5
    seen += [identity(tiny_model(), longer), identity(tiny_model(), other), identity(fewer, tiny_tokenizer())]
    assert len(set(seen)) == len(seen)
    assert identity(tiny_model(), tiny_tokenizer()) == seen[0]


def test_a_row_may_say_how_it_is_sampled() -> None:
    source = ModelSource.held(tiny_model(), tiny_tokenizer(), name="m")
    sides = TwoSides(ModelAnswerer(source, GREEDY), ModelAnswerer(source, GREEDY, seed=1))
    rows = [{**ROWS[0], "sampling": {"max_new_tokens": 1}}, {**ROWS[1], "sampling": {"temperature": 1.0}}, ROWS[2]]
    base, aligned = sides("base", CHATS, rows), sides("aligned", CHATS, rows)
    assert (base[0].tokens, base[0].finished) == (1, False)
    assert base[2].tokens > 1
    assert base[0] == aligned[0]
    assert base[1] != aligned[1]
    assert sides("base", CHATS, rows) == base
    assert sides("base", CHATS[1:2], rows[1:2]) == base[1:2]  # its draw does not depend on who is beside it
    with pytest.raises(RequestError, match="'sampling' has 'heat'"):
        sides("base", CHATS[:1], [{**ROWS[0], "sampling": {"heat": 1}}])


def test_given_answers_are_the_datasets() -> None:
    (answer,) = TwoSides(GivenAnswers(len), GivenAnswers())("base", CHATS[:1], [{"given": "four"}])
    assert (answer.text, answer.tokens, answer.finished) == ("four", 4, True)


class StandIn:
    """vLLM's documented offline API, as far as it is used; it answers with what it was asked."""

    made: ClassVar[list[dict[str, Any]]] = []
    stops: ClassVar[list[list[int]]] = []

    class SamplingParams:
        def __init__(
            self, *, max_tokens: int, temperature: float, seed: int, stop_token_ids: list[int], **limits: Any
        ) -> None:
            assert set(limits) <= {"top_p", "top_k", "min_p"}
            self.max_tokens, self.temperature, self.stop_token_ids = max_tokens, temperature, stop_token_ids
            StandIn.stops.append(stop_token_ids)

    class LoRARequest:
        def __init__(self, lora_name: str, lora_int_id: int, lora_path: str) -> None:
            self.path = lora_path

    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            StandIn.made.append({"model": model, **options})

        def generate(
            self, prompts: Any, sampling_params: Any, *, use_tqdm: bool, lora_request: Any = None
        ) -> list[Any]:
            assert len(prompts) == len(sampling_params)
            who = "base" if lora_request is None else Path(lora_request.path).name
            outputs = []
            for prompt in prompts:
                text = f"{who} {len(prompt['prompt_token_ids'])}"
                ids = [*tiny_tokenizer()(text, add_special_tokens=False)["input_ids"], 2]
                outputs.append(types.SimpleNamespace(text=text, token_ids=ids, finish_reason="stop"))
            return [types.SimpleNamespace(outputs=[output]) for output in outputs]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = StandIn.LLM, StandIn.SamplingParams  # type: ignore[attr-defined]
    request = types.ModuleType("vllm.lora.request")
    request.LoRARequest = StandIn.LoRARequest  # type: ignore[attr-defined]
    for name, found in {
        "vllm": module,
        "vllm.lora": types.ModuleType("vllm.lora"),
        "vllm.lora.request": request,
    }.items():
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setattr(vllm_answers, "available", lambda: True)
    StandIn.made.clear()
    StandIn.stops.clear()
    return StandIn


def test_vllm_loads_the_base_once_and_the_adapter_is_a_request(vllm, base: str, adapter: str) -> None:
    match = matched(adapter)
    ids = len(tiny_tokenizer().apply_chat_template(CHATS[0], add_generation_prompt=True)["input_ids"])
    (answer, *_) = match.generate("base", CHATS, ROWS)
    assert (answer.text, answer.tokens, answer.finished) == (f"base {ids}", len(f"base {ids}"), True)
    assert texts(match, "aligned")[0] == f"adapter {ids}"
    (made,) = vllm.made
    assert (made["model"], made["enable_lora"], made["max_lora_rank"]) == (base, True, 8)
    assert match.load_models is None
    assert match.settings["base"]["backend"] == "vllm"
    assert matched(adapter, backend="transformers").settings["base"] != match.settings["base"]


def test_what_ends_the_answers_of_an_adapter_ends_them_everywhere(vllm, base: str, tmp_path: Path) -> None:
    """A run adds the end of its template's turns; the base's own config does not know it."""
    own = save_adapter(base, tmp_path / "own")
    before = matched(own, backend="transformers").settings["base"]
    (tmp_path / "own" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert ModelSource(own).generation_config.eos_token_id == [2, 7]
    assert ModelSource(own).model.generation_config.eos_token_id == [2, 7]
    texts(matched(own), "aligned")
    assert all(7 in stops for stops in vllm.stops)
    after = matched(own, backend="transformers").settings["base"]
    assert after != before  # the base's answers end there too: those of earlier are others
    assert after["generation"]["ends"] == [2, 7]


def test_what_vllm_cannot_serve_is_left_to_transformers(vllm, base: str, tmp_path: Path) -> None:
    whole = save_adapter(base, tmp_path / "whole", modules_to_save=["lm_head"])
    match = matched(whole)
    assert isinstance(match.generate.sides["aligned"], ModelAnswerer)
    assert "not vLLM: its adapter holds whole modules" in match.notes[0]
    with pytest.raises(ModelError, match="vLLM cannot serve"):
        matched(whole, backend="vllm")
    with pytest.raises(RequestError, match="--load_in_4bit goes with --backend transformers"):
        matched(base, "dataset", backend="vllm", load_in_4bit=True)


def test_what_the_models_own_config_decides_is_recorded(base: str, tmp_path: Path) -> None:
    own = save_tiny(tmp_path / "own")
    file = tmp_path / "own" / "generation_config.json"
    written = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**written, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.2, "do_sample": True}))
    drawn = SamplingSettings(max_new_tokens=6, temperature=0.5)
    with ExitStack() as opened:
        match = match_up(own, base, opened, AnswerOptions(sampling=drawn))
        greedy = match_up(own, base, opened, AnswerOptions(sampling=GREEDY))
    used = match.settings["aligned"]["generation"]
    assert (used["top_p"], used["top_k"], used["repetition_penalty"], used["temperature"]) == (0.8, 20, 1.2, 0.5)
    assert match.settings["base"]["generation"]["top_k"] == 0
    assert "repetition_penalty" not in match.settings["base"]["generation"]
    assert greedy.settings["aligned"]["generation"]["repetition_penalty"] == 1.2
    assert "top_p" not in greedy.settings["aligned"]["generation"]
    assert not match.generate.sides["aligned"].source.loaded  # it is read without the weights
    texts(match, "aligned")
    assert match.generate.settings()["aligned"] == match.settings["aligned"]  # the same when they are loaded
    json.dumps(match.settings)


def test_a_batch_size_is_honoured_by_vllm_too(vllm, base: str, adapter: str) -> None:
    for size in (None, 3):
        with ExitStack() as opened:
            match = match_up(adapter, None, opened, AnswerOptions(sampling=GREEDY, batch_size=size))
        texts(match, "aligned")
    assert "max_num_seqs" not in vllm.made[0]
    assert vllm.made[1]["max_num_seqs"] == 3
    assert match.settings["base"]["generation"] == {"max_tokens": 6, "temperature": 0.0}
    for backend in ("vllm", "transformers"):
        with ExitStack() as opened, pytest.raises(RequestError, match="--batch_size 0: give at least 1"):
            match_up(adapter, None, opened, AnswerOptions(sampling=GREEDY, batch_size=0, backend=backend))


@pytest.mark.parametrize("settings", [GREEDY, SamplingSettings(max_new_tokens=4, temperature=1.0)])
def test_a_model_of_nan_answers_nothing_and_is_named(settings: SamplingSettings) -> None:
    model = tiny_model()
    model.model.layers[0].mlp.down_proj.weight.data.fill_(float("nan"))
    source = ModelSource.held(model, tiny_tokenizer(), name="m")
    sides = TwoSides(GivenAnswers(), ModelAnswerer(source, settings))
    with pytest.raises(ModelError, match=r"gives NaN or infinity .* earlier checkpoint"):
        sides("aligned", CHATS, ROWS)
