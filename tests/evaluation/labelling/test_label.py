from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from preftune.data import load_pairs
from preftune.errors import DatasetError, EndpointError, RequestError
from preftune.evaluation.labelling.label import label
from preftune.evaluation.labelling.sample_groups import LabelCounts
from preftune.evaluation.labelling.scoring import ByComparison, ByScore
from preftune.generation.endpoint.budget import Budget
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName
from preftune.judges.cache import VerdictCache, verdict_key
from preftune.judges.llm_client import EndpointAsker
from preftune.judges.pairwise_llm import ChatJudge, parse_verdict
from preftune.judges.protocol import Question
from preftune.judges.registry import RememberedRule
from preftune.judges.rules import KeyFactJudge, LengthJudge
from preftune.storage import atomic
from tests.generation.chat_server import ChatServer, Fault, serving, shorter_wins

CHAT = [{"role": "user", "content": "Which one?"}]


def write_samples(path: Path, answers: Mapping[str, list[str]], *, prompt: Any = None, **extra: Any) -> Path:
    lines = []
    for key, texts in answers.items():
        for number, text in enumerate(texts):
            row = {"id": key, "key": f"k{key}", "prompt": prompt or f"{key}?", "sample": number, "completion": text}
            lines.append(json.dumps({**row, "tokens": 1, "finished": not text.endswith("..."), **extra}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def letters(prompt: Any, answer: str, row: Mapping[str, Any]) -> float:
    return float(len(answer))


ANSWERS = {"x": ["aaa", "a", "aa"], "y": ["b", "bbbb"]}


# --- rules ---


def test_a_scorer_makes_canonical_pairs_that_load_with_their_strength(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", ANSWERS)
    counts = label(samples, tmp_path / "p.jsonl", ByScore(letters))
    assert rows_of(tmp_path / "p.jsonl") == [
        {"id": "x-0-1", "prompt": "x?", "chosen": "aaa", "rejected": "a", "score_chosen": 3.0, "score_rejected": 1.0},
        {"id": "y-1-0", "prompt": "y?", "chosen": "bbbb", "rejected": "b", "score_chosen": 4.0, "score_rejected": 1.0},
    ]
    assert (counts.prompts, counts.completions, counts.pairs) == (2, 5, 2)
    pairs = load_pairs(tmp_path / "p.jsonl")
    assert pairs.strengths().tolist() == [2.0, 3.0]
    assert [pair.margin for pair in pairs] == [0.0, 0.0]
    manifest = json.loads((tmp_path / "p.jsonl.manifest.json").read_text())
    assert manifest["settings"]["judge"] == "letters"
    assert manifest["counts"]["pairs"] == 2


def test_margins_only_when_asked_for(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", ANSWERS)
    label(samples, tmp_path / "p.jsonl", ByScore(letters), margin_from_scores=0.5)
    assert [pair.margin for pair in load_pairs(tmp_path / "p.jsonl")] == [1.0, 1.5]


def test_conversations_stay_conversations(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", {"x": ["a", "aa"]}, prompt=CHAT, chat_template_kwargs={"t": 1})
    label(samples, tmp_path / "p.jsonl", ByScore(letters))
    (pair,) = load_pairs(tmp_path / "p.jsonl")
    assert pair.prompt == CHAT
    assert pair.chosen == [{"role": "assistant", "content": "aa"}]
    assert pair.chat_template_kwargs == {"t": 1}


def test_what_gives_no_pair_is_counted(tmp_path: Path) -> None:
    answers = {"x": ["a", "a", " "], "y": ["bb", "cc"], "z": ["d", "ddd", "cut..."], "u": ["e", "ff"]}
    samples = write_samples(tmp_path / "s.jsonl", answers)
    again = json.dumps(rows_of(samples)[0])
    with open(samples, "a") as file:
        file.write(f'{{"torn\n{{"completion": "no key"}}\n{again}\n')
    counts = label(samples, tmp_path / "p.jsonl", ByScore(letters), min_gap=2.0, finished_only=True)
    assert [row["id"] for row in rows_of(tmp_path / "p.jsonl")] == ["z-1-0"]
    found = (counts.empty, counts.repeated, counts.single, counts.tied, counts.close, counts.unfinished)
    assert found == (1, 1, 1, 1, 1, 1)
    assert counts.unreadable == 3
    assert len(counts.sentences()) == 8


def test_a_symmetric_judge_is_asked_once_and_wins_are_scores(tmp_path: Path) -> None:
    texts = ["one", "one two three", "one two three four five six"]
    samples = write_samples(tmp_path / "s.jsonl", {"x": texts})
    counts = label(samples, tmp_path / "p.jsonl", ByComparison(LengthJudge()), which="adjacent")
    assert [(r["chosen"], r["score_chosen"]) for r in rows_of(tmp_path / "p.jsonl")] == [
        (texts[0], 2.0),
        (texts[1], 1.0),
    ]
    assert (counts.asked, counts.disagreed) == (3, 0)


def test_a_judge_reads_what_was_kept_of_the_row(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", {"x": ["Lyon", "Paris"]}, row={"key_fact": "Paris"})
    label(samples, tmp_path / "p.jsonl", ByComparison(KeyFactJudge()))
    assert rows_of(tmp_path / "p.jsonl")[0]["chosen"] == "Paris"


def test_a_judge_that_always_takes_the_first_is_found_out(tmp_path: Path) -> None:
    def first(prompt: Any, a: str, b: str, row: Any) -> str:
        return "a"

    counts = label(write_samples(tmp_path / "s.jsonl", ANSWERS), tmp_path / "p.jsonl", ByComparison(first))
    assert (counts.pairs, counts.asked, counts.disagreed) == (0, 4, 4)
    assert any("position bias" in line for line in counts.sentences())


def test_a_rule_with_a_cache_key_is_asked_once(tmp_path: Path) -> None:
    class Slow:
        cache_key = "slow-1"
        calls = 0

        def __call__(self, prompt: Any, answer: str, row: Any) -> float:
            self.calls += 1
            return len(answer)

    rule, cache = Slow(), VerdictCache(tmp_path / "verdicts")
    samples = write_samples(tmp_path / "s.jsonl", ANSWERS)
    for _ in range(2):
        label(samples, tmp_path / "p.jsonl", ByScore(RememberedRule(rule, cache)))
        assert rule.calls == 5
    cache.close()


@pytest.mark.parametrize("score", ["good", float("nan"), [1]])
def test_a_score_is_a_number(tmp_path: Path, score: object) -> None:
    with pytest.raises(RequestError, match="a scorer answers a finite number"):
        label(write_samples(tmp_path / "s.jsonl", ANSWERS), tmp_path / "p.jsonl", ByScore(lambda p, a, r: score))
    assert not (tmp_path / "p.jsonl").exists()


def test_answers_without_a_score_are_left_out(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", ANSWERS)
    rater = ByScore(lambda p, answer, r: None if answer == "aaa" else len(answer))
    counts = label(samples, tmp_path / "p.jsonl", rater)
    assert [row["id"] for row in rows_of(tmp_path / "p.jsonl")] == ["x-2-1", "y-1-0"]
    assert counts.unrated == 1


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", ANSWERS)
    (tmp_path / "mine.jsonl").write_text("mine\n")
    with pytest.raises(RequestError, match="has no manifest which says that preftune label wrote it"):
        label(samples, tmp_path / "mine.jsonl", ByScore(letters))
    with pytest.raises(RequestError, match="would be written over the samples"):
        label(samples, samples, ByScore(letters))
    with pytest.raises(DatasetError, match="There is no file"):
        label(tmp_path / "no.jsonl", tmp_path / "p.jsonl", ByScore(letters))
    with pytest.raises(DatasetError, match="holds no samples"):
        label(tmp_path / "mine.jsonl", tmp_path / "p.jsonl", ByScore(letters))


def test_a_labelling_that_is_killed_between_its_files_can_be_repeated(tmp_path: Path, monkeypatch) -> None:
    samples = write_samples(tmp_path / "s.jsonl", ANSWERS)
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        label(samples, tmp_path / "p.jsonl", ByScore(letters))
    monkeypatch.setattr(os, "replace", replace)
    assert label(samples, tmp_path / "p.jsonl", ByScore(letters)).pairs == 2


@pytest.mark.parametrize("file", ["p.jsonl", "p.jsonl.manifest.json"])
def test_a_full_disk_leaves_the_earlier_pairs_with_their_manifest(tmp_path: Path, monkeypatch, file: str) -> None:
    samples, output = write_samples(tmp_path / "s.jsonl", ANSWERS), tmp_path / "out" / "p.jsonl"
    label(samples, output, ByScore(letters))
    before = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    make = atomic.temporary_beside

    def full(path: Path) -> Path:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(path)

    monkeypatch.setattr(atomic, "temporary_beside", full)
    with pytest.raises(OSError, match="No space left"):
        label(samples, output, ByScore(lambda prompt, answer, row: -len(answer)))
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == before


# --- verdicts ---


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"reason": "r", "better": "A"}', "a"),
        ('```json\n{"better": "b"}\n```', "b"),
        ('Sure! Here you go: {"winner": "Answer B", "why": {"x": 1}} Hope it helps.', "b"),
        ('{"verdict": "Tie"}', "tie"),
        ("{'better': 'A', 'reason': 'it's fine'}", "a"),
        ('{"reason": "cut in the mid', None),
        ('{"better": "B", "reason": "cut in the mid', "b"),
        ("My verdict: [[B]]", "b"),
        ("[[C]]", "tie"),
        ("**A**", "a"),
        ("Neither.", "tie"),
        ('<think>{"better": "A"} or maybe not</think>{"better": "B"}', "b"),
        ('{"better": "A"}? No.</think>{"better": "B"}', "b"),
        ('{"better": "A tie"}', None),
        ('{"better": "A and B are equal"}', None),
        ("<think>endless", None),
        ('{"better": "A"} {"better": "B"}', None),
        ('{"better": 7}', None),
        ("A is polite, B is correct.", None),
        ("", None),
        ("[1, 2", None),
    ],
)
def test_verdicts_are_read_with_patience(text: str, verdict: str | None) -> None:
    assert parse_verdict(text) == verdict


def test_the_cache_survives_and_is_shared(tmp_path: Path) -> None:
    one, two = VerdictCache(tmp_path), VerdictCache(tmp_path)
    key = verdict_key("judge", [{"role": "user"}], "a")
    one.put({key: None}, judge="j")
    assert two.get([key, "other"]) == {key: None}
    assert len(two) == 1
    one.close()
    two.close()


def test_a_damaged_cache_is_set_aside(tmp_path: Path, caplog) -> None:
    (tmp_path / "verdicts.sqlite").write_bytes(b"not a database at all" * 100)
    cache = VerdictCache(tmp_path)
    cache.put({"k": "a"}, judge="j")
    assert cache.get(["k"]) == {"k": "a"}
    assert "were damaged" in caplog.text
    cache.close()


def test_verdicts_need_a_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="Set PREFTUNE_CACHE"):
        VerdictCache(tmp_path / "file" / "verdicts")


# --- an endpoint ---


@pytest.fixture
def server():
    with serving(shorter_wins) as chat:
        yield chat


@pytest.fixture
def cache(tmp_path: Path):
    found = VerdictCache(tmp_path / "verdicts")
    yield found
    found.close()


def labelled(server: ChatServer, cache: VerdictCache, folder: Path, *, again: bool = False, budget=None, **options):
    conduct = Conduct(concurrency=3, retries=1)
    with Endpoint(EndpointName.parse(server.spec()), conduct=conduct, budget=budget) as endpoint:
        judge = ChatJudge(EndpointAsker(endpoint, cache))
        return label(folder / "s.jsonl", folder / "p.jsonl", ByComparison(judge, again=again), **options)


def test_both_orders_are_asked_and_a_second_labelling_costs_nothing(server, cache, tmp_path: Path) -> None:
    write_samples(tmp_path / "s.jsonl", ANSWERS, prompt=CHAT)
    counts = labelled(server, cache, tmp_path, which="all")
    assert len(server.asked) == 8
    assert (counts.asked, counts.disagreed, counts.unjudged, counts.pairs) == (4, 0, 0, 4)
    chosen = [row["chosen"][0]["content"] for row in rows_of(tmp_path / "p.jsonl")]
    assert chosen == ["a", "a", "aa", "b"]
    body = server.asked[0]
    assert body["response_format"] == {"type": "json_object"}
    assert body["temperature"] == 0.0
    assert "user: Which one?" in body["messages"][1]["content"]
    before = (tmp_path / "p.jsonl").read_bytes()
    labelled(server, cache, tmp_path, which="all")
    assert len(server.asked) == 8
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_a_judge_with_position_bias_makes_no_pairs(cache, tmp_path: Path) -> None:
    write_samples(tmp_path / "s.jsonl", ANSWERS)
    with serving(lambda body: '{"better": "A"}') as biased:
        counts = labelled(biased, cache, tmp_path)
    assert (counts.pairs, counts.disagreed, counts.asked) == (0, 4, 4)


def test_nonsense_is_asked_for_once_more_and_then_given_up(cache, tmp_path: Path) -> None:
    write_samples(tmp_path / "s.jsonl", {"y": ["b", "bbbb"]})
    with serving(lambda body: "Well, hard to say.") as vague:
        counts = labelled(vague, cache, tmp_path)
        assert (counts.unjudged, counts.pairs) == (1, 0)
        assert len(vague.asked) == 4
        reminder = vague.asked[-1]["messages"]
        assert [turn["role"] for turn in reminder] == ["system", "user", "assistant", "user"]
        assert "could not be read" in reminder[-1]["content"]
        assert "--ask_again" in " ".join(counts.sentences())
        labelled(vague, cache, tmp_path)
        assert len(vague.asked) == 4
        vague.answer = lambda body: shorter_wins(body) if len(body["messages"]) == 2 else "?"
        assert labelled(vague, cache, tmp_path, again=True).pairs == 1
        assert len(vague.asked) == 6


def test_a_reminder_may_help(cache, tmp_path: Path) -> None:
    write_samples(tmp_path / "s.jsonl", {"y": ["b", "bbbb"]})
    with serving(lambda body: shorter_wins(body) if len(body["messages"]) == 4 else "hm") as slow:
        counts = labelled(slow, cache, tmp_path)
    assert (counts.unjudged, counts.pairs) == (0, 1)


def test_a_labelling_that_broke_off_goes_on(server, cache, tmp_path: Path) -> None:
    write_samples(tmp_path / "s.jsonl", {str(i): ["a", "aa", "aaa"] for i in range(3)})
    server.check = lambda body: Fault(drop=True) if len(server.answered) >= 7 else None
    with pytest.raises(RequestError, match="cannot be reached"):
        labelled(server, cache, tmp_path)
    assert len(cache) == len(server.answered) >= 7
    server.check = lambda body: None
    labelled(server, cache, tmp_path)
    assert len(server.answered) == 18
    assert len({json.dumps(body) for body in server.answered}) == 18


def test_a_cap_that_reminders_pass_stops_and_keeps(cache, tmp_path: Path) -> None:
    write_samples(tmp_path / "s.jsonl", {"x": ["a", "aa", "aaa"]})
    with serving(lambda body: "hm") as vague:
        with pytest.raises(EndpointError, match="--max_calls is 7"):
            labelled(vague, cache, tmp_path, budget=Budget(max_calls=7))
        assert len(vague.asked) == 7
    assert not (tmp_path / "p.jsonl").exists()
    assert len(cache) >= 2


def test_estimates_count_what_is_not_known_yet(server, cache) -> None:
    questions = [Question("Hi?", "a", "bb"), Question("Hi?", "bb", "a"), Question("Hi?", "a", "bb")]
    with Endpoint(EndpointName.parse(server.spec())) as endpoint:
        judge = ChatJudge(EndpointAsker(endpoint, cache))
        first = judge.estimate(questions)
        assert (first.calls, first.tokens_out) == (2, 120)
        assert first.tokens_in > 200
        assert judge.judge_all(questions[:1]) == ["a"]
        assert judge.estimate(questions).calls == 1
        assert judge.known(questions) == 1
        assert judge("Hi?", "bb", "a", {}) == "b"
        assert ChatJudge(EndpointAsker(endpoint, cache), criteria="Ruder is better.").estimate(questions).calls == 2


def test_nothing_counts_as_nothing() -> None:
    assert LabelCounts(pairs=2, prompts=1, completions=3).sentences() == ["2 pairs from 1 prompt with 3 completions."]
