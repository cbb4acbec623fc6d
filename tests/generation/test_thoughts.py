from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from preftune.evaluation.labelling.label import label
from preftune.evaluation.labelling.sample import count, manifest_of
from preftune.evaluation.labelling.sample_groups import LabelCounts, read_groups
from preftune.evaluation.labelling.scoring import ByComparison
from preftune.evaluation.two_models.answers import answer_rows
from preftune.evaluation.two_models.run import evaluate_pairwise
from preftune.generation.backends import _answer_of
from preftune.generation.endpoint.replies import Reply
from preftune.generation.generate import _completion
from preftune.generation.prompts import Prompt
from preftune.generation.protocol import Kept
from preftune.generation.thoughts import MARKS, begins_inside, split_thoughts, spoken
from preftune.judges.people.labels import load_labels
from preftune.judges.rules import KeyFactJudge
from preftune.report.reading.run_files import read_run
from preftune.report.run.page import run_page
from preftune.storage.jsonl import read_lines, write_json, write_lines
from preftune.training.online.judged import _group
from preftune.training.online.rollout import rollout_of
from preftune.training.online.scoring import Score
from tests.data.tiny_bpe import THINKING, make_tokenizer


@pytest.mark.parametrize(("opened", "closed"), MARKS)
def test_every_kind_of_mark(opened: str, closed: str) -> None:
    assert split_thoughts(f"{opened}\nIt may be 7.\n{closed}\n\nEight.") == ("Eight.", "It may be 7.")
    assert split_thoughts(f"{opened}\non and on") == ("", "on and on")


@pytest.mark.parametrize(
    ("reply", "inside", "answer", "thought"),
    [
        ("Plain.", False, "Plain.", ""),
        ("  Plain, with its spaces.\n", False, "  Plain, with its spaces.\n", ""),
        ("so it is 8\n</think>\n\nEight.", False, "Eight.", "so it is 8"),  # a server took the opening mark
        ("so it is 8</think>Eight.", True, "Eight.", "so it is 8"),
        ("cut off before the mark", True, "", "cut off before the mark"),
        ("<think>\n\n</think>\n\nEight.", False, "Eight.", ""),
        ("Write `</think>` to end it.", False, "Write `</think>` to end it.", ""),
        ("The tag <think> opens a thought.", False, "The tag <think> opens a thought.", ""),
        ("<THINK>a</THINK>b", False, "b", "a"),
        ("<think>a</think>First.\n<think>b</think>Last.", False, "First.\nLast.", "a\n\nb"),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Eight.",
            False,
            "Eight.",
            "hm",
        ),
        ("<|channel|>final<|message|>Eight.", False, "Eight.", ""),
    ],
)
def test_what_is_answer_and_what_is_thought(reply: str, inside: bool, answer: str, thought: str) -> None:
    assert split_thoughts(reply, inside=inside) == (answer, thought)


def test_whole_and_split_are_inverse() -> None:
    assert split_thoughts(split_thoughts("<think>a</think>b").whole) == ("b", "a")


def test_a_prompt_that_opens_the_thought() -> None:
    assert begins_inside("<|im_start|>assistant\n<think>\n")
    assert not begins_inside("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not begins_inside("What does <think> mean?<|im_end|>\n<|im_start|>assistant\n")


def test_generated_tokens_count_for_the_answer_alone() -> None:
    tokenizer = make_tokenizer(eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = THINKING

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What?"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    row = [*ids("<think>It could be Lyon.</think>"), *ids("Paris."), tokenizer.eos_token_id, 4]
    said = _completion(row, ids(prompt), tokenizer, {tokenizer.eos_token_id})
    assert (said.text, said.thought, said.finished) == ("Paris.", "It could be Lyon.", True)
    assert said.tokens == len(ids("Paris."))
    assert said.tokens + said.thought_tokens == len(row) - 2
    opened = ids(prompt + "<think>\n")
    cut = _completion(ids("It could be Lyon"), opened, tokenizer, {tokenizer.eos_token_id})
    assert (cut.text, cut.tokens, cut.finished) == ("", 0, False)
    kept = _completion(row, ids(prompt), tokenizer, {tokenizer.eos_token_id}, apart=False)
    assert (kept.text, kept.answer) == ("<think>It could be Lyon.</think>Paris.", "Paris.")
    plain = spoken(tokenizer, ids("Paris."), ids(prompt))
    assert plain == (("Paris.", ""), len(ids("Paris.")))


def test_the_tokenizers_own_response_template_decides() -> None:
    tokenizer = make_tokenizer(eos_token="</s>", pad_token="<pad>")
    tokenizer.response_template = {"any": "template"}
    tokenizer.parse_response = lambda ids, prefix: {"role": "assistant", "thinking": " hm ", "content": " Paris. "}
    found, _ = spoken(tokenizer, tokenizer("~hm~ Paris.")["input_ids"], [])
    assert found == ("Paris.", "hm")

    def broken(ids, prefix):
        raise ValueError("does not fit")

    tokenizer.parse_response = broken
    assert spoken(tokenizer, tokenizer("Paris.")["input_ids"], [])[0] == ("Paris.", "")


class Said(NamedTuple):
    text: str
    tokens: int
    finished: bool = True


class Thinker:
    """The aligned model thinks of the right answer and gives the wrong one."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, side, prompts, rows):
        self.calls += len(prompts)
        thought = "<think>\nIt could be Paris, but I doubt it.\n</think>\n\n" if side == "aligned" else ""
        return [Said(thought + "Lyon.", 12 if thought else 2) for _ in prompts]


ROWS = [{"prompt": f"Capital {n}?", "key_fact": "Paris"} for n in range(4)]


def test_a_thought_wins_nothing(tmp_path: Path) -> None:
    thinker = Thinker()
    asked = {"generate": thinker, "judge": KeyFactJudge(), "output_dir": tmp_path, "settings": {}}
    summary = evaluate_pairwise(ROWS, **asked)
    assert summary.win_rate.win_rate == 0.5
    assert summary.key_facts is not None
    assert summary.key_facts.aligned.mean == 0.0
    assert summary.mean_tokens["aligned"] <= 3
    assert summary.thought_tokens["aligned"] >= 9
    assert any("kept separately" in line for line in summary.sentences())
    (line, *_) = read_lines(tmp_path / "generations.jsonl")
    assert (line["aligned"], line["thought"]["aligned"]) == ("Lyon.", "It could be Paris, but I doubt it.")

    judged = evaluate_pairwise(ROWS, **asked, judge_thoughts=True)
    assert judged.win_rate.win_rate == 1.0  # it was asked for, and no answer is generated again
    assert judged.mean_tokens["aligned"] == 12
    assert thinker.calls == 8


def test_files_of_earlier_versions_hold_the_thought_in_the_text(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    first = answer_rows(ROWS, generate=Thinker(), path=path, settings={})
    lines = read_lines(path)
    for line in lines:
        line["aligned"] = "<think>" + line.pop("thought")["aligned"] + "</think>Lyon."
        del line["thought_tokens"]
    write_lines(path, lines)
    again = answer_rows(ROWS, generate=Thinker(), path=path, settings={})
    assert [row.aligned for row in again] == [row.aligned for row in first]


def test_an_endpoint_gives_the_thought_in_the_text_or_apart() -> None:
    in_text = _answer_of(Reply("<think>ab</think>cd", 10, True, 3))
    assert (in_text.text, in_text.thought) == ("cd", "ab")
    apart = _answer_of(Reply("cd", 10, True, 3, thought="abcdef", thought_tokens=7))
    assert apart == Kept("cd", 3, True, "abcdef", 7)
    guessed = _answer_of(Reply("cd", 8, True, 3, thought="abcdef"))
    assert (guessed.tokens, guessed.thought_tokens) == (2, 6)


def test_label_judges_the_answer_and_trains_what_was_sampled(tmp_path: Path) -> None:
    texts = ("<think>Paris?</think>Lyon.", "Paris.")
    rows = [
        {"id": "a", "key": "k", "prompt": "Capital?", "sample": n, "completion": text, "tokens": 3, "finished": True}
        for n, text in enumerate(texts)
    ]
    write_lines(tmp_path / "samples.jsonl", rows)
    write_json(manifest_of(tmp_path / "samples.jsonl"), {})
    seen = []

    def judge(prompt, answer_a, answer_b, row):
        seen.extend((answer_a, answer_b))
        return "a" if "Paris" in answer_a else "b"

    label(tmp_path / "samples.jsonl", tmp_path / "pairs.jsonl", ByComparison(judge))
    (pair,) = read_lines(tmp_path / "pairs.jsonl")
    assert set(seen) == {"Lyon.", "Paris."}
    assert (pair["chosen"], pair["rejected"]) == ("Paris.", texts[0])
    label(tmp_path / "samples.jsonl", tmp_path / "with.jsonl", ByComparison(judge), judge_thoughts=True)
    assert texts[0] in seen


MARKED = "[THINK]It could be Lyon.[/THINK]Paris."


@pytest.mark.parametrize(
    ("reply", "prompt", "text", "answer"),
    [
        (MARKED, "Capital?", MARKED, "Paris."),  # its marks are special tokens
        ("It could be Lyon", "Capital?[THINK]", "It could be Lyon", ""),  # cut off inside the thought
        ("It could be Lyon.[/THINK]Paris.", "Capital?[THINK]", "It could be Lyon.[/THINK]Paris.", "Paris."),
        ("Paris.", "Capital?", "Paris.", None),
    ],
)
def test_a_sample_holds_the_marks_and_names_its_answer(reply: str, prompt: str, text: str, answer: str | None) -> None:
    tokenizer = make_tokenizer(eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    row, asked = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (reply, prompt))
    said = _completion([*row, 1], asked, tokenizer, {1}, apart=False)
    assert (said.text, said.answer, said.tokens) == (text, answer, len(row))


def test_label_leaves_out_a_sample_that_was_cut_inside_its_thought(tmp_path: Path) -> None:
    samples = {"I wonder": "", "I wonder.</think>Lyon.": "Lyon.", "Paris.": None}
    rows = [
        {"id": "a", "key": "k", "prompt": "?", "sample": n, "completion": text, "tokens": 3, "finished": bool(answer)}
        | ({} if answer is None else {"answer": answer})
        for n, (text, answer) in enumerate(samples.items())
    ]
    write_lines(tmp_path / "samples.jsonl", rows)
    counts = LabelCounts()
    (group,) = read_groups(tmp_path / "samples.jsonl", counts)
    assert (group.judged, counts.empty) == (("Lyon.", "Paris."), 1)
    assert count(tmp_path / "samples.jsonl").empty == 1


def test_judgements_of_people_are_held_against_answers() -> None:
    row = {"prompt": "?", "answer_a": "<think>x</think>A", "answer_b": "B", "label": "a"}
    assert load_labels([row]).labels[0].answer_a == "A"
    assert load_labels([row], thoughts=True).labels[0].answer_a == row["answer_a"]


def test_rewards_and_online_judges_see_the_answer() -> None:
    tokenizer = make_tokenizer(eos_token="</s>", pad_token="<pad>")
    ids = tokenizer("<think>Paris?</think>Lyon.", add_special_tokens=False)["input_ids"]
    rollout = rollout_of(Prompt("1", "Capital?", "k"), [5], [*ids, 1], [1], tokenizer, number=0)
    seen = []

    def scorer(prompt, answer, row):
        seen.append(answer)
        return 0.0

    Score([scorer])([rollout])
    Score([scorer], thoughts=True)([rollout])
    assert seen == ["Lyon.", "<think>\nParis?\n</think>\n\nLyon."]
    assert _group([rollout], thoughts=False).judged == ("Lyon.",)
    assert list(rollout.response_ids[:-1]) == list(ids)  # what is trained is what was sampled


def test_reports_show_thoughts_folded(tmp_path: Path) -> None:
    evaluate_pairwise(ROWS, generate=Thinker(), judge=KeyFactJudge(), output_dir=tmp_path / "eval", settings={})
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished"}), encoding="utf-8")
    page = run_page([read_run(tmp_path)])
    assert '<details class="thought"><summary>reasoning, 34 characters</summary>' in page
