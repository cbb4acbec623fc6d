"""Keys of other tools' recipes that have no counterpart, or none with their value, are named; none is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.cli.recipes.convert_recipe import run

FACTORY = "stage: dpo\nmodel_name_or_path: some/model\ntemplate: qwen\n"
AXOLOTL = "base_model: some/model\nrl: dpo\nadapter: lora\n"


def converted(folder: Path, text: str, capsys: Any) -> tuple[dict[str, Any], list[str]]:
    """The settings, and the keys that are named with their reasons."""
    (folder / "theirs.yaml").write_text(text)
    assert run([str(folder / "theirs.yaml")]) == 0
    out = capsys.readouterr().out
    lost = "# not carried over: "
    return yaml.safe_load(out), [line.removeprefix(lost) for line in out.splitlines() if line.startswith(lost)]


@pytest.mark.parametrize(("text", "key"), [(FACTORY, "val_size"), (AXOLOTL, "val_set_size")])
def test_a_number_of_rows_to_hold_out_is_no_share(text: str, key: str, tmp_path: Path, capsys: Any) -> None:
    settings, lost = converted(tmp_path, f"{text}{key}: 10\n", capsys)
    assert "eval_fraction" not in settings
    (line,) = [line for line in lost if line.startswith(key)]
    assert line.startswith(f"{key}: 10: It is a number of rows")
    assert "--eval_fraction" in line
    settings, lost = converted(tmp_path, f"{text}{key}: 0.05\n", capsys)
    assert settings["eval_fraction"] == 0.05
    assert not [line for line in lost if line.startswith(key)]
