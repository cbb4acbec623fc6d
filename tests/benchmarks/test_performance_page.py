"""docs/performance.md is generated, and says what the results say."""

from __future__ import annotations

import json

import pytest
from performance_page import HERE, PAGE, load, render

from .made_up_results import cache_lookup, gpu, grouping, parity, reference_memory, vs_trl


def test_the_committed_page_is_the_generated_one():
    """If this fails: `python benchmarks/performance_page.py`."""
    assert PAGE.read_text(encoding="utf-8") == render(load(HERE / "results"))


def test_nothing_measured():
    page = render([])
    assert page.count("not measured") == 10  # every goal
    assert "needs a CPU with bfloat16 instructions" in page
    assert "needs a GPU" in page
    assert "Not measured yet: 200/100 words, HH, UltraFeedback, TL;DR, HelpSteer." in page


def test_other_methods_have_their_times_and_whether_it_was_the_same_work():
    same = {"trl": {"seconds": 6.0}, "preftune": {"seconds": 2.0}, "time": 3.0, "memory": 0.5}
    same["largest_loss_difference"] = 2e-6
    found = {"kto": same, "grpo": {**same, "losses_differ_because": "drawn"}}
    page = render([{"benchmark": "methods_vs_trl", "file": "methods_vs_trl.json", "methods": found}])
    assert "| kto | 6.0 | 2.0 | 3.00x | 50% | 2.0e-06 |" in page
    assert "| grpo | 6.0 | 2.0 | 3.00x | 50% | 2.0e-06 (drawn) |" in page


def goals(page: str) -> dict[str, list[str]]:
    lines = page.partition("## Goals")[2].partition("## How")[0].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_the_headline_reaches_its_goals_or_not():
    page = render([vs_trl(time=6.5, memory=0.3)])
    faster, memory = list(goals(page).items())[:2]
    assert faster[1] == ["at least 6.00x", "6.50x", "yes"]
    assert memory[1] == ["at most 25%", "30%", "no"]
    assert goals(page)[next(name for name in goals(page) if "formula" in name)] == ["at least 85%", "90%", "yes"]


def test_bfloat16_without_its_instructions_answers_no_goal():
    slow = goals(render([vs_trl(dtype="bfloat16", bf16="no")]))
    fast = goals(render([vs_trl(dtype="bfloat16", bf16="in hardware", time=9.0)]))
    name = next(name for name in slow if "bfloat16, 200/100" in name)
    assert slow[name][1].startswith("not measured")
    assert fast[name] == ["at least 8.00x", "9.00x", "yes"]


@pytest.mark.parametrize(
    "other", [{"tuning": "full"}, {"trl": "defaults"}, {"checkpointing": True}, {"device": "cuda"}]
)
def test_only_the_plain_case_answers_the_headlines_goals(other):
    page = goals(render([vs_trl(**other)]))
    assert all(row[1].startswith("not measured") for row in page.values())


def test_different_losses_are_shouted():
    assert "not the same work" not in render([vs_trl()])
    assert "**more than 0.001: not the same work**" in render([vs_trl(same_work=False)])


def test_every_table_has_its_numbers():
    page = render([vs_trl(), reference_memory(), grouping(), cache_lookup(), parity()])
    assert "| 200/100 words | lora | float32 | off | batch | 11.00 | 2.00 | 5.50x | 6.11x | 90% |" in page
    assert (
        "| 200/100 words | lora | float32 | off | batch | 16.00 | 4.00 | 25% | 40.0 (30%) | 80.0 (60%) | 1.0e-05 |"
        in page
    )
    assert "| 200/100 words | 5.20 | 5.00 | 1.040 |" in page
    assert "| UltraFeedback | lora | 4,188 | 1,276 | 30.0 | 10.0 | 3.00x | 3.28x | 50% | 1.0e-06 |" in page
    assert "| warm | 1.50 | 300 |" in page
    assert "| lora | 2 | 7.2e-06 | 0.0001 |" in page
    assert "Not measured yet" in page  # the other shapes, and a second run
    assert page.count("1.040 | yes") == 1


def test_a_second_run_has_its_own_table():
    page = render([vs_trl(known_reference=True)])
    second = page.partition("## A second run over the same data")[2].partition("##")[0]
    assert "Not measured" not in second
    assert second.count("| 200/100 words |") == 1


def test_machines_and_versions_are_reported_once():
    page = render([{**vs_trl(), "file": "a.json"}, {**vs_trl(tuning="full"), "file": "b.json"}, parity()])
    assert page.count("- A: processor: Some CPU; cores: 2") == 1
    assert page.count("- B: ") == 1
    assert "| `a.json` | A | 2026-11-21 | `python benchmarks/vs_trl.py" in page


def test_another_benchmark_may_answer_goals():
    page = render([gpu()])
    assert "| at least 1.80x | 1.90x | yes |" in page
    assert "| at most 10.0 | 10.4 | no |" in page
    case = "| smollm3-3b | lora | UltraFeedback | 16 | bfloat16 |"
    assert f"{case} preftune best | 40,000 | 400.0 (57%) | 30.00 |" in page
    assert f"{case} trl best | failed | CUDA out of memory |  |" in page
    assert "- smollm3-3b lora UltraFeedback: 2.60x faster than TRL at its defaults" in page


def test_the_order_of_files_does_not_matter(tmp_path):
    for index, result in enumerate([vs_trl(shape="hh"), vs_trl(), grouping()]):
        (tmp_path / f"{9 - index}.json").write_text(json.dumps(result), encoding="utf-8")
    page = render(load(tmp_path))
    time = page.split("empty reference cache:")[1]
    assert time.index("| 200/100 words") < time.index("| HH")
    assert page == render(load(tmp_path))
