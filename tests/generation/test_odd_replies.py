"""Every odd reply of an endpoint is one sentence that names it, and costs no answer that was under way."""

from __future__ import annotations

import gzip
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest

from preftune.errors import EndpointError, PreftuneError, RequestError
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName
from preftune.generation.endpoint.replies import OddReplyError, read_reply
from preftune.judges.cache import VerdictCache
from preftune.judges.llm_client import EndpointAsker
from preftune.log import printable
from tests.generation.chat_server import Fault, completion, refusal, serving

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server():
    with serving(lambda body: "Hello to you") as made:
        yield made


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("preftune.generation.endpoint.client._ODD_PAUSE_S", 0.0)


def endpoint(server, **conduct) -> Endpoint:
    return Endpoint(EndpointName("tiny-judge", server.url), conduct=Conduct(**{"timeout": 5, "retries": 1, **conduct}))


def body(**changed) -> str:
    return json.dumps({**json.loads(completion("well")), **changed})


def message(content) -> list:
    return [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}]


ODD = {
    "cut off": '{"id": "1", "choices": [',
    "empty": "",
    "a page": "<html>hello</html>",
    "deep": "[" * 100_000,
    "null": "null",
    "a list": "[1]",
    "no choices": body(choices=[]),
    "choices of text": body(choices="well"),
    "choices of numbers": body(choices=[5]),
    "content of numbers": body(choices=message(42)),
    "content of odd parts": body(choices=message([{"type": "text", "text": 7}])),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_reply_is_asked_for_again(server, odd: str) -> None:
    server.faults = [Fault(body=odd)]
    with endpoint(server) as model:
        assert model.chat(HELLO, max_tokens=5).text == "Hello to you"
        assert model.budget.unanswered == 1  # it may be billed
        assert model.budget.calls == 1


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_reply_that_stays_names_the_endpoint(server, odd: str) -> None:
    server.faults = [Fault(body=odd)] * 2
    with endpoint(server) as model, pytest.raises(RequestError, match="not with a chat completion") as caught:
        model.chat(HELLO, max_tokens=5)
    assert str(model.name) in str(caught.value)
    assert "\n" not in str(caught.value)
    with endpoint(server) as model:
        model.chat(HELLO, max_tokens=5)
        server.faults = [Fault(body=odd)] * 2
        with pytest.raises(EndpointError, match=r"not chat completions.*kept"):  # it was a chat model a moment ago
            model.chat(HELLO, max_tokens=5)


def test_other_answers_under_way_are_kept(server, tmp_path: Path) -> None:
    def check(asked):
        return Fault(body="{}") if asked["messages"][0]["content"] == "q3" else None

    server.check = check
    questions = [[{"role": "user", "content": f"q{n}"}] for n in range(6)]
    with endpoint(server, concurrency=6) as model:
        cache = VerdictCache(tmp_path)
        asker = EndpointAsker(model, cache)
        with pytest.raises(PreftuneError):
            asker.ask_all(questions, read=str, kind="k")
        assert len(cache) == 5


def test_what_a_reply_without_choices_says_is_passed_on() -> None:
    for error in ({"message": "quota exceeded", "code": 429}, "quota exceeded"):
        with pytest.raises(OddReplyError, match="says: quota exceeded"):
            read_reply(SimpleNamespace(choices=None, error=error), asked=1)


def test_usage_is_believed_within_reason() -> None:
    def reply(**usage):
        choice = SimpleNamespace(finish_reason="stop", message=SimpleNamespace(content="12345678"))
        return read_reply(SimpleNamespace(choices=[choice], usage=SimpleNamespace(**usage)), asked=9)

    assert reply(completion_tokens=3, prompt_tokens=4)[1:4] == (3, True, 4)
    for bad in (-1, -1e9, "many", 1e400, 10**12, None, [1]):
        assert reply(completion_tokens=bad, prompt_tokens=bad)[1:4] == (2, True, 9)


def test_content_as_a_list_of_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "Hel"},
        SimpleNamespace(type="text", text="lo"),
    ]
    choice = SimpleNamespace(finish_reason="stop", message=SimpleNamespace(content=parts))
    found = read_reply(SimpleNamespace(choices=[choice]), asked=1)
    assert (found.text, found.thought) == ("Hello", "hm")
    with pytest.raises(OddReplyError, match="of type dict"):
        read_reply(SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content={"a": 1}))]), asked=1)


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    """A server has cut an emoji: UTF-8 cannot hold what is left, so that it could be neither kept nor asked about."""
    reply = read_reply(SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="A \ud83d"))]), 3)
    assert reply.text == "A \ufffd"
    whole = read_reply(SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="A \U0001f600"))]), 3)
    assert whole.text == "A \U0001f600"


def test_a_reply_has_a_limit(server) -> None:
    server.answer = lambda asked: "x" * 3_000_000
    small = endpoint(server, max_reply_bytes=2_000_000)
    with small as model, pytest.raises(EndpointError, match=r"more than 2 MB.*--max_reply_mb"):
        model.chat(HELLO, max_tokens=5)
    assert len(server.asked) == 1
    with endpoint(server) as model:
        assert len(model.chat(HELLO, max_tokens=5).text) == 3_000_000
    with pytest.raises(RequestError, match="--max_reply_mb 0"):
        Conduct(max_reply_bytes=0)


class _Raw(BaseHTTPRequestHandler):
    """Answers every question by `script`."""

    protocol_version = "HTTP/1.1"
    script = staticmethod(lambda handler: None)
    asked = 0

    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        type(self).script(self)


def raw(script):
    handler = type("Handler", (_Raw,), {"script": staticmethod(script)})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    return http, handler, SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}/v1")


def test_a_compressed_reply_counts_as_it_unfolds() -> None:
    bomb = gzip.compress(b" " * 50_000_000)

    def script(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(bomb)))
        handler.end_headers()
        handler.wfile.write(bomb)

    http, _, where = raw(script)
    with endpoint(where, max_reply_bytes=1_000_000) as model, pytest.raises(EndpointError, match="more than 1 MB"):
        model.chat(HELLO, max_tokens=5)
    http.shutdown()
    http.server_close()


def spaces() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    yield from repeat(b" ")


def header() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-Name: "
    yield from repeat(b"x")


def empty_blocks() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03"
    yield from repeat(b"\0\0\0\xff\xff" * 100)


def page_of_a_redirect() -> Iterator[bytes]:
    yield b"HTTP/1.1 307 Moved\r\nLocation: /v1/chat/completions\r\n\r\n"
    yield from repeat(b" ")


def trickling(parts: Callable[[], Iterator[bytes]]):
    def script(handler) -> None:
        handler.close_connection = True
        for part in islice(parts(), 100):
            try:
                handler.wfile.write(part)
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)

    return raw(script)


@pytest.mark.parametrize("parts", [spaces, header, empty_blocks, page_of_a_redirect])
def test_a_reply_that_trickles_is_given_up(parts) -> None:
    http, handler, where = trickling(parts)
    with (
        endpoint(where, timeout=0.5, retries=1) as model,
        pytest.raises(EndpointError, match=r"within 0\.5 s in 2 attempts"),
    ):
        model.chat(HELLO, max_tokens=5)
    assert handler.asked == 2
    assert model.budget.unanswered == 2
    http.shutdown()
    http.server_close()


def test_a_reply_that_unfolds_to_nothing_counts_as_it_comes() -> None:
    http, _, where = trickling(empty_blocks)
    with endpoint(where, max_reply_bytes=1000) as model, pytest.raises(EndpointError, match=r"more than 0\.001 MB"):
        model.chat(HELLO, max_tokens=5)
    http.shutdown()
    http.server_close()


def test_what_is_sent_to_one_host_is_not_passed_on_to_another(server) -> None:
    server.faults = [Fault(307, headers={"Location": "http://localhost.invalid/v1/chat/completions"})]
    with endpoint(server) as model, pytest.raises(EndpointError, match=r"redirects to http://localhost\.invalid"):
        model.chat(HELLO, max_tokens=5)
    server.faults = [Fault(307, headers={"Location": "/v1/chat/completions"})]
    with endpoint(server) as model:
        assert model.chat(HELLO, max_tokens=5).text == "Hello to you"
        assert (model.budget.calls, model.budget.unanswered) == (1, 0)  # a redirect is no attempt of its own


@pytest.mark.parametrize(
    "refused",
    [
        refusal(400, "System role not supported"),
        refusal(422, "Template error: Conversation roles must alternate user/assistant/user/assistant/..."),
        refusal(500, "Only user and assistant roles are supported!"),
    ],
)
def test_a_judge_without_a_system_role_gets_its_words_from_the_user(server, refused: Fault) -> None:
    server.check = lambda asked: refused if asked["messages"][0]["role"] == "system" else None
    judge = [{"role": "system", "content": "Be fair."}, *HELLO]
    with endpoint(server, retries=0) as model:
        assert model.chat(judge, max_tokens=5).text == "Hello to you"
        assert model.chat(judge, max_tokens=5).text == "Hello to you"
    assert [len(asked["messages"]) for asked in server.asked] == [2, 1, 1]
    assert server.answered[0]["messages"] == [{"role": "user", "content": "Be fair.\n\nHello"}]
    server.check = lambda asked: refused
    with endpoint(server, retries=0) as model, pytest.raises(PreftuneError):
        model.chat(judge, max_tokens=5)


def test_messages_of_servers_cannot_move_the_cursor(server) -> None:
    server.faults = [refusal(400, "no \x1b[2J\x1b]0;owned\x07way \u202eback")]
    with endpoint(server) as model, pytest.raises(RequestError) as caught:
        model.chat(HELLO, max_tokens=5)
    assert "(400: no way back)" in str(caught.value)
    assert printable("a\tb\nc\x9b31m\x7f") == "a\tb\nc31m"


# --- verdicts on disk ---


def rows(cache: VerdictCache) -> sqlite3.Connection:
    return sqlite3.connect(cache.path)


def test_a_damaged_verdict_is_asked_for_again(tmp_path: Path, caplog) -> None:
    cache = VerdictCache(tmp_path)
    cache.put({"a": ["A"], "b": ["B"], "c": ["C"], "d": ["D"], "e": ["E"]}, judge="j")
    with rows(cache) as direct:
        direct.execute("UPDATE verdicts SET value = replace(value, 'A', 'B') WHERE key = 'a'")
        direct.execute("UPDATE verdicts SET value = '[' WHERE key = 'b'")
        direct.execute("UPDATE verdicts SET value = x'ff00' WHERE key = 'c'")
        direct.execute("UPDATE verdicts SET value = CAST(x'ff00' AS TEXT) WHERE key = 'e'")  # no UTF-8
    assert cache.get("abcde") == {"d": ["D"]}
    assert "4 damaged verdicts" in caplog.text
    cache.put({"a": ["A"]}, judge="j")
    assert cache.get("a") == {"a": ["A"]}


def test_verdicts_of_earlier_versions_are_read(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path)
    with rows(cache) as direct:
        direct.execute("INSERT INTO verdicts VALUES ('old', '[\"A\"]', 'j', 0)")
    assert cache.get(["old"]) == {"old": ["A"]}


@pytest.mark.parametrize("kept", [{"x": 1}, [], ["A", 7], "A", None])
def test_what_is_no_reply_is_asked_for_again(server, tmp_path: Path, kept: object) -> None:
    with endpoint(server) as model:
        cache = VerdictCache(tmp_path)
        asker = EndpointAsker(model, cache)
        key = asker._key(HELLO, "k", 512)
        cache.put({key: kept}, judge="j")
        assert asker.known([HELLO], kind="k") == 0
        assert asker.ask_all([HELLO], read=str, kind="k") == ["Hello to you"]


def test_a_reader_that_fails_leaves_the_question_unjudged(server, tmp_path: Path) -> None:
    def fails(reply: str) -> str:
        raise RecursionError

    with endpoint(server) as model:
        cache = VerdictCache(tmp_path)
        for _ in range(2):  # the kept reply fails the second time as it did the first
            assert EndpointAsker(model, cache).ask_all([HELLO], read=fails, kind="k") == [None]


def test_a_later_versions_file_is_set_aside(tmp_path: Path, caplog) -> None:
    first = VerdictCache(tmp_path)
    with rows(first) as direct:
        direct.execute("DROP TABLE verdicts")
        direct.execute("CREATE TABLE verdicts (id TEXT)")
    first.close()
    again = VerdictCache(tmp_path)
    again.put({"a": 1}, judge="j")
    assert again.get(["a"]) == {"a": 1}
    assert "set aside" in caplog.text


def test_a_disk_that_fills_is_one_sentence(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path)
    cache._connection.execute("PRAGMA max_page_count=2")
    with pytest.raises(RequestError, match=r"verdicts\.sqlite cannot be read or written .*full.*Make room"):
        cache.put({str(n): "x" * 5000 for n in range(100)}, judge="j")


@pytest.mark.parametrize(
    "content", ["Paris.", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Paris."}]]
)
def test_an_empty_field_of_thoughts_hides_none_in_another(content) -> None:
    message = SimpleNamespace(content=content, reasoning_content="", reasoning="hm" if content == "Paris." else None)
    choice = SimpleNamespace(message=message, finish_reason="stop")
    reply = read_reply(SimpleNamespace(choices=[choice], usage=None), 3)
    assert (reply.text, reply.thought) == ("Paris.", "hm")


def test_a_model_that_is_listed_and_not_found_is_not_suggested_again(server) -> None:
    server.faults = [Fault(status=404, body=json.dumps({"error": {"message": "gone"}}))]
    with endpoint(server) as model, pytest.raises(RequestError, match=r"404: gone\)\. It lists this model") as found:
        model.chat(HELLO, max_tokens=5)
    assert "Did you mean" not in str(found.value)


@pytest.mark.parametrize(
    ("reason", "finished"),
    [("stop", True), ("tool_calls", True), ("eos_token", True), (None, True), (["stop"], True), ({"a": 1}, True),
     ("length", False), ("content_filter", False)],
)  # fmt: skip
def test_only_a_reply_that_was_cut_counts_as_cut(server, reason: object, finished: bool) -> None:
    server.faults = [Fault(body=body(choices=[{**message(None)[0], "finish_reason": reason}]))]
    with endpoint(server) as model:
        reply = model.chat(HELLO, max_tokens=5)
    assert (reply.text, reply.finished, reply.cut) == ("", finished, reason == "length")
