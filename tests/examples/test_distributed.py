"""The files of examples/distributed as far as they can be tried without a cluster: syntax, settings and flags."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from preftune.cli.main import main
from preftune.training.config.sharding import Sharding, sharding_of
from tiny import chat_rows, save_tiny

FOLDER = Path(__file__).parents[2] / "examples" / "distributed"
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_accelerate_s_file_asks_for_fsdp2():
    config = yaml.safe_load((FOLDER / "accelerate_fsdp2.yaml").read_text())
    assert config["distributed_type"] == "FSDP"
    assert sharding_of(True, config["fsdp_config"], None, {})[0] == Sharding(weights_on_first_rank=True)


def test_the_slurm_script_is_a_shell_script():
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)


def commands(text: str) -> list[list[str]]:
    """The words after `-m preftune` of every start, lines joined."""
    text = text.replace("\\\n", " ")
    return [shlex.split(found) for found in re.findall(r"-m preftune (dpo [^&|`\n]*)", text)]


STARTS = [
    words
    for file in ("slurm.sh", "skypilot.yaml", "README.md", "accelerate_fsdp2.yaml")
    for words in commands((FOLDER / file).read_text())
]


@pytest.mark.parametrize("words", STARTS, ids=" ".join)
def test_the_starts_have_flags_that_exist(words, tmp_path, monkeypatch, capsys):
    """One process is told to start several, which is said after the flags are read; a plan stops before that."""
    import json

    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows(8)), encoding="utf-8")
    model = save_tiny(tmp_path / "model")
    Path("recipe.yaml").write_text(f"model_name_or_path: {model}\ndataset_name: pairs.jsonl\n")
    places = {"$MODEL": model, "$recipe": "recipe.yaml", "$output": "run", "/runs/dpo": "run"}
    words = [places.get(word, word) for word in words if word != "--push_to_hub"]
    assert main([*words, "--use_cpu", "--max_steps", "1"]) == (2 if "--fsdp" in words else 0)
    if "--fsdp" in words:
        assert "torchrun --nproc_per_node" in capsys.readouterr().err


def test_the_launch_has_flags_that_exist(tmp_path, monkeypatch):
    from preftune.cli.recipes import launch

    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(f"model_name_or_path: {save_tiny(tmp_path / 'model')}\ndataset_name: pairs.jsonl\n")
    (line,) = re.findall(r"`preftune launch ([^`]*)`", (FOLDER / "README.md").read_text())
    started: list[tuple[int, list[str], str]] = []
    monkeypatch.setattr(launch, "_train", lambda asked, *rest: started.append((asked.gpus_per_node, *rest)) or 0)
    assert main(["launch", *shlex.split(line)]) == 0
    words = ["dpo", "--config", "recipe.yaml", "--output_dir", "/shared/dpo"]
    assert started == [(8, [*words, "--output_dir", "/shared/dpo", "--resume", "auto"], "/shared/dpo")]


def test_every_file_is_in_the_table():
    table = (FOLDER / "README.md").read_text()
    files = {path.name for path in FOLDER.iterdir()} - {"README.md"}
    assert files == set(re.findall(r"`([\w.]+\.(?:yaml|sh))`", table))


def test_the_page_names_tests_and_files_that_exist():
    root = PAGE.parents[1]
    for path in re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", PAGE.read_text()):
        assert (root / path).exists(), path
    for link in re.findall(r"\]\(([^)]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists() or link == "plan.md", link
