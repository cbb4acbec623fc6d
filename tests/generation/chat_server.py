"""A server on the loopback that speaks OpenAI's protocol, counts questions, and misbehaves when it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], str]


@dataclass
class Fault:
    """Something other than an answer."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0
    """Seconds before anything is sent."""
    drop: bool = False
    """The connection is closed without a word."""


def refusal(status: int, message: str, **headers: str) -> Fault:
    return Fault(status, json.dumps({"error": {"message": message, "code": "x"}}), dict(headers))


RATE_LIMIT = refusal(429, "slow down", **{"Retry-After": "0.02"})
FAILURE = refusal(503, "out of order", **{"Retry-After": "0.02"})


class ChatServer:
    """What a test sees of the server."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.models = ["tiny-judge", "other"]
        self.faults: list[Fault] = []
        """Used up one per question, before any is answered."""
        self.check: Callable[[dict[str, Any]], Fault | None] = lambda request: None
        self.list_fault: Fault | None = None
        self.pause = 0.0
        self.asked: list[dict[str, Any]] = []
        """The bodies of all questions, faults included."""
        self.answered: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def spec(self, model: str = "tiny-judge") -> str:
        return f"openai:{model}@{self.url}"

    def texts(self) -> list[str]:
        """The last message of every question that was answered."""
        return [body["messages"][-1]["content"] for body in self.answered]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    chat: ChatServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.chat.keys.add(self.headers.get("Authorization", ""))
        if self.chat.list_fault is not None:
            self._send_fault(self.chat.list_fault)
        elif self.path == "/v1/models":
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.chat.models]
            self._send(200, json.dumps({"object": "list", "data": listed}))
        else:
            self._send(404, json.dumps({"error": {"message": "no such page"}}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.chat
        with chat.lock:
            chat.asked.append(body)
            chat.keys.add(self.headers.get("Authorization", ""))
            fault = chat.faults.pop(0) if chat.faults else chat.check(body)
            chat.at_once += 1
            chat.most_at_once = max(chat.most_at_once, chat.at_once)
        try:
            if self.path != "/v1/chat/completions":
                self._send(404, json.dumps({"error": {"message": "no such page"}}))
            elif body["model"] not in chat.models:
                self._send(404, json.dumps({"error": {"message": f"no model {body['model']}"}}))
            elif fault is not None:
                self._send_fault(fault)
            else:
                time.sleep(chat.pause)
                text = chat.answer(body)
                with chat.lock:
                    chat.answered.append(body)
                self._send(200, completion(text))
        finally:
            with chat.lock:
                chat.at_once -= 1

    def _send_fault(self, fault: Fault) -> None:
        time.sleep(fault.hang)
        if fault.drop:
            self.close_connection = True
            self.connection.close()
            return
        self._send(fault.status, fault.body, fault.headers)

    def _send(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        data = body.encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if body.startswith("{") else "text/html")
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # whoever asked has given up


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def completion(text: str) -> str:
    """An answer as the protocol has it; every word counts as a token."""
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "tiny-judge",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": len(text.split()), "total_tokens": 0},
        }
    )


@contextmanager
def serving(answer: Answer) -> Iterator[ChatServer]:
    """The server, on a port of its own."""
    chat = ChatServer(answer)
    handler = type("Handler", (_Handler,), {"chat": chat})
    server = _Server(("127.0.0.1", 0), handler)
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def shorter_wins(body: dict[str, Any]) -> str:
    """A judge that prefers the shorter answer, whichever place it stands in."""
    text = body["messages"][1]["content"]
    a = text.split("[Answer A]\n")[1].split("\n[End of answer A]")[0]
    b = text.split("[Answer B]\n")[1].split("\n[End of answer B]")[0]
    better = "tie" if len(a) == len(b) else "A" if len(a) < len(b) else "B"
    return json.dumps({"reason": "shorter", "better": better})
