"""The GPU benchmark on a CPU and a tiny model: it runs, both libraries do the same work, goals are read rightly."""

from __future__ import annotations

import json
from typing import Any

import gpu
import pytest
from performance_goals import GOALS
from shapes import SHAPES
from transformers import SmolLM3Config
from work import ModelSize

WORDS = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--pairs", "2", "--warmup", "1", "--steps", "1"]


@pytest.fixture
def here(monkeypatch) -> None:
    """Runs in this process instead of their own; the matrix rate is not what is tested."""
    monkeypatch.setattr(gpu, "in_a_fork", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(gpu, "matrix_rate", lambda dtype, device: {"best": 100.0})


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_tiny_model_on_a_cpu(here, tuning, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SETTINGS", {"preftune": ("defaults",), "trl": ("defaults",)})
    monkeypatch.setattr("sys.argv", ["gpu.py", *WORDS, "--tuning", tuning, "--rows", "hh", "--out", str(tmp_path)])
    assert gpu.main() == 0
    kept = json.loads((tmp_path / f"gpu-tiny-{tuning}.json").read_text())
    assert kept["benchmark"] == "gpu"
    assert kept["goals"] == {}  # this was a CPU
    (result,) = kept["cases"]
    ours, theirs = result["runs"]["preftune defaults"], result["runs"]["trl defaults"]
    assert len(ours["losses"]) == 2
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    assert ours["losses"][0] != ours["losses"][1]
    assert result["ratio"]["defaults"] == pytest.approx(theirs["seconds"] / ours["seconds"], rel=1e-2)
    assert ours["useful_tflops"] == pytest.approx(result["useful_flops"] / ours["seconds"] / 1e12, rel=1e-2)
    assert (ours["reference_pass_seconds"] > 0) == (tuning == "full")


def test_a_run_that_fails_is_kept_with_its_reason(monkeypatch):
    assert "KeyError: 'device'" in gpu.in_a_fork(gpu.one_run, {"library": "preftune"})["failed"]
    runs = {"preftune defaults": {"failed": "out of memory"}, "trl defaults": {"seconds": 1.0}}
    assert gpu.ratios(runs) == {}


def test_goals_are_about_the_3b_model_and_its_fastest_rival():
    def result(shape: str, tuning: str, **runs: dict[str, float]) -> dict[str, Any]:
        named = {name.replace("_", " ", 1).replace("_", "-"): run for name, run in runs.items()}
        return {"case": {"shape": shape, "tuning": tuning}, "runs": named, "ratio": gpu.ratios(named)}

    ours = {"seconds": 2.0, "share_of_matrix_rate": 0.6, "peak_gb": 20.0}
    slow = {**ours, "seconds": 3.0, "share_of_matrix_rate": 0.4}
    lora = result(
        "smollm3-3b",
        "lora",
        preftune_defaults=slow,
        preftune_best={**slow, "seconds": 2.5},
        preftune_best_compiled=ours,
        trl_defaults={"seconds": 9.0},
        trl_best={"seconds": 5.0},
        trl_best_liger={"seconds": 4.0},
    )
    qlora = result("smollm3-3b", "qlora", preftune_defaults={**ours, "peak_gb": 9.0}, preftune_best=ours)
    other = result("smollm2-135m", "lora", preftune_best={**ours, "share_of_matrix_rate": 0.9})
    found = gpu.goals([lora, qlora, other])
    assert found == {"gpu-defaults": 3.0, "gpu-best": 2.0, "gpu-rate": 0.6, "qlora-3b": 9.0}
    assert set(found) <= {goal.name for goal in GOALS}


def test_the_shape_of_smollm3_is_that_of_its_config_class():
    ours, theirs = gpu.config_of("smollm3-3b"), SmolLM3Config()
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.vocab_size, ours.no_rope_layers[:4]) == (theirs.vocab_size, [1, 1, 1, 0])
    size = ModelSize.of(ours)
    assert 3.0e9 < size.trunk + size.head < 3.1e9


def test_rows_have_the_means_asked_for():
    lengths = gpu.row_lengths("hh", 2000)
    assert sum(p for p, _, _ in lengths) / 2000 == pytest.approx(SHAPES["hh"].prompt, rel=0.05)
    assert sum(c for _, c, _ in lengths) / 2000 == pytest.approx(SHAPES["hh"].completion, rel=0.05)
