"""Serves a run behind an OpenAI-compatible address, with the engines that exist: vLLM, transformers, llama.cpp."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeAlias
from urllib.request import ProxyHandler, build_opener

from preftune.deploy.exports import Source
from preftune.deploy.served import gguf_of
from preftune.errors import ModelError, RequestError
from preftune.generation.lazy_model import ModelSource
from preftune.generation.vllm_backend import RANKS, available, lora_rank, refused_by
from preftune.models.locate import locate
from preftune.secret_values import is_secret
from preftune.storage.run_directory import run_facts

Engine: TypeAlias = Literal["auto", "vllm", "transformers", "llama.cpp"]
ALIGNED, BASE = "aligned", "base"
"""The names under which clients ask for the two models."""
_START_S = 600.0
"""Seconds within which a server must answer."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    engine: str
    address: str
    """The base URL for clients, which ends in /v1."""
    models: dict[str, str]
    """What is behind each name."""
    process: subprocess.Popen[bytes] | None = None
    """The server's process; None if it runs in this one."""


@contextmanager
def serving(
    model: str | os.PathLike[str],
    *,
    engine: Engine = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    base_model: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Running]:
    """A server for a run: the trained model as `aligned`, and its base as `base` where the engine can hold both.

    Args:
        model: a run directory, an adapter, a whole model, or a GGUF file or its folder.
        engine: "auto" takes llama.cpp for a GGUF file, vLLM if it is installed and there is a GPU, else transformers.
        port: 0 for a free one.
        base_model: used instead of the base that the run names.
        dtype: in which an adapter is merged for transformers, which serves no adapters; default: float32 on a CPU and
            float16 on a GPU, which keep the whole update.
    Raises: ModelError if the engine is not installed or does not start.
    """
    file = gguf_of(model)
    chosen = _engine(engine, file is not None)
    port = _free_port(host, port)
    if dtype is not None and chosen != "transformers":
        raise RequestError(f"--dtype applies to adapters that transformers serves; {chosen} decides it. Leave it out.")
    if chosen == "llama.cpp":
        if base_model is not None:
            raise RequestError("--base has no effect on a GGUF file, which is served alone. Leave it out.")
        if file is None:
            raise RequestError(f"llama.cpp serves GGUF files. Make one with: preftune export {model} --to gguf:q8_0")
        from preftune.deploy.gguf import LlamaServer

        server = LlamaServer(file, name=ALIGNED, host=host, port=port)
        try:
            yield Running(chosen, f"{server.address}/v1", {ALIGNED: file.name})
        finally:
            server.close()
        return
    if chosen == "vllm":
        command, models = _vllm_command(str(model), base_model, trust_remote_code)
        with _started(command, host, port, chosen, models, Path.cwd()) as running:
            yield running
        return
    with tempfile.TemporaryDirectory(prefix="preftune-serve-") as folder:
        models = _link_models(Path(folder), str(model), base_model, dtype, trust_remote_code)
        command = [_program("transformers"), "serve", *(["--trust-remote-code"] if trust_remote_code else [])]
        with _started(command, host, port, chosen, models, Path(folder)) as running:
            yield running


def _engine(asked: Engine, is_gguf: bool) -> str:
    if asked == "auto":
        return "llama.cpp" if is_gguf else "vllm" if available() else "transformers"
    if is_gguf and asked != "llama.cpp":
        raise RequestError(f"--engine {asked} does not serve a GGUF file. Use --engine llama.cpp.")
    if asked == "vllm" and not available():
        raise RequestError("--engine vllm needs the package vllm and a GPU. Use --engine transformers.")
    return asked


def _vllm_command(model: str, base_model: str | None, trust: bool) -> tuple[list[str], dict[str, str]]:
    """vLLM serves an adapter together with its base; of a whole model it holds only that."""
    source = ModelSource(model, base_model=base_model)
    if (reason := refused_by(source)) is not None:
        raise RequestError(f"vLLM does not serve {model}: {reason}. Use --engine transformers, or preftune export.")
    more = ["--trust-remote-code"] if trust else []
    if not source.is_adapter:
        return [_program("vllm"), "serve", model, "--served-model-name", ALIGNED, *more], {ALIGNED: model}
    from preftune.models.attach import adapter_config

    rank = lora_rank(adapter_config(source.place.name))
    largest = str(next(one for one in RANKS if one >= rank))
    run = source.place.name
    adapter = ["--enable-lora", "--max-lora-rank", largest, "--lora-modules", f"{ALIGNED}={run}"]
    if Path(run, "tokenizer_config.json").is_file():  # the run's template and end tokens, not the base's
        adapter += ["--tokenizer", run]
    if Path(run, "generation_config.json").is_file():
        adapter += ["--generation-config", run]
    command = [_program("vllm"), "serve", source.base_name, "--served-model-name", BASE, *adapter, *more]
    return command, {ALIGNED: model, BASE: source.base_name}


def _link_models(folder: Path, model: str, base_model: str | None, dtype: str | None, trust: bool) -> dict[str, str]:
    """Puts both models into a folder under their names: transformers' server finds a model by its relative path."""
    source = Source(model, base_model, trust)
    if source.is_adapter:
        import torch

        source.save_whole(folder / ALIGNED, dtype or ("float16" if torch.cuda.is_available() else "float32"))
        base = source.base.name if source.base is not None else ""
    else:
        if dtype is not None:
            raise RequestError("--dtype applies to adapters, which are merged. A whole model is served as it is.")
        _link(folder / ALIGNED, model)
        base = base_model or str(run_facts(model, "model").get("name") or "")
    models = {ALIGNED: model}
    if base:
        _link(folder / BASE, base)
        models[BASE] = base
    return models


def _link(link: Path, name: str) -> None:
    place = locate(name)
    target = place.name
    if place.kind == "hub":
        from huggingface_hub import snapshot_download

        target = snapshot_download(place.name, local_files_only=place.local_files_only)
    link.symlink_to(Path(target).resolve(), target_is_directory=True)


@contextmanager
def _started(
    command: list[str], host: str, port: int, engine: str, models: dict[str, str], folder: Path
) -> Iterator[Running]:
    """The server's process, once it answers; it is ended with the body."""
    whole = [*command, "--host", host, "--port", str(port)]
    environment = dict(os.environ)
    if engine == "transformers":  # it loads from this machine only, and needs no token
        environment = {name: value for name, value in environment.items() if not is_secret(name)}
        environment["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(whole, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            _wait(process, address, log)
            yield Running(engine, f"{address}/v1", models, process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    """Returns when the server answers. Raises: ModelError if it ends before, or does not answer in time."""
    until = time.monotonic() + _START_S
    directly = build_opener(ProxyHandler({}))
    while process.poll() is None:
        try:
            with directly.open(f"{address}/health", timeout=5):
                return
        except OSError:
            pass
        if time.monotonic() > until:
            raise ModelError(f"The server did not answer within {_START_S:g} s. Check its memory, or choose another.")
        time.sleep(0.2)
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    last = lines[-1][:300] if lines else f"exit code {process.returncode}"
    fix = " Install it with: pip install 'preftune[serve]'" if "serving]" in last else ""
    raise ModelError(f"The server could not start: {last}{'' if last.endswith('.') else '.'}{fix}")


def _program(name: str) -> str:
    """The path of a program, in this environment first."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise ModelError(f"The program {name} is not installed. Install the package {name}.")
    return found


def _free_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0. Raises: RequestError if it cannot be used."""
    if not 0 <= port <= 65535:
        raise RequestError(f"--port {port} is not a port. Give a number from 1 to 65535, or 0 for a free one.")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(place)
            return int(opened.getsockname()[1])
    except OSError as error:
        raise RequestError(
            f"{host} port {port} cannot be used ({error.strerror or error}). Give another --port; 0 takes a free one."
        ) from error
