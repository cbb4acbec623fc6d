"""Plain text in bits per byte, and tasks through the real harness, on tiny random models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.errors import DatasetError, PreftuneError, RequestError
from preftune.evaluation.suites import harness, perplexity, run_suite
from preftune.evaluation.suites.harness import TaskResult, compare_task
from preftune.evaluation.suites.perplexity import Predicted, compare_bits, documents, windows
from preftune.storage.jsonl import read_lines
from tests.evaluation.suites.scripted import contest, two_models
from tiny import tiny_model, tiny_tokenizer

needs_harness = pytest.mark.skipif(not harness.installed(), reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    return tiny_model(seed=0).eval(), tiny_model(seed=1).eval(), tiny_tokenizer()


def bits_of(model: Any, ids: list[int]) -> float:
    """The textbook: one pass over all of it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(logits[i - 1, ids[i]]) for i in range(1, len(ids))) / math.log(2)


def test_bits_per_byte_of_a_text_of_one_window(models: Any, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    path = tmp_path / "text.txt"
    path.write_text("Fünf Äpfel.\n\nAnd a pear.", encoding="utf-8")
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    result = run_suite("general", ready, data=path, tasks=[])
    text = path.read_text(encoding="utf-8")
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    size = len(text.encode())
    assert result.headline.base == pytest.approx(bits_of(base, ids) / size, rel=1e-5)
    assert result.headline.aligned == pytest.approx(bits_of(aligned, ids) / size, rel=1e-5)
    assert result.headline.better == "lower"
    assert result.headline.ci_low is None  # a single document says nothing about others
    assert result.figures["perplexity"]["base"] == pytest.approx(2 ** (bits_of(base, ids) / (len(ids) - 1)), rel=1e-5)


def test_windows_predict_every_token_once_after_half_a_window() -> None:
    ids = list(range(100))
    for window in (8, 9, 64, 100, 500):
        groups = list(windows(ids, window))
        predicted = [token for group in groups for token in group.completions[0]]
        assert predicted == ids[1:]
        for group in groups:
            whole = [*group.prompt_ids, *group.completions[0]]
            assert whole == list(range(whole[0], whole[-1] + 1))
            assert len(whole) <= window
        assert all(len(group.prompt_ids) >= window // 2 for group in groups[1:])
    assert list(windows([1], 8)) == []


def test_the_text_that_comes_along(models: Any, tmp_path: Path) -> None:
    base, _, tokenizer = models
    found = documents(None)
    assert len(found) >= 8
    assert all(len(one) >= 800 for one in found[:-1])
    ready = contest(tmp_path, load_models=two_models(base, base, tokenizer))
    result = run_suite("general", ready, tasks=[], limit=2)
    assert result.headline.difference == 0.0
    assert result.figures["part"] == {"taken": 2, "of": len(found)}
    assert result.worse == []


def test_scored_documents_are_kept(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, aligned, tokenizer = models
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    first = run_suite("general", ready, tasks=[], limit=2)

    def never(*args: Any) -> Any:
        raise AssertionError("scored again")

    monkeypatch.setattr(perplexity, "_predictor", never)
    assert run_suite("general", ready, tasks=[], limit=2).figures == first.figures


def test_a_difference_of_two_ratios() -> None:
    """By hand: 300 bits over 100 bytes against 330 over 100; per document 1.5 -> 1.6, 3.5 -> 3.9 ..."""
    base = [Predicted(60, 40, 10), Predicted(240, 60, 20)]
    aligned = [Predicted(66, 40, 10), Predicted(264, 60, 20)]
    found = compare_bits(base, aligned, confidence=0.95)
    assert (found.base, found.aligned, found.difference) == pytest.approx((3.0, 3.3, 0.3))
    # residuals of the difference d - R b: 6 - 0.3 * 40, 24 - 0.3 * 60 = -6, 6; standard error sqrt(2 * 72) / 100
    from scipy.special import stdtrit

    half = stdtrit(1, 0.975) * math.sqrt(2 * 72) / 100
    assert (found.ci_low, found.ci_high) == pytest.approx((0.3 - half, 0.3 + half))


@pytest.mark.parametrize("between", ["\n\n", "\n \n", "\r\n\r\n", "\n"])
def test_a_text_is_parted_at_blank_lines_and_without_them_at_lines(tmp_path: Path, between: str) -> None:
    paragraphs = [f"{letter}" * 900 for letter in "abc"]
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbf" + between.join(paragraphs).encode())
    assert documents(file) == paragraphs


def test_a_group_of_tasks_counts_the_documents_of_its_parts() -> None:
    found = {
        "results": {"both": {"acc,none": 0.5, "acc_stderr,none": 0.1}},
        "n-samples": {"one": {"original": 9, "effective": 3}, "two": {"original": 9, "effective": 4}},
    }
    assert harness._result("both", found).n == 7


def test_what_is_no_text(tmp_path: Path, models: Any) -> None:
    base, aligned, tokenizer = models
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    binary = tmp_path / "b.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot be read as plain text"):
        run_suite("general", ready, data=binary, tasks=[])
    binary.write_text("\n\n\n")
    with pytest.raises(DatasetError, match="holds no text"):
        run_suite("general", ready, data=binary, tasks=[])
    with pytest.raises(DatasetError, match="does not exist"):
        run_suite("general", ready, data=tmp_path / "nothing.txt", tasks=[])


def test_without_the_harness(tmp_path: Path, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base, aligned, tokenizer = models
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    monkeypatch.setattr(harness, "installed", lambda: False)
    result = run_suite("general", ready, limit=1)
    assert any("preftune[harness]" in note for note in result.notes)
    with pytest.raises(RequestError, match=r"--tasks needs lm-evaluation-harness.*pip install"):
        run_suite("general", ready, tasks=["hellaswag"])


# the real package, a task and data of our own

CHOICES = [
    {"question": f"Which comes after {letter}?", "choices": [after, "zebra crossing"], "answer": 0}
    for letter, after in zip("abcdefgh", "bcdefghi", strict=True)
]
TASK = """\
task: tiny_letters
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} "
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "letters.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    (folder / "tiny_letters.yaml").write_text(TASK.format(data=data))
    return folder


def preferred(model: Any, tokenizer: Any) -> list[float]:
    """Whether the right choice is likelier, as the harness scores it: after a space that moves to the choice."""
    found = []
    for row in CHOICES:
        head = tokenizer(row["question"])["input_ids"]
        scores = []
        for choice in row["choices"]:
            ids = head + tokenizer(f" {choice}")["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            scores.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(head), len(ids))) / len(choice))
        found.append(float(scores[0] > scores[1]))
    return found


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_a_task_through_the_harness(models: Any, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, aligned, tokenizer = models
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    result = run_suite("general", ready, data=tasks, tasks=["tiny_letters"])
    task = next(one for one in result.comparisons if one.name == "tiny_letters (acc_norm)")
    before, after = preferred(base, tokenizer), preferred(aligned, tokenizer)
    assert (task.base, task.aligned) == pytest.approx((sum(before) / 8, sum(after) / 8))
    assert task.n == 8
    assert task.ci_low is not None
    assert set(result.figures["tasks"]["tiny_letters"]["base"]["metrics"]) == {"acc,none", "acc_norm,none"}

    def never(*args: Any) -> Any:
        raise AssertionError("run again")

    monkeypatch.setattr(harness, "_wrapped", never)
    assert run_suite("general", ready, data=tasks, tasks=["tiny_letters"]).figures == result.figures


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_a_task_that_fails_does_not_take_the_others_along(models: Any, tasks: Path, tmp_path: Path) -> None:
    base, aligned, tokenizer = models
    broken = TASK.format(data=tmp_path / "missing.jsonl").replace("tiny_letters", "broken_letters")
    (tasks / "broken_letters.yaml").write_text(broken)
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    with pytest.raises(PreftuneError, match=r"failed on broken_letters \(\w+: .*Finished tasks are kept"):
        run_suite("general", ready, data=tasks, tasks=["broken_letters", "tiny_letters"], limit=3)
    kept = read_lines(tmp_path / "eval" / "general" / "tasks.jsonl")
    assert [record["result"]["task"] for record in kept] == ["tiny_letters"] * 2
    assert [record["result"]["n"] for record in kept] == [3, 3]


@needs_harness
def test_an_unknown_task_and_its_near_name(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        """The real one reads thousands of files."""

        all_tasks = ("hellaswag", "gsm8k")

        def __init__(self, **options: Any) -> None:
            pass

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    base, aligned, tokenizer = models
    ready = contest(tmp_path, load_models=two_models(base, aligned, tokenizer))
    with pytest.raises(RequestError, match=r"no task of that name. Did you mean hellaswag\?"):
        run_suite("general", ready, tasks=["helaswag"], limit=1)
    with pytest.raises(RequestError, match="lm-eval ls tasks"):
        run_suite("general", ready, tasks=["qqqq"], limit=1)


def of_task(metrics: dict[str, float], errors: dict[str, float], samples: dict[str, dict[str, float]]) -> TaskResult:
    return TaskResult("t", metrics, errors, {"acc": True, "word_perplexity": False}, samples, 4)


def test_a_task_is_paired_by_document_where_it_can_be() -> None:
    before = of_task({"acc,none": 0.5}, {"acc,none": 0.2}, {"acc,none": {"0": 1, "1": 0, "2": 1, "3": 0}})
    after = of_task({"acc,none": 0.25}, {"acc,none": 0.2}, {"acc,none": {"0": 1, "1": 0, "2": 0, "3": 0}})
    paired = compare_task("t", before, after, confidence=0.95)
    assert paired is not None
    # differences 0, 0, -1, 0: one in four lost, none gained
    from statistics import NormalDist

    from preftune.statistics.intervals import share

    lost, gained = share([0, 0, 1, 0]), share([0, 0, 0, 0])
    assert (paired.base, paired.aligned, paired.difference) == (0.5, 0.25, -0.25)
    assert paired.ci_high == pytest.approx(-0.25 + math.hypot(gained.high, 0.25 - lost.low))
    assert paired.ci_low == pytest.approx(-0.25 - (lost.high - 0.25))
    apart = compare_task("t", before._replace(samples={}), after._replace(samples={}), confidence=0.95)
    assert apart is not None
    assert apart.ci_high == pytest.approx(-0.25 + NormalDist().inv_cdf(0.975) * math.hypot(0.2, 0.2))
    lower = compare_task(
        "t",
        of_task({"word_perplexity,none": 9.0}, {"word_perplexity,none": 0.1}, {}),
        of_task({"word_perplexity,none": 12.0}, {"word_perplexity,none": 0.1}, {}),
        confidence=0.95,
    )
    assert lower is not None
    assert (lower.better, lower.verdict) == ("lower", "worse")
    assert compare_task("t", before, of_task({"f1,none": 1.0}, {}, {}), confidence=0.95) is None


def test_the_documents_that_a_task_names_are_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, elsewhere = tmp_path / "tasks", tmp_path / "data"
    tasks.mkdir(), elsewhere.mkdir()
    (tasks / "mine.yaml").write_text("dataset_kwargs:\n  data_files: {test: data/far.jsonl, train: 'near.json'}\n")
    (elsewhere / "far.jsonl").write_text('{"q": 1}\n')
    (tasks / "near.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    seen = {tuple(harness._of_folder(Path("tasks")))}
    for file, text in ((elsewhere / "far.jsonl", '{"q": 2}\n'), (tasks / "near.json", "[1]"), (tasks / "own.py", "")):
        file.write_text(text)
        seen.add(tuple(harness._of_folder(Path("tasks"))))
    (tmp_path / "results.jsonl").write_text("{}")
    seen.add(tuple(harness._of_folder(Path("tasks"))))
    assert len(seen) == 4
