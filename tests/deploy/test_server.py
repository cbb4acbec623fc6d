"""`preftune serve`: both models under their names, with the engines that are installed here."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.deploy import Questions, Trained, serving, verify
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


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """A server of `preftune serve`, ended by SIGTERM: it takes the server that it started with it."""
    command = [sys.executable, "-m", "preftune", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = process.stdout.readline().split()[0]
        try:
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    with (
        Endpoint(EndpointName("aligned", found), conduct=Conduct(retries=0)) as endpoint,
        pytest.raises(RequestError, match="cannot be reached"),
    ):
        endpoint.check()


def test_an_adapter_and_its_base_are_served_by_transformers(run: Path, address: str) -> None:
    trained = Trained(str(run), Questions(list(PROMPTS), [], max_new_tokens=6))
    for name, fault in (("aligned", None), ("base", "adapter not applied")):
        with Endpoint(EndpointName(name, address), conduct=Conduct(concurrency=1, retries=0)) as endpoint:
            found = verify(ServedEndpoint(endpoint), trained)
            assert [one.stage for one in found.faults] == ([fault] if fault else [])


def test_chat_speaks_to_the_server(run: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def say(*words: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("apple 1?\n/reset\nWhat is honey?\n"))
        assert main(["chat", *words, "--max_new_tokens", "5"]) == 0
        return capsys.readouterr().out.replace("run:", "aligned:")

    local = say("--model", str(run))
    assert len(local.splitlines()) == 4
    served = say("--model", f"openai:aligned@{address}", "--baseline", f"openai:base@{address}")
    assert served == local
    assert say("--model", str(run), "--baseline", f"openai:base@{address}") == local


def test_eval_compares_the_two_served_models(address: str, tmp_path: Path, capsys) -> None:
    words = ["--model", f"openai:aligned@{address}", "--baseline", f"openai:base@{address}", "--judge", "shorter"]
    words += ["--limit", "3", "--max_new_tokens", "4", "--concurrency", "1", "-o", str(tmp_path / "eval")]
    assert main(["eval", *words]) == 0
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["n"] == 3
    assert summary["evaluated"]["aligned"]["name"] == f"openai:aligned@{address}"
    answers = [json.loads(line) for line in (tmp_path / "eval" / "generations.jsonl").read_text().splitlines()]
    assert any(answer["base"] != answer["aligned"] for answer in answers)


def test_flags_of_a_chat_without_effect_are_refused(run: Path, capsys) -> None:
    for words, message in (
        (["--model", str(run), "--timeout", "3"], "--timeout has no effect unless a model is openai:"),
        (["--model", "openai:a@http://127.0.0.1:9/v1", "--dtype", "float32"], "--dtype has no effect unless"),
        (["--model", "openai:a@http://127.0.0.1:9/v1", "--concurrency", "2"], "--concurrency has no effect unless"),
        (["--model", "openai:a@http://127.0.0.1:9/v1", "--retries", "0"], "cannot be reached"),
    ):
        assert main(["chat", *words]) == 2
        assert message in capsys.readouterr().err


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


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_what_is_no_port_is_refused(run: Path, port: int) -> None:
    with pytest.raises(RequestError, match=f"--port {port} is not a port"), serving(run, port=port):
        pass


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
    assert "files: config.json differs from the export" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "RUN", "--against", "RUN", "--concurrency", "2"], "--concurrency has no effect unless"),
        (["verify", "RUN", "--against", "RUN", "--limit", "0"], "give at least 1 prompt"),
        (["export", "RUN", "-o", "out", "--no_verify", "--data", "pairs.jsonl"], "--data has no effect unless"),
        (["verify", "RUN", "--against", "RUN", "--criteria", "brevity"], "--criteria has no effect unless"),
        (["verify", "RUN", "--against", "RUN", "--judge", "unheard"], "There is no judge 'unheard'"),
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


def test_a_model_without_a_base_is_not_exported_before_it_is_asked_for(tmp_path: Path, capsys) -> None:
    whole = save_base(tmp_path / "whole")
    out = tmp_path / "out"
    assert main(["export", str(whole), "-o", str(out)]) == 2
    assert f"{whole} does not say what it was trained from. Give it with --base MODEL" in capsys.readouterr().err
    assert not out.exists()
    assert main(["verify", str(whole), "--against", str(whole)]) == 2
    assert "does not say what it was trained from" in capsys.readouterr().err
