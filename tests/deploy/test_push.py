"""`preftune push` against a stand-in hub on loopback."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from preftune.cli.main import main
from preftune.deploy import export, push, read_manifest
from preftune.errors import ModelError
from tests.deploy.runs import save_base, save_run

TOKEN = "hf_" + "standin" * 5


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent; `refuses` makes it answer 403 and repeat the token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.refuses = False
        self.elsewhere = ""
        """An address to which every request is sent on."""
        self.keys: list[str | None] = []
        """The keys that came with requests."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        self.server.keys.append(self.headers["Authorization"])
        if self.server.elsewhere:
            self.send_response(307)
            self.send_header("Location", self.server.elsewhere + self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.server.refuses:
            return self._answer({"error": f"no right for {self.headers['Authorization']}"}, 403)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self._answer({"url": f"{self.server.address}/me/aligned", "id": "1"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self._answer(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
            )
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        url = f"{self.server.address}/me/aligned/commit/1"
        return self._answer({"success": True, "commitOid": "1", "commitUrl": url, "hookOutput": ""})

    def do_GET(self) -> None:
        self._answer({"sha": "0" * 40, "id": "me/aligned", "siblings": [], "private": True})

    def _chunks(self) -> bytes:
        parts = []
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def _answer(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    run = save_run(tmp_path / "run", save_base(tmp_path / "base"))
    return export(run, tmp_path / "out", ["adapter"])[0].folder


def test_the_files_of_the_manifest_are_uploaded_and_no_others(hub: Hub, artefact: Path, capsys) -> None:
    (artefact / "training_args.bin").write_bytes(b"secret")
    assert main(["push", str(artefact), "--to", "me/aligned"]) == 0
    assert f"{hub.address}/me/aligned/commit/1" in capsys.readouterr().out
    assert hub.created[0]["visibility" if "visibility" in hub.created[0] else "private"] in ("private", True)
    names = set(json.loads((artefact / "preftune_artefact.json").read_text())["files"])
    assert set(hub.files) == names | {"preftune_artefact.json"}
    assert hub.files["adapter_model.safetensors"] == (artefact / "adapter_model.safetensors").read_bytes()


def test_a_file_called_like_a_pattern_uploads_nothing_else(hub: Hub, artefact: Path) -> None:
    (artefact / "*").write_text("star")
    manifest = read_manifest(artefact)
    assert manifest is not None
    manifest.write(artefact)
    (artefact / "training_args.bin").write_bytes(b"secret")
    assert main(["push", str(artefact), "--to", "me/aligned"]) == 0
    assert "*" in hub.files
    assert "training_args.bin" not in hub.files


def test_a_card_that_is_a_link_is_neither_uploaded_nor_written(
    hub: Hub, artefact: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "key").write_text("secret")
    (artefact / "README.md").unlink()
    assert main(["push", str(artefact), "--to", "me/aligned"]) == 2
    assert "has no README.md" in capsys.readouterr().err
    (artefact / "README.md").symlink_to(tmp_path / "key")
    assert main(["push", str(artefact), "--to", "me/aligned", "--license", "mit"]) == 2
    assert "outside the folder" in capsys.readouterr().err
    assert (tmp_path / "key").read_text() == "secret"
    assert hub.files == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "aligned"], "does not name a repository"),
        (["--to", "me/aligned", "--license", "a b"], "no name of a licence"),
    ],
)
def test_a_wrong_request_reaches_no_hub(hub: Hub, artefact: Path, words: list[str], message: str, capsys) -> None:
    assert main(["push", str(artefact), *words]) == 2
    assert message in capsys.readouterr().err
    assert hub.created == []


def test_a_run_directory_and_a_changed_artefact_are_refused(hub: Hub, artefact: Path, tmp_path: Path, capsys) -> None:
    assert main(["push", str(tmp_path / "run"), "--to", "me/aligned"]) == 2
    assert "Export it first" in capsys.readouterr().err
    (artefact / "tokenizer.json").write_text("{}")
    assert main(["push", str(artefact), "--to", "me/aligned"]) == 2
    assert "tokenizer.json differs from the export" in capsys.readouterr().err
    assert hub.created == []


def test_a_public_repository_needs_a_licence(hub: Hub, artefact: Path, capsys) -> None:
    card = artefact / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: unknown"))
    assert main(["push", str(artefact), "--to", "me/aligned", "--public"]) == 2
    assert "--license NAME" in capsys.readouterr().err
    assert main(["push", str(artefact), "--to", "me/aligned", "--public", "--license", "mit"]) == 0
    assert b"license: mit\n" in hub.files["README.md"]


def test_a_refusal_never_shows_the_token(hub: Hub, artefact: Path, capsys) -> None:
    hub.refuses = True
    assert main(["push", str(artefact), "--to", "me/aligned"]) == 2
    said = capsys.readouterr().err
    assert "The hub did not take me/aligned" in said
    assert TOKEN not in said
    with pytest.raises(ModelError, match="no right for") as caught:
        push(artefact, "me/aligned")
    assert TOKEN not in str(caught.value)


def test_a_redirect_to_another_host_gets_no_token(hub: Hub, artefact: Path) -> None:
    other = Hub()
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        hub.elsewhere = other.address
        with contextlib.suppress(ModelError):
            push(artefact, "me/aligned")
        assert hub.keys[0] == f"Bearer {TOKEN}"
        assert set(other.keys) == {None}  # it was asked, without a key
    finally:
        other.shutdown()
        other.server_close()
