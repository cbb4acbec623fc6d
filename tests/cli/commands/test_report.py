"""`preftune report`: files by default and by name, wrong requests, and the page at the end of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.report.write import report_at_end
from tests.report.made_up_run import write_run

PNG = b"\x89PNG\r\n"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs/a-run")


def test_the_page_lies_in_the_run(preftune, run_folder) -> None:
    result = preftune("report", run_folder)
    assert result.code == 0, result.err
    assert result.out == f"{run_folder / 'report.html'}\n"
    assert "it wins 65.0%" in (run_folder / "report.html").read_text()


def test_the_ending_of_the_file_gives_the_form(preftune, run_folder, tmp_path) -> None:
    assert preftune("report", run_folder, "-o", tmp_path / "new/pr.md").code == 0
    assert (tmp_path / "new/pr.md").read_text().startswith("### Better")
    assert preftune("report", run_folder, "--format", "md").out == f"{run_folder / 'report.md'}\n"


def test_several_seeds_have_one_verdict_and_none_is_singled_out(preftune, tmp_path) -> None:
    folder = tmp_path / "runs/three"
    for seed in (0, 1, 2):
        write_run(folder / f"seed-{seed}")
    spread = {"eval_rewards/margins": {"mean": 1.25, "sd": 0.5, "per_seed": [0.75, 1.25, 1.75]}}
    (folder / "seeds.json").write_text(json.dumps({"seeds": [0, 1, 2], "figures": spread}))
    assert preftune("report", folder).code == 0
    assert "not judged together yet" in (folder / "report.html").read_text()

    rate = {"win_rate": 0.52, "ci_low": 0.45, "ci_high": 0.59, "confidence": 0.95}
    verdicts = {"0": "better", "1": "undecided", "2": "undecided"}
    (folder / "eval").mkdir()
    (folder / "eval/summary_over_seeds.json").write_text(
        json.dumps({"win_rate": rate, "verdict": "undecided", "verdicts": verdicts, "level": 2})
    )
    page, text = (preftune("report", folder, "--format", form, "-o", "-").out for form in ("html", "md"))
    for form in (page, text.replace("&#37;", "%")):
        assert "3 seeds win 52.0% of comparisons" in form
        assert "over prompts and seeds 45.0% to 59.0%" in form
        assert "1 better, 2 undecided" in form
        assert "1.25 (standard deviation 0.5)" in form
        assert "wins most" not in form
        assert "seed 2" in form

    worse = {**verdicts, "2": "preferred, but less correct"}
    for kept, word in ((worse, "### Preferred"), ({"0": "better", "1": "better"}, "### 3 seeds")):
        (folder / "eval/summary_over_seeds.json").write_text(
            json.dumps({"win_rate": rate, "verdict": "better", "verdicts": kept, "level": 1})
        )
        assert preftune("report", folder, "--format", "md", "-o", "-").out.startswith(word)

    refused = preftune("report", folder, folder / "seed-0")
    assert refused.code == 2
    assert "Name it alone" in refused.message


def test_plots_are_a_folder_of_pictures(preftune, run_folder) -> None:
    result = preftune("report", run_folder, "--format", "png")
    assert result.code == 0, result.err
    names = {path.name for path in (run_folder / "plots").iterdir()}
    assert {"win-rate.png", "alarms.png", "loss.png", "margin.png", "kl.png", "memory.png"} <= names
    for path in (run_folder / "plots").iterdir():
        assert path.read_bytes().startswith(PNG)
        assert path.stat().st_size > 5000, path.name


def test_markdown_is_printed_for_a_dash(preftune, run_folder) -> None:
    result = preftune("report", run_folder, "--format", "md", "-o", "-")
    assert result.out.startswith("### Better")
    assert not (run_folder / "report.md").exists()


def test_an_audit_is_shown_on_the_page(preftune, run_folder, tmp_path) -> None:
    from tests.audit.made_up import clean_rows
    from tests.report.audit.test_page import audited

    (tmp_path / "audit.json").write_text(json.dumps(audited([{**row, "chosen": ""} for row in clean_rows(20)])))
    result = preftune("report", run_folder, "--audit", tmp_path)
    assert result.code == 0, result.err
    assert 'id="empty"' in (run_folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "does not exist. Name the folder that a run was written to"),
        (["RUN", "--format", "htm"], "Did you mean 'html'?"),
        (["RUN", "--format", "pdf"], "Known are html, md, png."),
        (["RUN", "--fromat", "md"], "Did you mean --format?"),
        (["RUN", "-o", "x.png"], "--format png -o FOLDER"),
        (["RUN", "--format", "png", "-o", "-"], "Pictures cannot be printed"),
        (["RUN", "--audit", "RUN"], "is not an audit"),
        (["RUN", "--audit", "nowhere"], "cannot be read"),
        (["RUN", "--audit", "RUN", "--format", "md"], "--audit is for the page"),
        (["RUN", "-o", "RUN/run.json/page.html"], "cannot be written"),
        ([], "See preftune report --help."),
    ],
)
def test_wrong_requests(preftune, run_folder, words: list[str], told: str) -> None:
    result = preftune("report", *(word.replace("RUN", str(run_folder)) for word in words))
    assert result.code == 2
    assert told in result.message
    assert result.err.count("\n") == 1


def test_nothing_to_draw(preftune, tmp_path) -> None:
    (tmp_path / "run.json").write_text("{}")
    result = preftune("report", tmp_path, "--format", "png")
    assert result.code == 2
    assert "nothing to draw" in result.message


def test_no_torch(run_folder) -> None:
    code = (
        "import sys\nfrom preftune.cli.main import main\n"
        f"assert main(['report', {str(run_folder)!r}]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_report_that_fails_at_the_end_of_a_run_is_reported_and_fails_nothing(run_folder, monkeypatch, caplog) -> None:
    assert report_at_end(run_folder) == run_folder / "report.html"

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("preftune.report.write.write_whole", fail)
    assert report_at_end(run_folder) is None
    assert "the report could not be written" in caplog.text


def test_training_ends_with_its_report(preftune, tiny_model, pairs_file, tmp_path) -> None:
    words = [
        "dpo",
        "--model",
        tiny_model,
        "--data",
        pairs_file,
        "--max_steps",
        1,
        "--logging_steps",
        1,
        "--guard",
        "off",
    ]
    result = preftune(*words, "--output_dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert f"Its report:   {tmp_path / 'run' / 'report.html'}" in result.out
    assert "curve-loss" in (tmp_path / "run/report.html").read_text()
    result = preftune(*words, "--output_dir", tmp_path / "without", "--no-report")
    assert result.code == 0, result.err
    assert not (tmp_path / "without/report.html").exists()


def test_what_is_printed_is_utf8_whatever_the_terminal_speaks(run_folder) -> None:
    generations = run_folder / "eval/generations.jsonl"
    generations.write_text(generations.read_text().replace('"category": "ordinary"', '"category": "\\ud800 \u4e2d"'))
    code = "import sys; from preftune.cli.commands.report import run; run(sys.argv[1:])"
    for form in ("md", "html"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(run_folder), "-o", "-", "--format", form],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode("utf-8")
