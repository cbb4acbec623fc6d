"""The notebook for a T4, run cell by cell with a tiny model and a tiny dataset in place of its parameters."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest

import preftune
from tiny import chat_rows, save_tiny

FILE = Path(__file__).parents[2] / "examples" / "notebooks" / "dpo_on_a_t4.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(FILE, as_version=nbformat.NO_CONVERT)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: Any, tag: str) -> Any:
    (found,) = [cell for cell in code(notebook) if tag in cell.metadata.get("tags", [])]
    return found


def names_set(source: str) -> set[str]:
    tree = ast.parse(source)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def implicit_prompts(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows in the shape of the notebook's dataset: the prompt only inside the two conversations."""
    return [
        {side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")} | {"score_chosen": 9.0}
        for row in chat_rows(count, start=start)
    ]


@pytest.fixture
def parameters(tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "data"
    data.mkdir()
    for split, rows in {"train": implicit_prompts(12), "test": implicit_prompts(4, start=12)}.items():
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = save_tiny(tmp_path / "model", hidden_size=64)
    return {"MODEL": model, "OUTPUT": str(tmp_path / "out"), "DATASET": str(data), "PAIRS": 8, "HELD_OUT": 3}


def test_it_is_valid_and_carries_no_outputs(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))


def test_it_is_under_twenty_lines_of_code(notebook):
    lines = [line for cell in code(notebook) for line in cell.source.splitlines() if line.strip()]
    assert len(lines) < 20


def test_it_installs_what_it_needs(notebook):
    first = code(notebook)[0]
    assert first is tagged(notebook, "install")
    folder, extra = re.fullmatch(r'%pip install "(.+)\[(\w+)\]"', first.source).groups()
    project = tomllib.loads((FILE.parent / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "preftune"
    assert extra in project["optional-dependencies"]


def test_it_shows_the_keyword_of_the_tutorials_and_its_successors(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "from_pretrained(MODEL, load_in_4bit=True)" in text
    assert "unexpected keyword argument 'load_in_4bit'" in text
    assert "BitsAndBytesConfig(load_in_4bit=True)" in text


def test_it_runs(notebook, parameters, tmp_path, capsys):
    assert names_set(tagged(notebook, "parameters").source) == set(parameters)
    namespace = dict(parameters)
    cells = [cell for cell in code(notebook) if not cell.metadata.get("tags")]
    shown = [run_cell(cell.source, namespace) for cell in cells]

    trainer = namespace["trainer"]
    assert len(trainer.train_dataset) == 8
    assert len(trainer.eval_dataset) == 3
    assert trainer.state.global_step == 2
    assert trainer.model.get_base_model().is_loaded_in_4bit
    assert trainer.reference.source.description == "the same model with its adapter switched off"

    margins = next(value for value in shown if isinstance(value, list))
    assert any("eval_rewards/margins" in entry for entry in margins)
    printed = capsys.readouterr().out
    assert printed.count("BEFORE") == printed.count("AFTER") == printed.count("QUESTION") == 3
    again = preftune.load_model(tmp_path / "out", load_in_4bit=True)
    assert any("lora_" in name for name, _ in again.named_parameters())


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Runs a cell and returns the value of a last expression, which Jupyter would show."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, FILE.name, "exec"), namespace)
    return None if last is None else eval(compile(ast.Expression(last.value), FILE.name, "eval"), namespace)
