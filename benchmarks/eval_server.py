"""`preftune eval` end to end against a real server, `transformers serve` on the loopback: killed, resumed, counted.

    python benchmarks/eval_server.py RUN --server_model MODEL [--limit 12] [--serving_path FOLDER]

RUN is a run directory with an adapter (`preftune demo` makes one); MODEL a small chat model, which judges. Between the
client and the server stands a counter that writes down every question and whether it was answered. The evaluation is
killed with SIGKILL while it generates and again while it judges, and each time begun again with the same command. Fails
when a question that was answered is asked a second time, or when a last evaluation makes any call at all. Needs
`pip install 'transformers[serving]'`, or --serving_path with a folder that those packages were installed into.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_START_S = 300
_MOMENT_S = 0.3
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


class Counting:
    """A proxy that counts questions by their content."""

    def __init__(self, port: int) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.last = 0.0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # the client was killed
                    super().handle()

            def do_GET(self) -> None:
                self._pass_on(b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                key = hashlib.sha256(body).hexdigest()
                with outer.lock:
                    outer.asked[key] += 1
                if self._pass_on(body) == 200:
                    with outer.lock:
                        outer.answered[key] += 1
                        outer.last = time.monotonic()

            def _pass_on(self, body: bytes) -> int:
                """The server's answer, or 0 when the client had gone before it came."""
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
                upstream.request(self.command, self.path, body, {"Content-Type": "application/json"})
                reply = upstream.getresponse()
                data = reply.read()
                try:
                    self.send_response(reply.status)
                    for name, value in reply.getheaders():
                        if name.lower() not in _HOP:
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True
                    return 0
                return reply.status

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def quiet(self) -> bool:
        """Nothing was answered within a moment: what was, the client has had time to keep."""
        return time.monotonic() - self.last > _MOMENT_S

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--server_model", required=True)
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--serving_path")
    parser.add_argument("--output", help="a file for the figures, as JSON")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="eval_server-"))
    port = _free_port()
    server = _start_server(asked, port, folder)
    try:
        _wait_for(port, server)
        counting = Counting(port)
        figures = _measure(asked, counting, folder)
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures, indent=2))
    if asked.output:
        Path(asked.output).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if figures["asked_again_although_answered"] == 0 and figures["calls_of_a_last_evaluation"] == 0 else 1


def _measure(asked: argparse.Namespace, counting: Counting, folder: Path) -> dict[str, Any]:
    words = ["eval", "--model", asked.run, "--limit", str(asked.limit), "--max_new_tokens", str(asked.max_new_tokens)]
    words += [
        "--judge",
        f"openai:{asked.server_model}@{counting.url}",
        "--concurrency",
        "2",
        "-o",
        str(folder / "eval"),
    ]
    words += ["--judge_max_tokens", "48", "--timeout", "300"]
    environment = {**os.environ, "PREFTUNE_CACHE": str(folder / "cache"), "NO_PROXY": "127.0.0.1"}
    partial, began = folder / "eval" / "generations.partial.jsonl", time.monotonic()
    _kill_when(lambda: _lines(partial) >= asked.limit // 2, words, environment)
    kept = _lines(partial)
    half = asked.limit  # half of the questions, as each row is asked in both orders
    _kill_when(lambda: sum(counting.answered.values()) >= half and counting.quiet(), words, environment)
    answered = dict(counting.answered)
    third = _run(words, environment)
    again = {key: n for key, n in counting.answered.items() if n > 1 and key in answered}
    before = sum(counting.asked.values())
    last = _run(words, environment)
    summary = json.loads((folder / "eval" / "summary.json").read_text(encoding="utf-8"))
    return {
        "prompts": asked.limit,
        "answers_kept_at_the_first_kill": kept,
        "verdicts_answered_at_the_second_kill": sum(answered.values()),
        "questions_asked": before,
        "distinct_questions": len(counting.asked),
        "died_with_the_client": sum(counting.asked.values()) - sum(counting.answered.values()),
        "asked_again_although_answered": len(again),
        "calls_of_a_last_evaluation": sum(counting.asked.values()) - before,
        "seconds": round(time.monotonic() - began),
        "unjudged": summary["unjudged"],
        "position_bias": summary["position_bias"],
        "verdict": summary["verdict_sentence"],
        "told_on_resuming": [line for line in third.stderr.splitlines() if line.startswith("preftune:")],
        "told_by_a_last_evaluation": [line for line in last.stderr.splitlines() if line.startswith("preftune:")],
    }


def _kill_when(reached: Callable[[], bool], words: list[str], environment: dict[str, str]) -> None:
    child = subprocess.Popen([sys.executable, "-m", "preftune.cli.main", *words], env=environment)
    while not reached() and child.poll() is None:
        time.sleep(0.02)
    if child.poll() is not None:
        raise SystemExit("the evaluation ended before it could be killed: give a higher --limit")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    time.sleep(2)  # what was under way at the server


def _run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "preftune.cli.main", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the evaluation failed: {done.stderr}")
    return done


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _start_server(asked: argparse.Namespace, port: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if asked.serving_path:
        environment["PYTHONPATH"] = asked.serving_path
    command = [str(Path(sys.executable).with_name("transformers")), "serve", asked.server_model]
    with open(folder / "server.log", "wb") as log:
        return subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log, env=environment
        )


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("transformers serve did not start; look at server.log beside the results")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
