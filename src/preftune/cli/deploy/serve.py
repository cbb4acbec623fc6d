"""`preftune serve`: a run behind an OpenAI-compatible address."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.errors import ModelError


def run(argv: Sequence[str]) -> int:
    """Runs `preftune serve` until Ctrl-C and returns its exit code."""
    parser = PlainParser(
        prog="preftune serve",
        description="Serve a trained model as 'aligned', and the model that it was trained from as 'base', behind an "
        "OpenAI-compatible address, with vLLM, transformers or llama.cpp.",
    )
    parser.add_argument("model", metavar="RUN", help="a run directory, an adapter, a whole model, or a GGUF file")
    parser.add_argument(
        "--engine",
        choices=["auto", "vllm", "transformers", "llama.cpp"],
        default="auto",
        help="auto: llama.cpp for a GGUF file, vLLM with a GPU, else transformers",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for a free one (8000)")
    parser.add_argument(
        "--base", "--base_model", dest="base", metavar="MODEL", help="base to use instead of the one that the run names"
    )
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="in which an adapter is merged for transformers"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="allow models that bring their own code")
    asked = parser.read(argv)

    from preftune.deploy import serving

    with (
        _left_at_sigterm(),
        serving(
            asked.model,
            engine=asked.engine,
            host=asked.host,
            port=asked.port,
            base_model=asked.base,
            dtype=asked.dtype,
            trust_remote_code=asked.trust_remote_code,
        ) as running,
    ):
        names = ", ".join(f"{name} ({what})" for name, what in running.models.items())
        tell(f"{running.address} serves {names} with {running.engine}. Ctrl-C stops it.", flush=True)
        others = " --baseline openai:base@" + running.address if "base" in running.models else ""
        tell(f"Compare:   preftune eval --model openai:aligned@{running.address}{others}", flush=True)
        if asked.host not in ("127.0.0.1", "localhost", "::1"):
            echo("The server asks for no key: everyone who reaches this address can use it.")
        try:
            while running.process is None or running.process.poll() is None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0
        raise ModelError(f"The server ended with code {running.process.returncode}. Start it again.")


@contextmanager
def _left_at_sigterm() -> Iterator[None]:
    """SIGTERM leaves this context with exit code 0, so that the server's own process ends too."""

    def leave(*_: object) -> None:
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
