"""Training on rows while they are read: the same order, updates and counts, resumed at any row."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, IterableDataset

import preftune
from preftune.data import load_pairs
from preftune.data.streams import groups as streams
from preftune.data.streams.examples import Kind, open_examples
from preftune.data.streams.groups import StreamedGroups, open_groups
from preftune.errors import ConfigError, DatasetError
from preftune.storage.trained_prompts import read_trained_prompts
from preftune.training.setup import streams as setup
from tests.training.dpo_runs import lora_config, trainer
from tiny import chat_rows, rows, tiny_model, tiny_tokenizer

PAIRS = rows(12)
DROPPED = [*PAIRS[:5], {**PAIRS[5], "rejected": PAIRS[5]["chosen"]}, *PAIRS[6:]]
KINDS: dict[str, list[dict[str, Any]]] = {
    "DPO": DROPPED,
    "KTO": [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": bool(i % 2)} for i, row in enumerate(PAIRS)
    ],
    "SFT": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS],
    "Reward": DROPPED,
}


def streamed(data: list[dict[str, Any]]) -> IterableDataset:
    return Dataset.from_list(data).to_iterable_dataset()


def made(method: str, data: Any, folder: Path, **options: Any) -> Any:
    """A trainer of a method with an adapter, three steps of four rows."""
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "logging_steps": 1, "learning_rate": 1e-2, "bf16": False, "use_cpu": True, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, **options,
    }  # fmt: skip
    trainer_class, config_class = (getattr(preftune, method + name) for name in ("Trainer", "Config"))
    torch.manual_seed(0)
    return trainer_class(
        model=tiny_model(),
        args=config_class(**settings),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
        peft_config=lora_config(**({"task_type": "SEQ_CLS"} if method == "Reward" else {})),
    )


def losses(run: Any) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def counts(report: Any) -> Any:
    return dataclasses.replace(report, prompt_keys=None)


def trained(run: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in run.model.named_parameters() if weight.requires_grad}


@pytest.fixture
def few_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few groups stay, so that the others are read when they are trained on."""
    monkeypatch.setattr(streams, "KNOWN", 3)
    monkeypatch.setattr(streams, "_ROWS", 2)


@pytest.mark.sample(2)
@pytest.mark.parametrize("method", KINDS)
def test_a_stream_in_its_order_trains_as_the_same_rows_that_are_held(method, few_known, tmp_path):
    held = made(method, KINDS[method], tmp_path / "held", train_sampling_strategy="sequential", max_steps=2)
    held.train()
    run = made(method, streamed(KINDS[method]), tmp_path / "streamed", shuffle_buffer=0, max_steps=2)
    run.train()
    assert losses(run) == losses(held)
    for name, weight in trained(held).items():
        assert torch.equal(trained(run)[name], weight)
    report, audit = run.reports["train"], json.loads((tmp_path / "streamed" / "audit.json").read_text())["train"]
    assert (report.rows_out, report.rows_dropped) == (8, method in ("DPO", "Reward"))
    assert report.dropped == held.reports["train"].dropped
    assert audit["rows_out"] == 8


@pytest.mark.sample(2)
@pytest.mark.parametrize("method", KINDS)
def test_a_resumed_run_goes_on_with_the_next_row(method, few_known, tmp_path):
    """Over the end of the rows, with a buffer, to the bit, and with the same counts."""
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "shuffle_buffer": 5, "seed": 7}
    whole = made(method, streamed(KINDS[method]), tmp_path / "whole", **options)
    whole.train()
    for step in (2, 4):  # in the second pass, and within the first
        again = made(method, streamed(KINDS[method]), tmp_path / f"from {step}", **options)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert losses(again) == losses(whole)
        for name, weight in trained(whole).items():
            assert torch.equal(trained(again)[name], weight)
        assert counts(again.reports["train"]) == counts(whole.reports["train"])
        prompts = [read_trained_prompts(str(tmp_path / name)) for name in ("whole", f"from {step}")]
        assert prompts[0].tolist() == prompts[1].tolist()


def test_another_stream_is_not_continued(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer(tiny_model(), tmp_path / "run", data=streamed(PAIRS), **options).train()
    for change in ({"shuffle_buffer": 3}, {"data_seed": 5}, {"data": streamed(PAIRS[::-1])}):
        run = trainer(tiny_model(), tmp_path / "again", **{"data": streamed(PAIRS), **options, **change})
        with pytest.raises(ConfigError, match=r"data|shuffle_buffer|data_seed"):
            run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def groups_of(source: Any, kind: Kind = "pair", *, count: int = 30, buffer: int = 4, **options: Any) -> StreamedGroups:
    stream = open_examples(source, kind, **options)
    limits: dict[str, Any] = {"completion_only_loss": None, "assistant_only_loss": None}
    more = limits if kind == "demonstration" else {}
    return open_groups(stream, tiny_tokenizer(), count=count, buffer=buffer, seed=1, recent=99, **more)


def sources(folder: Path) -> Iterator[tuple[str, Any]]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DROPPED))
    (folder / "shards").mkdir()
    for number, part in enumerate((DROPPED[:5], DROPPED[5:])):
        pq.write_table(pa.Table.from_pylist(part), folder / "shards" / f"train-{number:05}-of-00002.parquet")
    yield "file", folder / "rows.jsonl"
    yield "shards", folder / "shards"
    yield "dataset", streamed(DROPPED)
    yield "pairs", load_pairs(folder / "rows.jsonl", streaming=True)


def test_every_row_comes_once_in_each_pass_whatever_the_source(few_known, tmp_path):
    orders = []
    for _, source in sources(tmp_path):
        groups = open_groups(open_examples(source, "pair"), tiny_tokenizer(), count=22, buffer=4, seed=1, recent=99)
        ids = [int(groups[index].id) for index in range(22)]
        assert sorted(ids[:11]) == sorted(ids[11:]) == [i for i in range(12) if i != 5]
        assert ids[:11] != ids[11:]
        assert groups.run.report.rows_dropped == 2
        orders.append(ids)
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize("method", ["DPO", "KTO", "Reward"])
def test_every_trainer_takes_every_kind_of_stream(method, few_known, tmp_path):
    found = []
    for name, source in sources(tmp_path):
        if not isinstance(source, Path):  # a path alone is not a stream; --streaming opens one
            run = made(method, source, tmp_path / name, max_steps=1)
            run.train()
            found.append(losses(run))
    assert len(found) == 2
    assert found[0] == found[1]


def test_sft_says_why_it_does_not_take_a_stream_of_pairs(tmp_path):
    pairs = dict(sources(tmp_path))["pairs"]
    with pytest.raises(DatasetError, match="SFT leaves out the answers that another row beats"):
        made("SFT", pairs, tmp_path / "run")


def test_a_source_is_opened_once_and_its_first_rows_are_read_once(monkeypatch):
    """Standard input can be read only once."""
    kinds: list[tuple[str, Kind, int]] = [("DPO", "pair", 11), ("DPO", "answer", 22), ("SFT", "demonstration", 12)]
    for data, kind, count in kinds:
        text = "".join(json.dumps(row) + "\n" for row in KINDS[data])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        groups = groups_of("-", kind, count=count, buffer=0)
        assert len({group.id for group in (groups[index] for index in range(count))}) >= 11


def test_a_stream_that_the_user_shuffles_has_another_order_in_each_pass(tmp_path):
    pairs = load_pairs(streamed(PAIRS).shuffle(seed=3, buffer_size=12), streaming=True)
    groups = open_groups(open_examples(pairs, "pair"), tiny_tokenizer(), count=24, buffer=0, seed=1, recent=99)
    texts = [groups[index].completions for index in range(24)]
    assert sorted(texts[:12]) == sorted(texts[12:])
    assert texts[:12] != texts[12:]


def test_a_row_with_several_answers_is_continued_between_them(few_known):
    """A pair is two answers."""
    groups = groups_of(streamed(PAIRS), "answer")
    whole = [groups[index] for index in range(30)]
    for place in range(4, 20):
        fresh = groups_of(streamed(PAIRS), "answer")
        fresh.begin(groups.state(place))
        assert [fresh[index] for index in range(place, 30)] == whole[place:]
        assert counts(fresh.report) == counts(groups.report)


def test_formats_and_conversations_are_read_as_from_held_data(few_known):
    scored = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], "so"], "scores": [3, 2, 2]}
              for row in PAIRS]  # fmt: skip
    groups = groups_of(streamed(scored), count=10)
    assert len([groups[index] for index in range(10)]) == 10
    assert "tied" in groups.left
    assert any("the same rating" in line for line in groups.report.lines())
    turns = groups_of(streamed(chat_rows(6)), count=6, buffer=0)
    held = preftune.data.tokenize_pairs(load_pairs(chat_rows(6)), tiny_tokenizer())[0]
    assert [turns[index] for index in range(6)] == list(held)
    conversations = [{"messages": [*row["prompt"], *row["chosen"]]} for row in chat_rows(4)]
    shown = groups_of(streamed(conversations), "demonstration", count=4, buffer=0)
    assert [shown[index] for index in range(4)] == list(
        preftune.data.tokenize_demonstrations(preftune.data.load_demonstrations(conversations), tiny_tokenizer())[0]
    )


def test_the_report_says_what_it_says_of_held_data(few_known, tmp_path, caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    limits: dict[str, Any] = {"max_length": 40, "max_prompt_length": 12}
    held = preftune.data.tokenize_pairs(load_pairs(DROPPED), tokenizer, **limits)[1]
    groups = open_groups(
        open_examples(streamed(DROPPED), "pair"), tokenizer, count=11, buffer=0, seed=1, recent=99, **limits
    )
    assert len([groups[index] for index in range(11)]) == 11
    assert groups.report.lines() == held.lines()
    assert len(held.notes) == 3  # room, no template, no eos

    run = made("DPO", streamed(DROPPED), tmp_path, shuffle_buffer=0)

    def warned() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    assert any("plain text and tokenised without a template" in line for line in warned())
    run.train()
    assert sum(line.startswith("Dropped 1 row (5)") for line in warned()) == 1
    assert json.loads((tmp_path / "audit.json").read_text())["train"]["notes"] == run.reports["train"].notes
    assert any("plain text and tokenised" in note for note in run.reports["train"].notes)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_steps": -1}, "Set max_steps"),
    ({"group_by_prompt": True}, "rows with the same prompt are anywhere in a stream"),
    ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs.*not supported with IterableDataset"),
    ({"dataloader_num_workers": 2}, "would read a stream several times"),
    ({"loss_type": "plackett_luce"}, "ranks all answers to a prompt"),
    ({"dataset_num_proc": 2}, "dataset_num_proc=2 does not apply to a stream"),
    ({"shuffle_buffer": -1}, "must be 0 or more"),
    ({"data": PAIRS, "shuffle_buffer": 10}, "applies to streams"),
    ({"truncation": "error", "max_length": 12}, "longer than max_length=12"),
    ({"data": streamed([{**row, "margin": 0.5} for row in PAIRS]), "loss_type": "apo_zero"},
     "margins, which loss_type=apo_zero does not use"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_what_a_stream_cannot_do_is_refused_with_the_reason(options, says, tmp_path):
    with pytest.raises((ConfigError, DatasetError), match=says):
        trainer(tiny_model(), tmp_path, **{"data": streamed(PAIRS), **options})


def test_rows_that_are_found_wrong_later_end_the_run(few_known, tmp_path):
    in_order = {"shuffle_buffer": 0, "max_steps": 4}
    long = [*PAIRS[:6], {**PAIRS[6], "chosen": "x" * 2000}]
    with pytest.raises(DatasetError, match="but the model has only"):
        trainer(tiny_model("gpt2"), tmp_path, data=streamed(long), max_length=None, **in_order).train()
    late = [{**row, "margin": 0.5 * (number == 6)} for number, row in enumerate(PAIRS)]
    with pytest.raises(ConfigError, match="row 6 of the dataset has a margin, which this loss does not use"):
        trainer(tiny_model(), tmp_path, data=streamed(late), loss_type="apo_zero", **in_order).train()
    with pytest.raises(DatasetError, match="Nothing is left to train on"):
        groups_of(streamed([{**PAIRS[0], "rejected": PAIRS[0]["chosen"]}] * 3))
    with pytest.raises(DatasetError, match="which a stream cannot know"):
        groups_of(streamed(PAIRS), "demonstration")


def test_evaluation_holds_a_stream_up_to_a_limit(tmp_path, monkeypatch):
    held_out = {"a": streamed(rows(3)), "b": streamed(rows(4))}
    run = trainer(tiny_model(), tmp_path, data=streamed(PAIRS), eval_dataset=held_out, guard="warn", max_steps=1)
    run.train()
    assert {"eval_a_loss", "eval_b_loss"} <= run.evaluate().keys()
    monkeypatch.setattr(setup, "MOST_HELD_OUT", 2)
    with pytest.raises(DatasetError, match=r"more than 2 rows.*\.take\(1000\)"):
        run.evaluate(streamed(rows(3)))
    with pytest.raises(DatasetError, match="was opened with streaming, but every evaluation reads all of its rows"):
        run.evaluate(load_pairs(rows(3), streaming=True))
    with pytest.raises(DatasetError, match="was opened with streaming"):
        run.evaluate(open_examples(rows(3), "pair", margin_from_scores=None))


def test_trained_again_it_begins_again(few_known, tmp_path):
    run = made("SFT", streamed(KINDS["SFT"]), tmp_path, overwrite=True)
    run.train()
    first = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(first) == 3
    run.train()
    assert run.reports["train"].rows_out == 12
