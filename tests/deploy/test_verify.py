"""Verification: an untouched artefact holds, and every planted fault is named by its stage."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune import models
from preftune.deploy import Judging, Questions, Trained, Verification, export, questions_of, verify
from preftune.deploy.artefact import MANIFEST
from preftune.deploy.files import check_weights
from preftune.deploy.served import ServedModel
from preftune.errors import DatasetError, RequestError
from preftune.judges.rules import KeyFactJudge
from preftune.models import merge
from preftune.types import PreferencePair
from tests.deploy.runs import save_base, save_run

PROMPTS = [[{"role": "user", "content": text}] for text in ("apple 1?", "kite, or moon?", "What is honey?")]
QUESTIONS = Questions(list(PROMPTS), [], max_new_tokens=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run") / "run", base)


@pytest.fixture
def merged(run: Path, tmp_path: Path) -> Path:
    return export(run, tmp_path / "out")[0].folder


def _stage(found: Verification) -> str:
    assert not found.holds
    return found.faults[0].stage


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_an_untouched_artefact_holds(run: Path, tmp_path: Path, kind: str) -> None:
    found = verify(export(run, tmp_path / "out", [kind])[0].folder, run, QUESTIONS)
    assert found.faults == []
    assert found.verdict() == "What is served is what was aligned."
    assert found.figures is not None
    assert found.figures.same_answers == 1
    assert found.figures.off < 1e-4 < 0.1 < found.figures.moved
    assert found.figures.agreement == 1


def test_a_whole_model_is_compared_with_the_base_that_its_run_names(base: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", base, full=True, size=0.05)
    found = verify(export(run, tmp_path / "out")[0].folder, run, QUESTIONS)
    assert found.holds
    assert found.figures is not None
    assert found.figures.moved > 0.01
    (run / "run.json").unlink()
    with pytest.raises(RequestError, match="Give it with --base"):
        verify(tmp_path / "out" / "merged", run, QUESTIONS)


def test_given_pairs_are_the_ones_that_are_compared(run: Path, merged: Path) -> None:
    pairs = [
        PreferencePair("apple 1?", "kite 2", "well, apple or kite"),
        PreferencePair("moon?", "oak", "no idea at all"),
    ]
    found = verify(merged, run, Questions([pair.prompt for pair in pairs], pairs, 8))
    assert found.holds
    assert found.figures is not None
    assert found.figures.pairs == 2


def _edit(file: str, **changed: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        whole = json.loads((folder / file).read_text())
        whole = {key: value for key, value in (whole | changed).items() if value is not None}
        (folder / file).write_text(json.dumps(whole))

    return edit


def _swap_tokens(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(whole))


def _other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("m['role']", "m['role'] + ' '"))


@pytest.mark.parametrize(
    ("plant", "stage"),
    [
        (_swap_tokens, "vocabulary"),
        (_other_template, "template"),
        (_edit("generation_config.json", eos_token_id=None), "end token"),
        (_edit("generation_config.json", eos_token_id=5), "end token"),
    ],
)
def test_faults_of_the_text_are_named(run: Path, merged: Path, plant: Callable[[Path], None], stage: str) -> None:
    before = (merged / "chat_template.jinja").read_text()
    plant(merged)
    assert stage != "template" or (merged / "chat_template.jinja").read_text() != before
    assert _stage(verify(merged, run, QUESTIONS)) == "files"
    (merged / MANIFEST).unlink()
    assert _stage(verify(merged, run, QUESTIONS)) == stage


MANY = Questions([[{"role": "user", "content": f"apple {number}?"}] for number in range(12)], [], max_new_tokens=3)


def _preferring_the_run(trained: Trained) -> Callable[..., float]:
    """A scorer that likes what the trained model says, and the base does not."""
    own = {answer.text for answer in trained.answers.run}
    return lambda prompt, answer, row: float(answer in own)


def test_a_judge_gives_the_win_rate_against_the_base(run: Path, merged: Path) -> None:
    trained = Trained(str(run), MANY)
    found = verify(merged, trained, judging=Judging(_preferring_the_run(trained)))
    assert found.holds
    rates = found.win_rates
    assert rates is not None
    assert rates.served == rates.trained
    assert rates.served.win_rate == 1.0
    assert (rates.change.difference, rates.served.prompts) == (0.0, 12)
    assert "100% against the base (95% interval" in rates.line()
    assert json.loads(json.dumps(found.to_dict()))["win_rates"]["served"]["wins"] == 12


def test_a_win_rate_that_was_lost_is_named(run: Path, base: Path) -> None:
    trained = Trained(str(run), MANY)
    found = verify(base, trained, judging=Judging(_preferring_the_run(trained)))
    assert [fault.stage for fault in found.faults][-1] == "win rate"
    words = "the trained model wins 100% against its base, and the served one 50% (-50"
    assert found.faults[-1].sentence.startswith(words)
    assert found.win_rates is not None
    assert found.win_rates.served.ties == 12


def test_a_judge_that_needs_a_column_asks_for_it_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="key_fact"):
        verify("missing", run, MANY, judging=Judging(KeyFactJudge()))
    rows = [{"prompt": "apple?", "chosen": "oak", "rejected": "kite", "key_fact": "oak", "own": 3}]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[0]) + "\n")
    questions = questions_of(str(tmp_path / "pairs.jsonl"))
    assert questions.rows == rows  # a rule of the user may read any column
    Judging(KeyFactJudge()).check(questions.rows)


def test_a_base_without_its_adapter_is_named(run: Path, base: Path) -> None:
    found = verify(base, run, QUESTIONS)
    assert _stage(found) == "adapter not applied"
    assert found.faults[1].stage == "weights"


def test_an_adapter_on_another_base_is_named(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", ["adapter"])[0].folder
    other = save_base(tmp_path / "other", seed=5)
    _edit("adapter_config.json", base_model_name_or_path=str(other))(folder)
    (folder / MANIFEST).unlink()
    found = verify(folder, run, QUESTIONS)
    assert _stage(found) == "base"
    assert str(other) in found.verdict()


def test_an_adapter_whose_base_was_replaced_is_named_by_the_manifest(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    run = save_run(tmp_path / "run", base)
    folder = export(run, tmp_path / "out", ["adapter"])[0].folder
    save_base(base, seed=5)
    assert _stage(verify(folder, run, QUESTIONS)) == "base"


def test_a_model_merged_into_another_base_is_named(run: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", seed=5)
    merge(run, tmp_path / "foreign", base_model=other)
    found = verify(tmp_path / "foreign", run, QUESTIONS)
    assert _stage(found) == "base"
    assert "is not the base's" in found.verdict()


def test_two_models_are_in_memory_at_a_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = save_base(tmp_path / "other", seed=5)
    merge(run, tmp_path / "foreign", base_model=other)
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def counting(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*words: Any, **options: Any) -> Any:
            model = make(*words, **options)
            loaded.append(weakref.ref(model))
            alive.append(sum(one() is not None for one in loaded))
            return model

        return made

    for name in ("load_model", "merge"):
        monkeypatch.setattr(models, name, counting(getattr(models, name)))
    found = check_weights(ServedModel(str(run)), ServedModel(str(tmp_path / "foreign")))
    assert found is not None
    assert found.other_base
    assert alive == [1, 2, 2, 2]


def test_the_merge_of_another_run_is_named(run: Path, base: Path, tmp_path: Path) -> None:
    merge(save_run(tmp_path / "second", base, seed=2), tmp_path / "foreign")
    found = verify(tmp_path / "foreign", run, QUESTIONS)
    assert _stage(found) == "weights"
    assert "another run or checkpoint" in found.verdict()


def test_an_export_of_another_run_is_named_by_its_manifest(run: Path, base: Path, tmp_path: Path) -> None:
    folder = export(save_run(tmp_path / "second", base, seed=2), tmp_path / "out", ["adapter"])[0].folder
    found = verify(folder, run, QUESTIONS)
    assert _stage(found) == "weights"
    assert "exported from the run run-2" in found.verdict()


def test_token_ids_beyond_the_embeddings_are_a_fault_of_the_vocabulary(run: Path, merged: Path) -> None:
    whole = json.loads((merged / "tokenizer.json").read_text())
    whole["model"]["vocab"]["a"] = 400
    (merged / "tokenizer.json").write_text(json.dumps(whole))
    (merged / MANIFEST).unlink()
    assert _stage(verify(merged, run, QUESTIONS)) == "vocabulary"


def test_a_pair_beyond_the_positions_is_left_out_and_counted(run: Path, merged: Path) -> None:
    pairs = [PreferencePair("apple?", "kite " * 400, "oak"), PreferencePair("moon?", "oak", "no idea")]
    found = verify(merged, run, Questions([pair.prompt for pair in pairs], pairs, 4))
    assert found.holds
    assert found.figures is not None
    assert (found.figures.pairs, found.figures.unscored) == (1, 1)
    assert found.notes == ["1 pair left out: longer than the model's positions."]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_head_that_is_tied_again_is_named(base: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", base, modules_to_save=["lm_head"], target_modules=["q_proj"])
    folder = export(run, tmp_path / "out")[0].folder
    assert verify(folder, run, QUESTIONS).holds
    _edit("config.json", tie_word_embeddings=True)(folder)
    (folder / MANIFEST).unlink()
    assert _stage(verify(folder, run, QUESTIONS)) == "head"


def test_rounding_is_reported_as_a_cost_and_not_as_another_model(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    run = save_run(tmp_path / "run", base, size=0.01)
    coarse = verify(export(run, tmp_path / "coarse")[0].folder, run, QUESTIONS)
    fine = verify(export(run, tmp_path / "fine", dtype="float16")[0].folder, run, QUESTIONS)
    assert coarse.faults == fine.faults == []
    assert coarse.figures is not None
    assert fine.figures is not None
    assert fine.figures.off < coarse.figures.off
    assert "in bfloat16, which changes the reward margin" in coarse.verdict()
