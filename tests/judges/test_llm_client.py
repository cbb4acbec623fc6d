from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.errors import RequestError
from preftune.generation.endpoint.client import Endpoint, EndpointName
from preftune.generation.lazy_model import ModelSource
from preftune.judges.cache import VerdictCache
from preftune.judges.llm_client import EndpointAsker, LocalAsker
from preftune.judges.pairwise_llm import parse_verdict
from tests.generation.chat_server import Fault, completion, serving
from tests.tiny import tiny_model, tiny_tokenizer

HOW_MANY = [[{"role": "user", "content": f"Rate {n}."}] for n in (3, 5, 3)]


def number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


@pytest.fixture
def cache(tmp_path: Path):
    found = VerdictCache(tmp_path / "verdicts")
    yield found
    found.close()


@pytest.fixture
def server():
    with serving(lambda body: body["messages"][0]["content"].removeprefix("Rate ").strip(".")) as chat:
        yield chat


def ask(server: Any, cache: VerdictCache, questions: Any = HOW_MANY, **options: Any) -> list[int | None]:
    with Endpoint(EndpointName.parse(server.spec())) as endpoint:
        return EndpointAsker(endpoint, cache).ask_all(questions, **{"read": number, "kind": "rate-1", **options})


def test_equal_questions_are_asked_once_and_a_cleverer_reader_asks_no_one(server, cache) -> None:
    seen: list[tuple[int, int]] = []
    assert ask(server, cache, progress=lambda *step: seen.append(step)) == [3, 5, 3]
    assert len(server.asked) == 2
    assert (seen[0], seen[-1]) == ((0, 2), (2, 2))
    assert ask(server, cache, read=lambda text: number(text) and -number(text)) == [-3, -5, -3]
    assert len(server.asked) == 2
    assert "response_format" not in server.asked[0]
    ask(server, cache, kind="rate-2", as_json=True)
    assert len(server.asked) == 4
    assert server.asked[-1]["response_format"] == {"type": "json_object"}
    ask(server, cache, max_tokens=7)
    assert len(server.asked) == 6


def test_an_unreadable_reply_is_reminded_of_once_and_asked_anew_on_request(server, cache) -> None:
    server.answer = lambda body: "well" if len(body["messages"]) == 1 else "7"
    assert ask(server, cache, reminder="A number!") == [7, 7, 7]
    assert server.asked[-1]["messages"][-1] == {"role": "user", "content": "A number!"}
    assert ask(server, cache) == [7, 7, 7]
    assert len(server.asked) == 4
    server.answer = lambda body: "no"
    assert ask(server, cache, kind="other") == [None] * 3
    assert ask(server, cache, kind="other") == [None] * 3
    assert len(server.asked) == 8
    server.answer = lambda body: "1"
    assert ask(server, cache, kind="other", again=True) == [1, 1, 1]
    assert len(server.asked) == 10


def test_of_a_reply_that_ended_at_its_limit_only_a_verdict_that_it_begins_with_counts(server, cache) -> None:
    def asked(reply: str) -> str | None:
        (verdict,) = ask(server, cache, [[{"role": "user", "content": reply}]], read=parse_verdict)
        return verdict

    def said(reply: str) -> str | None:
        server.answer = lambda body: '{"better": "A"}'
        server.faults = [Fault(body=completion(reply).replace('"stop"', '"length"'))]
        return asked(reply)

    assert said("At first I think: better: B.\nBut looking closer, answer A is the one that") == "a"
    assert len(server.asked) == 2
    assert said('{"better": "B"}\nThe reason is that answer A') == "b"
    assert said("**B**\n\nAnswer A does not") == "b"
    assert said("[[B]]\nNo, on reflection [[A]] because") == "a"
    assert len(server.asked) == 6, "two reminders"
    server.answer = lambda body: pytest.fail("it is kept")
    assert ask(server, cache, [[{"role": "user", "content": "**B**\n\nAnswer A does not"}]], read=parse_verdict) == [
        "b"
    ]


def test_a_first_reply_that_a_kill_left_alone_is_only_reminded_of(server, cache) -> None:
    server.answer = lambda body: "hm"
    server.check = lambda body: pytest.fail("never") if len(server.asked) > 99 else None
    with Endpoint(EndpointName.parse(server.spec())) as endpoint:
        asker = EndpointAsker(endpoint, cache)
        (key,) = [asker._key(HOW_MANY[0], "rate-1", 512)]
        cache.put({key: ["hm"]}, judge="j")
        server.answer = lambda body: "4"
        assert asker.ask_all(HOW_MANY[:1], read=number, kind="rate-1") == [4]
    assert [len(body["messages"]) for body in server.asked] == [3]


def test_estimates(server, cache) -> None:
    with Endpoint(EndpointName.parse(server.spec())) as endpoint:
        asker = EndpointAsker(endpoint, cache)
        first = asker.estimate(HOW_MANY, kind="rate-1", max_tokens=50)
        assert (first.calls, first.tokens_out) == (2, 100)
        asker.ask_all(HOW_MANY, read=lambda text: None, kind="rate-1", max_tokens=50)
        assert asker.known(HOW_MANY, kind="rate-1", max_tokens=50) == 2
        assert asker.estimate(HOW_MANY, kind="rate-1", max_tokens=50).calls == 0
        assert asker.estimate(HOW_MANY, kind="rate-1", max_tokens=50, again=number).calls == 0
        assert asker.estimate(HOW_MANY, kind="rate-1", max_tokens=50, again=lambda text: None).calls == 2
        with pytest.raises(RequestError, match="--judge_max_tokens 0"):
            asker.ask_all(HOW_MANY, read=number, kind="rate-1", max_tokens=0)


def test_a_model_on_this_machine(cache) -> None:
    source = ModelSource.held(tiny_model(), tiny_tokenizer(), name="tiny")
    asker = LocalAsker(source, cache, batch_size=2)
    questions = [[{"role": "system", "content": "Be brief."}, *question] for question in HOW_MANY]
    replies = asker.ask_all(questions, read=lambda text: text or None, kind="k", max_tokens=5)
    assert all(replies)
    assert replies[0] == replies[2]
    silent = ModelSource.held(tiny_model(), tiny_tokenizer(), name="tiny")
    silent._model = None  # what is known needs no weights
    assert LocalAsker(silent, cache).ask_all(questions, read=lambda text: text, kind="k", max_tokens=5) == replies
    other = ModelSource.held(tiny_model(seed=1), tiny_tokenizer(), name="tiny")
    assert LocalAsker(other, cache).known(questions, kind="k", max_tokens=5) == 0
    with pytest.raises(RequestError, match="--judge_batch_size 0"):
        LocalAsker(source, cache, batch_size=0)


def test_a_template_without_a_system_gets_its_words_from_the_user(cache) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    asker = LocalAsker(ModelSource.held(tiny_model(), tokenizer, name="tiny"), cache)
    question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert asker._as_taken(question) == [{"role": "user", "content": "Be brief.\n\nHi"}]
    assert len(asker.ask_all([question], read=lambda text: text, kind="k", max_tokens=2)) == 1
