"""docs/deploy.md: its five commands run one after the other, and its tables name what there is."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.deploy.artefact import KINDS
from preftune.deploy.gguf import TYPES
from preftune.deploy.text_faults import Stage
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName
from preftune.generation.generate import generate
from preftune.models import convert_smollm2, load_model, load_tokenizer
from tests.deploy.runs import save_base
from tiny import chat_rows

PAGE = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (preftune .*)$", PAGE, re.M)
QUICK = {
    "dpo": ["--max_steps", "2", "--learning_rate", "0.01", "--no_report", "--guard", "off"],
    "eval": ["--max_new_tokens", "4", "--limit", "2"],
    "export": ["--max_new_tokens", "4", "--limit", "2"],
    "serve": ["--port", "0"],
}


@pytest.mark.sample(0)
def test_from_pairs_to_a_served_model_in_five_commands(tmp_path, monkeypatch, capsys):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("fastapi")
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows(16)), encoding="utf-8")
    tokenizer = load_tokenizer(convert_smollm2())
    base = save_base(tmp_path / "base", tokenizer=tokenizer, vocabulary=len(tokenizer))
    ran, prompt = [], [{"role": "user", "content": "apple 1?"}]
    for line in COMMANDS:
        words = shlex.split(line.replace("BASE", str(base)))[1:]
        words += QUICK.get(words[0], [])
        ran.append(words[0])
        if words[0] != "serve":
            assert main(words) == 0, (line, capsys.readouterr().err)
            continue
        with subprocess.Popen([sys.executable, "-m", "preftune", *words], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0]
            try:
                with Endpoint(EndpointName("aligned", address), conduct=Conduct(retries=0)) as endpoint:
                    reply = endpoint.chat(prompt, max_tokens=4, temperature=0.0)
                run = load_model("runs/aligned", dtype="float32")
                (own,) = generate(run, load_tokenizer("runs/aligned"), [prompt], max_new_tokens=4)
                assert reply.text == own.text
            finally:
                process.send_signal(signal.SIGTERM)
    assert ran == ["audit", "dpo", "eval", "export", "serve"]
    assert {folder.name for folder in Path("served").iterdir()} == {"merged", "gguf-q8_0"}


def test_the_tables_name_what_there_is():
    assert set(re.findall(r"^\| `([a-z ]+)` \|", PAGE, re.M)) >= set(Stage.__args__)
    targets = set(re.findall(r"^\| `(\w+)(?::TYPE)?` \|", PAGE, re.M))
    assert set(KINDS) <= targets
    assert set(re.findall(r"(?:gguf|ollama):([a-z]\w+)", PAGE)) <= set(TYPES)


@pytest.mark.parametrize("test", re.findall(r"`(tests/[\w/]+\.py)`", PAGE))
def test_the_tests_that_it_names_exist(test):
    assert (Path(__file__).parent.parent / test).is_file()
