"""`preftune serve`: both models under their names, with the engines that are installed here."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.deploy import Questions, serving, verify
from preftune.deploy.served_http import ServedEndpoint
from preftune.errors import ModelError, RequestError
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName
from tests.deploy.runs import save_base, save_run

pytest.importorskip("fastapi")
PROMPTS = [[{"role": "user", "content": text}] for text in ("apple 1?", "What is honey?")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return save_run(folder / "run", save_base(folder / "base"))


def test_an_adapter_and_its_base_are_served_by_transformers(run: Path) -> None:
    """The process is ended by SIGTERM, and takes the server that it started with it."""
    command = [sys.executable, "-m", "preftune", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        questions = Questions(list(PROMPTS), [], max_new_tokens=6)
        try:
            for name, fault in (("aligned", None), ("base", "adapter not applied")):
                conduct = Conduct(concurrency=1, retries=0)
                with Endpoint(EndpointName(name, address), conduct=conduct) as endpoint:
                    found = verify(ServedEndpoint(endpoint), run, questions)
                    assert [one.stage for one in found.faults] == ([fault] if fault else [])
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    with (
        Endpoint(EndpointName("aligned", address), conduct=Conduct(retries=0)) as endpoint,
        pytest.raises(RequestError, match="cannot be reached"),
    ):
        endpoint.check()


def test_an_engine_that_cannot_serve_it_is_refused_with_the_one_that_can(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"preftune export .* --to gguf"), serving(run, engine="llama.cpp"):
        pass
    with pytest.raises(RequestError, match="needs the package vllm and a GPU"), serving(run, engine="vllm"):
        pass
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    file = tmp_path / "model.gguf"
    with pytest.raises(RequestError, match="does not serve a GGUF file"), serving(file, engine="transformers"):
        pass


def test_vllm_is_started_with_the_adapter_beside_its_base(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.deploy import server

    monkeypatch.setattr(server, "_program", lambda name: name)
    command, models = server._vllm_command(str(run), None, False)
    assert command[:2] == ["vllm", "serve"]
    assert command[2] == models["base"] == str(run.parent / "base")
    assert command[command.index("--max-lora-rank") + 1] == "8"
    assert f"aligned={run}" in command
    assert command[command.index("--served-model-name") + 1] == "base"
    for flag in ("--tokenizer", "--generation-config"):  # the run's template and end tokens, not the base's
        assert command[command.index(flag) + 1] == str(run)


def test_a_port_that_is_taken_is_refused_before_the_model_is_prepared(run: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} cannot be used"), serving(run, port=port):
            pass


def test_a_server_that_ends_at_once_says_why(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from preftune.deploy import server

    broken = tmp_path / "program"
    broken.write_text("#!/bin/sh\necho 'ImportError: Install with `pip install transformers[serving]`' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(server, "_program", lambda name: str(broken))
    message = r"could not start: ImportError.*pip install 'preftune\[serve\]'"
    with pytest.raises(ModelError, match=message), serving(run, port=0):
        pass


def test_export_on_the_command_line_verifies_what_it_wrote(run: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    assert main(["export", str(run), "-o", out, "--to", "merged", "--limit", "2", "--max_new_tokens", "4"]) == 0
    printed = capsys.readouterr().out
    assert f"{out}/merged: merged, float32" in printed
    assert "What is served is what was aligned." in printed
    words = ["verify", f"{out}/merged", "--against", str(run), "--limit", "2", "--max_new_tokens", "4"]
    assert main([*words, "--judge", "shorter"]) == 0
    assert "2 prompts, judge shorter" in capsys.readouterr().out
    config = Path(out, "merged", "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 3}))
    assert main(["verify", f"{out}/merged", "--against", str(run), "--limit", "1"]) == 1
    assert "files: config.json differ from the export" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "RUN", "--against", "RUN", "--concurrency", "2"], "--concurrency has no effect unless"),
        (["verify", "RUN", "--against", "RUN", "--limit", "0"], "give at least 1 prompt"),
        (["export", "RUN", "-o", "out", "--no_verify", "--data", "pairs.jsonl"], "--data has no effect unless"),
        (["verify", "RUN", "--against", "RUN", "--criteria", "brevity"], "--criteria has no effect unless"),
        (["verify", "RUN", "--against", "RUN", "--judge", "nobody"], "There is no judge 'nobody'"),
        (["verify", "RUN", "--against", "RUN", "--judge", "shorter", "--timeout", "2"], "--timeout has no effect"),
        (["serve", "FILE", "--dtype", "float16"], "--dtype applies to adapters"),
        (["serve", "FILE", "--base", "RUN"], "--base has no effect on a GGUF file"),
    ],
)
def test_a_flag_without_effect_is_refused(run: Path, tmp_path: Path, words: list[str], message: str, capsys) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    names = {"RUN": str(run), "FILE": str(tmp_path / "model.gguf")}
    assert main([names.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err
