"""Several runs as a sweep, the history of a run's evaluations, code in answers, cards without holes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from markupsafe import Markup

from preftune.evaluation.two_models.degeneration import Compared
from preftune.evaluation.two_models.run import evaluate_pairwise
from preftune.evaluation.two_models.verdict_record import HISTORY
from preftune.report.html.components import NOTHING, loose, panel
from preftune.report.html.templates import with_code
from preftune.report.reading.run_files import Run, read_run
from preftune.report.run.headline import ranking
from preftune.report.run.page import run_page
from preftune.report.run.settings import differing_settings
from preftune.storage.jsonl import read_lines
from tests.evaluation.suites.scripted import Said
from tests.report.made_up_run import write_run


def sweep(folder: Path) -> list[Run]:
    rates = {0.05: 0.6, 0.1: 0.66, 0.3: 0.52}
    return [read_run(write_run(folder / f"beta-{beta}", rate=rate, beta=beta)) for beta, rate in rates.items()]


def cells(page: str) -> list[list[str]]:
    (section,) = re.findall(r'<section class="panel compared".*?</section>', page, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", section, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


def test_a_sweep_shows_what_differs_and_ranks_by_the_win_rate(tmp_path: Path) -> None:
    runs = sweep(tmp_path)
    assert [row.name for row in differing_settings(runs)] == ["beta"]
    page = run_page(runs)
    header, *rows = cells(page)
    assert header[:2] == ["run", "beta"]
    assert [name for name in header if name in ("held-out margin", "accuracy", "held-out loss")] == [
        "held-out margin",
        "accuracy",
        "held-out loss",
    ]
    assert [row[:2] for row in rows] == [["beta-0.1", "0.1"], ["beta-0.05", "0.05"], ["beta-0.3", "0.3"]]
    assert "The best win rate first." in page


def test_runs_without_an_evaluation_are_ranked_by_what_all_have() -> None:
    def run(name: str, **metrics: float) -> Run:
        return Run(name, Path(name), metrics=[{"step": 1, **metrics}])

    a = run("a", **{"eval_rewards/accuracies": 0.6, "eval_loss": 0.5})
    b = run("b", **{"eval_rewards/accuracies": 0.7, "eval_loss": 0.6})
    only_loss, nothing = run("c", eval_loss=0.4), run("d")
    name, order = ranking([a, b])
    assert (name, [one.name for one in order]) == ("held-out accuracy", ["b", "a"])
    name, order = ranking([a, b, only_loss])
    assert (name, [one.name for one in order]) == ("held-out loss", ["c", "a", "b"])
    name, order = ranking([a, nothing, b])
    assert (name, [one.name for one in order]) == ("", ["a", "d", "b"])


def test_settings_that_name_places_are_not_called_different(tmp_path: Path) -> None:
    runs = sweep(tmp_path)
    for number, run in enumerate(runs):
        run.facts["configuration"].update(output_dir=f"runs/{number}", run_name=f"run-{number}", learning_rate=number)  # type: ignore[index]
    assert [row.name for row in differing_settings(runs)] == ["beta", "learning_rate"]


def test_a_run_remembers_its_evaluations(tmp_path: Path) -> None:
    def generate(side, prompts, rows):
        return [Said(f"{side} {prompt}", 2) for prompt in prompts]

    def judge(prompt, answer_a, answer_b, row):
        return "a" if "aligned" in answer_a else "b"

    rows = [{"prompt": f"q{n}"} for n in range(6)]
    folder = write_run(tmp_path / "run")
    asked = {"generate": generate, "judge": judge, "output_dir": folder / "eval", "settings": {"model": 1}}
    evaluate_pairwise(rows[:3], **asked)
    evaluate_pairwise(rows, **asked)
    evaluate_pairwise(rows, **asked)  # the same again is no other evaluation
    history = read_lines(folder / "eval" / HISTORY)
    assert [line["prompts"] for line in history] == [3, 6]
    assert history[1].keys() >= {"time", "aligned", "baseline", "judge", "win_rate", "ci_low", "verdict"}
    page = run_page([read_run(folder)])
    assert "Its evaluations" in page
    assert page.index(">6</td>") < page.index(">3</td>")  # the latest first
    with open(folder / "eval" / HISTORY, "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": 1e99, "win_rate": "much"}) + "\nnull\n")
    assert "Its evaluations" in run_page([read_run(folder)])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("dpo", "chosen or rejected is empty"),
        ("sft", "the answer holds nothing to learn"),
        ("kto", "the answer is empty"),
    ],
)
def test_rows_that_were_left_out_are_described_for_the_method(tmp_path: Path, method: str, words: str) -> None:
    folder = write_run(tmp_path / "run")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "method": method}))
    audit = json.loads((folder / "audit.json").read_text())
    audit["train"]["dropped"] = {"empty_completion": {"count": 2, "rows": [0, 4]}}
    (folder / "audit.json").write_text(json.dumps(audit))
    page = run_page([read_run(folder)])
    assert f"2 rows left out (training): {words}." in page
    assert ("longest pair" in page) == (method == "dpo")


def test_code_is_set_as_code_and_stays_inert() -> None:
    assert with_code("a `x<y` b") == "a <code>x&lt;y</code> b"
    assert with_code("see:\n```python\n<b>x</b>\n```\nend `open") == (
        "see:\n<pre><code>&lt;b&gt;x&lt;/b&gt;</code></pre>end `open"
    )
    assert with_code("```\ncut off") == "<pre><code>cut off</code></pre>"
    assert with_code("no ```fence``` here") == "no ``<code>fence</code>`` here"


def test_cards_go_where_there_is_room() -> None:
    tall, short = panel("tall", "", Markup("<tr>" * 30)), panel("short", "", NOTHING)
    markup = loose(tall, short, panel("third", "", NOTHING))
    first, second = markup.split('<div class="column">')[1:]
    assert "tall" in first
    assert "short" in second
    assert "third" in second


def test_intervals_of_rates_stay_inside_what_is_possible() -> None:
    found = Compared(0.9, 1.0, 0.1, -0.2, 1.4).within_rates()
    assert (found.ci_low, found.ci_high) == (-0.2, 1.0)
    unknown = Compared(0.9, 1.0, 0.1, float("-inf"), float("inf"))
    assert unknown.within_rates() == unknown
