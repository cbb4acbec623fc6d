from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from preftune.errors import EndpointError, ModelError, RequestError
from preftune.evaluation.labelling.sample import count, manifest_of, read_samples, sample
from preftune.generation.backends import EndpointAnswerer, ModelAnswerer
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName
from preftune.generation.generate import generate, generation_config
from preftune.generation.lazy_model import ModelSource
from preftune.generation.prompts import Prompt, Prompts
from preftune.generation.seeded_sampling import DrawByRow
from preftune.generation.settings import SamplingSettings
from preftune.storage.jsonl import cut_torn_line, read_lines
from tests.generation.chat_server import FAILURE, refusal, serving
from tests.models.tiny import tiny_llama, tiny_tokenizer

TEXTS = ["Hi", "What is the capital of France, and why?", "a", "Tell me more about it."]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]


def prompts(texts=TEXTS, **carried) -> Prompts:
    made = [Prompt(str(i), [{"role": "user", "content": text}], f"key-{text}", carried) for i, text in enumerate(texts)]
    return Prompts(made, "test.jsonl", 0)


def model_sampler(*, seed: int = 0, batch_size: int = 3, **settings) -> ModelAnswerer:
    chosen = SamplingSettings(**{"max_new_tokens": 6, "temperature": 1.0, **settings})
    source = ModelSource.held(tiny_llama(seed=seed), tiny_tokenizer(), name="tiny")
    return ModelAnswerer(source, chosen, batch_size=batch_size, raw=True)


def completions(path: Path) -> dict[tuple[str, int], str]:
    return {(row["id"], row["sample"]): row["completion"] for row in read_samples(path)}


# --- drawing ---


def test_draws_follow_the_distribution() -> None:
    """A thousand numbers through the inverse give each token its share."""
    scores = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]])).repeat(1000, 1)
    uniforms = (np.arange(1000)[:, None] + 0.5) / 1000
    left = DrawByRow(uniforms, width=4)(torch.zeros(1000, 4, dtype=torch.int64), scores)
    assert torch.bincount(left.argmax(-1), minlength=4).tolist() == [500, 0, 300, 200]
    assert left.isfinite().sum(-1).tolist() == [1] * 1000


@pytest.mark.parametrize("number", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_interval_hit_no_impossible_token(number: float) -> None:
    scores = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    left = DrawByRow(np.array([[number]]), width=2)(torch.zeros(1, 2, dtype=torch.int64), scores)
    assert int(left.argmax()) in (1, 2)


def test_an_answer_depends_on_its_seed_and_not_on_its_neighbours() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.0}
    together = generate(model, tokenizer, CHATS, seeds=[1, 2, 3, 4], **options)
    alone = [
        generate(model, tokenizer, [chat], seeds=[seed], **options)[0]
        for chat, seed in zip(CHATS, range(1, 5), strict=True)
    ]
    assert together == alone
    assert generate(model, tokenizer, CHATS, seeds=[5, 6, 7, 8], **options) != together
    same = generate(model, tokenizer, [CHATS[0]] * 2, seeds=[1, 9], **options)
    assert same[0] == together[0] != same[1]


def test_top_k_of_one_is_greedy() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    drawn = generate(model, tokenizer, CHATS, seeds=[1, 2, 3, 4], max_new_tokens=8, do_sample=True, top_k=1)
    assert drawn == generate(model, tokenizer, CHATS, max_new_tokens=8)


def test_temperature_and_top_p_shape_what_is_drawn() -> None:
    """Over many seeds, the first token keeps to the fewest tokens that hold top_p of the cooled distribution."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ids = list(tokenizer.apply_chat_template(CHATS[0], tokenize=True, add_generation_prompt=True)["input_ids"])
    with torch.no_grad():
        shares = (model(input_ids=torch.tensor([ids])).logits[0, -1] / 0.5).softmax(-1)
    ranked = shares.sort(descending=True)
    allowed = set(ranked.indices[: int((ranked.values.cumsum(-1) < 0.8).sum()) + 1].tolist())
    assert 1 < len(allowed) < len(shares) / 2
    drawn = generate(
        model,
        tokenizer,
        [CHATS[0]] * 40,
        seeds=list(range(40)),
        batch_size=40,
        max_new_tokens=1,
        do_sample=True,
        temperature=0.5,
        top_p=0.8,
        top_k=0,
    )
    expected = {tokenizer.decode([token], skip_special_tokens=True) for token in allowed}
    assert {answer.text for answer in drawn} <= expected
    assert len({answer.text for answer in drawn}) > 1


def test_one_seed_per_prompt() -> None:
    with pytest.raises(RequestError, match="2 seeds for 4 prompts"):
        generate(tiny_llama(), tiny_tokenizer(), CHATS, seeds=[1, 2], do_sample=True)
    with pytest.raises(RequestError, match="do_sample=True"):
        generate(tiny_llama(), tiny_tokenizer(), CHATS, seeds=[1, 2, 3, 4])


def test_what_is_not_said_is_recorded_as_transformers_fills_it_in() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    config = generation_config(model, tokenizer, do_sample=True)
    defaults = model.generation_config._get_default_generation_params()
    assert (config.temperature, config.top_k, config.top_p) == tuple(
        defaults[name] for name in ("temperature", "top_k", "top_p")
    )
    model.generation_config.top_k = 7
    assert generation_config(model, tokenizer, do_sample=True).top_k == 7


# --- a model ---


def test_samples_are_counted_and_their_settings_recorded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "samples.jsonl"
    seen: list[tuple[int, int]] = []
    counts = sample(prompts(), model_sampler(), path, k=2, progress=lambda *step: seen.append(step))
    rows = read_lines(path)
    assert len(rows) == 8 == counts.completions == counts.new
    assert {(row["id"], row["sample"]) for row in rows} == {(str(i), j) for i in range(4) for j in (0, 1)}
    assert counts.distinct == len({(row["id"], row["completion"]) for row in rows}) > 4
    assert (seen[0], seen[-1]) == ((0, 8), (8, 8))
    manifest = json.loads(manifest_of(path).read_text())
    assert manifest["settings"]["generation"]["max_new_tokens"] == 6
    assert manifest["settings"]["generation"]["temperature"] == 1.0
    assert manifest["settings"]["generation"]["top_k"] == 0  # and not the 50 that transformers takes in silence
    assert manifest["settings"]["k"] == 2
    assert len(manifest["settings"]["fingerprint"]) == 32
    assert manifest["counts"]["completions"] == 8
    assert manifest["data"]["source"] == "test.jsonl"


@pytest.mark.parametrize("lines", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("torn", [b"", b'{"id": "0", "key"', b'{"id": "\xc3'])
def test_a_resumed_file_is_the_same_wherever_it_stopped(tmp_path: Path, lines: int, torn: bytes) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    sample(prompts(), model_sampler(), whole, k=2, seed=5)
    kept = whole.read_bytes().split(b"\n")[:lines]
    cut.write_bytes(b"".join(line + b"\n" for line in kept) + torn)
    manifest_of(cut).write_bytes(manifest_of(whole).read_bytes())
    counts = sample(prompts(), model_sampler(), cut, k=2, seed=5)
    assert counts.new == 8 - lines
    assert cut.read_bytes() == whole.read_bytes()
    assert sample(prompts(), model_sampler(), cut, k=2, seed=5).new == 0


def test_a_whole_line_that_lacks_its_line_break_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2}')
    cut_torn_line(path)
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


def test_another_vocabulary_is_refused_and_an_earlier_versions_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    sample(prompts(), model_sampler(), path, k=2, seed=5)
    other = model_sampler()
    tokenizer = other.tokenizer()
    inside = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = inside["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(inside))
    with pytest.raises(RequestError, match="started with other settings: tokenizer was"):
        sample(prompts(), other, path, k=2, seed=5)
    manifest = json.loads(manifest_of(path).read_text())
    del manifest["settings"]["tokenizer"]
    manifest_of(path).write_text(json.dumps(manifest))
    assert sample(prompts(), model_sampler(), path, k=2, seed=5).new == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 6}, "seed was 5 and is 6"),
        ({"k": 3}, "k was 2 and is 3"),
        ({"sampler": {"temperature": 0.5}}, "temperature was 1.0 and is 0.5"),
        ({"sampler": {"max_new_tokens": 7}}, "max_new_tokens was 6 and is 7"),
        ({"sampler": {"seed": 1}}, "fingerprint was"),
        ({"prompts": ["Hi"]}, "prompts was 4 .* and is 1 "),
    ],
)
def test_other_settings_than_the_files_are_refused(tmp_path: Path, change: dict, says: str) -> None:
    path = tmp_path / "samples.jsonl"
    sample(prompts(), model_sampler(), path, k=2, seed=5)
    before = path.read_bytes()
    with pytest.raises(RequestError, match=f"was started with other settings: .*{says}"):
        sample(
            prompts(change.get("prompts", TEXTS)),
            model_sampler(**change.get("sampler", {})),
            path,
            k=change.get("k", 2),
            seed=change.get("seed", 5),
        )
    assert path.read_bytes() == before


def test_another_users_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("mine\n")
    with pytest.raises(RequestError, match="does not say that preftune sample wrote it"):
        sample(prompts(), model_sampler(), path, k=2)
    assert path.read_text() == "mine\n"


def test_a_prompt_that_does_not_fit_is_reported_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with pytest.raises(ModelError, match=r"Prompt 1 has .* tokens"):
        sample(prompts(["Hi", "long " * 200]), model_sampler(), path, k=2)
    assert path.read_bytes() == b""
    sample(prompts(["Hi"]), model_sampler(), path, k=1)  # nothing was begun, so nothing is held against it


def test_greedy_sampling_of_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    sample(prompts(), model_sampler(temperature=0.0), path, k=1)
    expected = generate(tiny_llama(), tiny_tokenizer(), CHATS, max_new_tokens=6)
    assert completions(path) == {(str(i), 0): answer.text for i, answer in enumerate(expected)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens 0"),
        ({"temperature": -1.0}, "--temperature -1"),
        ({"top_p": 1.5}, "--top_p 1.5"),
        ({"min_p": 0.0}, "--min_p 0"),
        ({"top_k": -1}, "--top_k -1"),
    ],
)
def test_impossible_settings(given: dict, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        SamplingSettings(**given)


# --- an endpoint ---


@pytest.fixture
def server():
    with serving(lambda body: f"{body['messages'][-1]['content']} {body['seed'] % 1000}") as chat:
        yield chat


def from_endpoint(server, path: Path, *, k: int = 3, concurrency: int = 4, texts=TEXTS, **carried):
    name = EndpointName.parse(server.spec())
    with Endpoint(name, conduct=Conduct(concurrency=concurrency, retries=1)) as endpoint:
        sampler = EndpointAnswerer(endpoint, SamplingSettings(max_new_tokens=6, temperature=0.7, top_k=9), raw=True)
        return sample(prompts(texts, **carried), sampler, path, k=k)


def test_an_endpoint_answers_every_prompt_once(server, tmp_path: Path) -> None:
    server.pause = 0.02
    counts = from_endpoint(server, tmp_path / "s.jsonl")
    assert (counts.completions, counts.new, counts.finished) == (12, 12, 12)
    assert len(server.asked) == 12
    assert 1 < server.most_at_once <= 4
    assert server.asked[0]["top_k"] == 9
    assert len({body["seed"] for body in server.asked}) == 12
    assert from_endpoint(server, tmp_path / "s.jsonl").new == 0
    assert len(server.asked) == 12
    again = tmp_path / "again.jsonl"
    from_endpoint(server, again)
    assert completions(again) == completions(tmp_path / "s.jsonl")


def test_a_failure_in_the_middle_loses_no_answer(server, tmp_path: Path) -> None:
    """The others under way are taken when one call fails for good, and are not asked again."""
    path = tmp_path / "s.jsonl"
    server.pause = 0.05
    server.check = lambda body: FAILURE if len(server.answered) >= 4 else None
    with pytest.raises(EndpointError, match="failed in 2 attempts"):
        from_endpoint(server, path)
    assert len(read_samples(path)) == len(server.answered) >= 4
    server.check = lambda body: None
    from_endpoint(server, path)
    assert sorted(map(json.dumps, server.answered)) == sorted({json.dumps(body) for body in server.answered})
    assert count(path).completions == len(server.answered) == 12


def test_a_prompt_that_the_server_declines_is_named(server, tmp_path: Path) -> None:
    server.check = lambda body: refusal(400, "declined") if body["messages"][-1]["content"] == "a" else None
    with pytest.raises(RequestError, match=r"does not accept the request for prompt '2' \(400: declined\)"):
        from_endpoint(server, tmp_path / "s.jsonl", k=1)


def test_ctrl_c_takes_what_is_under_way(server, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    server.pause = 0.1

    def interrupt() -> None:
        while len(server.answered) < 5:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        from_endpoint(server, path)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert 5 <= len(read_samples(path)) == len(server.answered) < 12
    from_endpoint(server, path)
    assert len(server.asked) == 12


HANGING = """
import os, signal, sys, threading, time
from preftune.generation.endpoint.parallel import in_parallel
signal.signal(signal.SIGINT, signal.default_int_handler)

def twice():
    for _ in range(2):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=twice, daemon=True).start()
try:
    in_parallel(lambda item: time.sleep(600), range(8), workers=4, take=print)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_second_ctrl_c_waits_for_no_thread_at_the_end_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], timeout=120, check=False, capture_output=True)
    assert done.returncode == 130, done.stderr.decode()


def test_what_a_server_does_not_know_is_passed_on(server, tmp_path: Path) -> None:
    from_endpoint(server, tmp_path / "s.jsonl", k=1, chat_template_kwargs={"enable_thinking": False})
    assert server.asked[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert read_samples(tmp_path / "s.jsonl")[0]["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(RequestError, match="Prompt 0 has tools"):
        from_endpoint(server, tmp_path / "t.jsonl", tools=[{"name": "f"}])
