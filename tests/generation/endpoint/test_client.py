from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from preftune.errors import EndpointError, PreftuneError, RequestError
from preftune.generation.endpoint.budget import Budget, guess_tokens
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName
from tests.generation.chat_server import FAILURE, RATE_LIMIT, ChatServer, Fault, refusal, serving

HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
def server():
    with serving(lambda body: "Hello to you") as chat:
        yield chat


def endpoint(server: ChatServer, model: str = "tiny-judge", *, budget: Budget | None = None, **conduct) -> Endpoint:
    return Endpoint(EndpointName.parse(server.spec(model)), conduct=Conduct(**conduct), budget=budget)


@pytest.mark.parametrize(
    ("spec", "model", "url"),
    [
        ("openai:m@http://localhost:8000/v1", "m", "http://localhost:8000/v1"),
        ("openai:org/m:tag@https://host/v1/", "org/m:tag", "https://host/v1"),
        ("openai:gpt", "gpt", "https://api.openai.com/v1"),
    ],
)
def test_names(spec: str, model: str, url: str) -> None:
    assert EndpointName.parse(spec) == (model, url)
    assert str(EndpointName.parse(spec)) == f"openai:{model}@{url}"


@pytest.mark.parametrize("spec", ["openai:@http://h/v1", "openai:", "openai:m@localhost:8000", "gpt@http://h/v1"])
def test_what_names_no_endpoint(spec: str) -> None:
    with pytest.raises(RequestError, match="does not name an endpoint"):
        EndpointName.parse(spec)


@pytest.mark.parametrize("url", ["http://user:secret@h/v1", "https://h/v1?key=secret", "http:///v1"])
def test_an_address_holds_no_secret(url: str) -> None:
    with pytest.raises(RequestError, match="must not contain a user") as caught:
        EndpointName.parse(f"openai:m@{url}")
    assert "secret" not in str(caught.value)


def test_an_answer_with_its_counts(server: ChatServer) -> None:
    with endpoint(server) as model:
        reply = model.chat(HELLO, max_tokens=9, temperature=0.5, top_p=0.9, seed=3, extra={"top_k": 5})
        assert reply[:4] == ("Hello to you", 3, True, 10)
        assert (model.budget.calls, model.budget.tokens_in, model.budget.tokens_out) == (1, 10, 3)
    (body,) = server.asked
    assert body == {
        "model": "tiny-judge",
        "messages": HELLO,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "top_k": 5,
    }


@pytest.mark.parametrize("fault", [RATE_LIMIT, FAILURE, Fault(drop=True)])
def test_what_passes_is_tried_again(server: ChatServer, fault: Fault) -> None:
    server.faults = [fault]
    with endpoint(server) as model:
        assert model.chat(HELLO, max_tokens=9).text == "Hello to you"
    assert len(server.asked) == 2
    assert len(server.answered) == 1


def test_a_hanging_server_is_given_up(server: ChatServer) -> None:
    server.faults = [Fault(hang=0.6)] * 2
    with (
        endpoint(server, timeout=0.05, retries=1) as model,
        pytest.raises(EndpointError, match=r"no answer within 0\.05"),
    ):
        model.chat(HELLO, max_tokens=9)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (RATE_LIMIT, EndpointError, "too many calls after 1 retry (429: slow down). Lower --concurrency"),
        (FAILURE, EndpointError, "failed in 2 attempts (503: out of order)"),
        (refusal(401, "bad key"), RequestError, "refuses access (401: bad key). Set the key in the environment"),
        (refusal(400, "too long"), RequestError, "does not accept the request (400: too long). Change"),
        (Fault(200, "<html>"), RequestError, "Check that the address is complete"),
        (Fault(200, "{}"), RequestError, "not with a chat completion"),
    ],
)
def test_what_stays_is_one_paragraph(server: ChatServer, fault: Fault, kind: type[PreftuneError], says: str) -> None:
    server.faults = [fault] * 2
    with endpoint(server, retries=1) as model:
        with pytest.raises(kind) as caught:
            model.chat(HELLO, max_tokens=9)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert model.budget.calls == 0


def test_near_names_of_a_missing_model(server: ChatServer) -> None:
    with endpoint(server, "tiny-jugde") as model, pytest.raises(RequestError, match="Did you mean 'tiny-judge'"):
        model.chat(HELLO, max_tokens=9)
    server.models = ["zzz"]
    with endpoint(server) as model, pytest.raises(RequestError, match="It has: zzz"):
        model.chat(HELLO, max_tokens=9)


def test_an_address_without_its_end(server: ChatServer) -> None:
    name = EndpointName("tiny-judge", server.url.removesuffix("/v1"))
    with Endpoint(name) as model, pytest.raises(RequestError, match=r"lists no models either.*ends in /v1"):
        model.chat(HELLO, max_tokens=9)


def test_no_one_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        name = EndpointName.parse(f"openai:m@http://127.0.0.1:{taken.getsockname()[1]}/v1")
        with Endpoint(name) as model, pytest.raises(RequestError, match=r"cannot be reached .*refused"):
            model.check()


def test_the_check_minds_only_what_matters(server: ChatServer) -> None:
    with endpoint(server, "unlisted") as model:
        model.check()
        server.list_fault = refusal(404, "no list here")
        model.check()
        server.list_fault = refusal(401, "who are you")
        with pytest.raises(RequestError, match="refuses access"):
            model.check()
    assert server.asked == []


def test_a_field_that_the_server_refuses_is_left_out(server: ChatServer, caplog) -> None:
    def check(body: dict) -> Fault | None:
        for name in ("max_tokens", "response_format", "seed"):
            if name in body:
                return refusal(400, f"Unsupported parameter: '{name}'")
        return None

    server.check = check
    with endpoint(server) as model:
        for _ in range(2):
            assert model.chat(HELLO, max_tokens=9, seed=1, as_json=True).text == "Hello to you"
    assert len(server.asked) == 5
    assert server.answered[-1]["max_completion_tokens"] == 9
    assert caplog.text.count("does not support a seed") == 1


def test_a_temperature_is_left_out_only_where_the_caller_can_spare_it(server: ChatServer, caplog) -> None:
    def check(body: dict) -> Fault | None:
        return refusal(400, "'temperature' does not support 0.0 with this model.") if "temperature" in body else None

    server.check = check
    with endpoint(server) as model:
        with pytest.raises(RequestError, match="temperature"):
            model.chat(HELLO, max_tokens=9, temperature=0.0)
        for _ in range(2):
            assert model.chat(HELLO, max_tokens=9, temperature=0.0, spare=("temperature",)).text == "Hello to you"
        with pytest.raises(RequestError, match="temperature"):
            model.chat(HELLO, max_tokens=9, temperature=0.0)
    assert caplog.text.count("does not accept a temperature") == 1


def test_the_key_goes_to_the_server_and_nowhere_else(server: ChatServer, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    server.faults = [refusal(401, "wrong key sk-very-secret")]
    with endpoint(server, api_key_env="MY_KEY") as model:
        with pytest.raises(RequestError) as caught:
            model.chat(HELLO, max_tokens=9)
        assert "sk-very-secret" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert "Check the key in MY_KEY" in str(caught.value)
    assert server.keys == {"Bearer sk-very-secret"}
    server.answer = lambda body: "You sent sk-very-secret."
    with endpoint(server, api_key_env="MY_KEY") as model:
        assert model.chat(HELLO, max_tokens=9).text == "You sent ***."
    with pytest.raises(RequestError, match="--api_key_env NOT_THERE: this environment variable is not set"):
        endpoint(server, api_key_env="NOT_THERE")


@pytest.mark.parametrize("conduct", [{"timeout": 0}, {"retries": -1}, {"concurrency": 0}])
def test_impossible_conduct(conduct: dict) -> None:
    with pytest.raises(RequestError, match="--timeout"):
        Conduct(**conduct)


def test_the_package_is_missing(server: ChatServer, monkeypatch) -> None:
    monkeypatch.setattr("preftune.generation.endpoint.client.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'preftune\[endpoint\]'"):
        endpoint(server)


def test_caps_are_kept_while_calls_are_made(server: ChatServer) -> None:
    budget = Budget(max_calls=2)
    with endpoint(server, budget=budget) as model:
        model.chat(HELLO, max_tokens=9)
        model.chat(HELLO, max_tokens=9)
        with pytest.raises(EndpointError, match="Stopped before call 3: --max_calls is 2"):
            model.chat(HELLO, max_tokens=9)
    assert len(server.asked) == 2


def test_money_is_set_aside_for_calls_under_way() -> None:
    budget = Budget(max_cost=1.0, price_in=1e6, price_out=0.0)  # one per token asked
    first = budget.begin(tokens_in=0, tokens_out=5)
    budget.end(first, tokens_in=0, tokens_out=5)
    ticket = budget.begin(tokens_in=1, tokens_out=0)
    with pytest.raises(EndpointError, match=r"Stopped at --max_cost 1\.00"):
        budget.begin(tokens_in=1, tokens_out=0)
    budget.forget(ticket)
    assert budget.begin(tokens_in=1, tokens_out=0)


def test_estimates() -> None:
    priced = Budget(price_in=2.0, price_out=10.0)
    found = priced.estimate(calls=1000, tokens_in=500_000, tokens_out=100_000)
    assert found.cost == pytest.approx(2.0)
    assert found.line() == (
        "about to make 1,000 calls, with about 500,000 input and 100,000 output tokens, about 2.00 at the prices given"
    )
    assert Budget().estimate(calls=1, tokens_in=1, tokens_out=1).cost is None
    with pytest.raises(RequestError, match=r"This takes 3 calls, but --max_calls is 2; no call was made"):
        Budget(max_calls=2).estimate(calls=3, tokens_in=0, tokens_out=0)
    with pytest.raises(RequestError, match=r"would cost about 2\.00, but --max_cost is 1\.00"):
        Budget(max_cost=1, price_in=2, price_out=10).estimate(calls=1, tokens_in=500_000, tokens_out=100_000)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_calls": -1}, "--max_calls -1"),
        ({"price_in": 1.0}, "belong together"),
        ({"max_cost": 1.0}, "--max_cost needs prices"),
        ({"max_cost": float("nan"), "price_in": 1, "price_out": 1}, "--max_cost nan"),
    ],
)
def test_impossible_budgets(given: dict, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Budget(**given)


def test_one_endpoint_serves_many_threads(server: ChatServer) -> None:
    server.pause = 0.02
    with endpoint(server) as model:
        threads = [threading.Thread(target=model.chat, args=(HELLO,), kwargs={"max_tokens": 9}) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (model.budget.calls, model.budget.tokens_out) == (8, 24)


def test_importing_it_brings_neither_torch_nor_the_client() -> None:
    import subprocess
    import sys

    code = (
        "import sys, preftune.generation.endpoint.client, preftune.evaluation.labelling.label\n"
        "import preftune.generation.settings\n"
        "import preftune.cli.commands.sample, preftune.cli.commands.label\n"
        "print([m for m in ('openai', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


def test_attempts_that_got_no_answer_count_at_their_most(server: ChatServer) -> None:
    asked = guess_tokens(len(HELLO[0]["content"]))
    prices = {"price_in": 1e6, "price_out": 1e6}
    server.faults = [Fault(hang=0.6)] * 2
    with endpoint(server, timeout=0.1, retries=1, budget=Budget(**prices)) as model:
        with pytest.raises(EndpointError, match="may be billed: the budget counts each at its maximum"):
            model.chat(HELLO, max_tokens=9)
        assert (model.budget.calls, model.budget.tokens_in, model.budget.tokens_out) == (0, 2 * asked, 18)
        assert model.budget.cost == 2 * asked + 18
    server.faults = [Fault(drop=True), RATE_LIMIT]  # repeated by the client; only the first may have cost something
    with endpoint(server, retries=2, budget=Budget()) as model:
        reply = model.chat(HELLO, max_tokens=9)
        assert model.budget.tokens_in == reply.prompt_tokens + asked
        assert model.budget.tokens_out == reply.tokens + 9
        assert "; 1 attempt without an answer counted at the maximum" in model.budget.line()
        server.faults = [RATE_LIMIT]
        model.chat(HELLO, max_tokens=9)
        assert model.budget.unanswered == 1


@pytest.mark.parametrize("key", ["sk-SECRETaaaaaaaa\nbbb", "sk-SECRETaaaa\x00bbb", "sk-SECRET schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key, server, monkeypatch):
    if "\x00" in key:
        key = key.replace("\x00", "\x7f")  # the environment itself takes no NUL
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(RequestError, match="The key in MY_KEY holds a blank, a line break") as caught:
        endpoint(server, api_key_env="MY_KEY")
    assert "SECRET" not in str(caught.value)


def test_a_part_of_the_key_that_a_server_echoes_is_hidden(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-SECRETaaaaaaaaaa")
    server.faults = [refusal(401, "Incorrect API key provided: sk-SECRETa (sk-SE****aaaa)")]
    with endpoint(server, api_key_env="MY_KEY") as model, pytest.raises(RequestError, match="refuses access") as caught:
        model.chat(HELLO, max_tokens=9)
    assert "SECRET" not in str(caught.value)
    assert "sk-SE" not in str(caught.value)
