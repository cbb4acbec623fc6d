from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.suites import run_suite
from preftune.evaluation.suites.mt_bench import TEMPERATURES
from preftune.evaluation.suites.mt_bench_prompts import NAMES, read_rating, read_winner
from preftune.storage.jsonl import read_lines
from tests.evaluation.suites.scripted import ScriptedJudge, Speaker, contest, last

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write about rain.", "Now without the letter e."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Who is third?", "And who is last?"]},
    {"question_id": 141, "category": "stem", "turns": ["What is a quark?", "What is a lepton?"]},
]
REFERENCES = [
    {"question_id": 101, "choices": [{"index": 0, "turns": ["Anna is third.", "Ben is last."]}]},
    {"question_id": 141, "choices": [{"index": 0, "turns": ["Never shown.", "Never shown."]}]},
]


def template(name: str) -> dict[str, str]:
    """In FastChat's form, with other words."""
    multi, pair = name.endswith("multi-turn"), name.startswith("pair")
    names = ["question_1", "question_2"] if multi else ["question"]
    if pair:
        names += (
            [f"answer_{letter}_{turn}" for letter in "ab" for turn in (1, 2)] if multi else ["answer_a", "answer_b"]
        )
    else:
        names += ["answer_1", "answer_2"] if multi else ["answer"]
    if "math" in name:
        names += ["ref_answer_1", "ref_answer_2"] if multi else ["ref_answer_1"]
    fields = "\n".join(f"{n}: {{{n}}}" for n in names)
    return {"name": name, "system_prompt": f"You are {name}.", "prompt_template": fields}


@pytest.fixture
def fastchat(tmp_path: Path) -> Path:
    folder = tmp_path / "mt_bench"
    (folder / "reference_answer").mkdir(parents=True)
    for name, rows in (
        ("question.jsonl", QUESTIONS),
        ("reference_answer/gpt-4.jsonl", REFERENCES),
        ("judge_prompts.jsonl", [template(name) for name in NAMES]),
    ):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def answer(side: str, prompt) -> str:
    turn = 1 + sum(message["role"] == "assistant" for message in prompt)
    return f"<{side} {turn}>"


# Ratings that a person added up: base 5, 3 | 4, 4 | 6, unreadable; aligned 7, 6 | 2, 3 | 8, 9.
RATINGS = {
    ("Write about rain.", "base", 1): 5,
    ("Write about rain.", "base", 2): 3,
    ("Write about rain.", "aligned", 1): 7,
    ("Write about rain.", "aligned", 2): 6,
    ("Who is third?", "base", 1): 4,
    ("Who is third?", "base", 2): 4,
    ("Who is third?", "aligned", 1): 2,
    ("Who is third?", "aligned", 2): 3,
    ("What is a quark?", "base", 1): 6,
    ("What is a quark?", "base", 2): None,
    ("What is a quark?", "aligned", 1): 8,
    ("What is a quark?", "aligned", 2): 9,
}


def judge(text: str) -> str:
    """Reads which answers are shown. Pairwise: the aligned model wins on rain, loses on third, quark by position."""
    shown = re.findall(r"<(base|aligned) (\d)>", text)
    question = next(row["turns"][0] for row in QUESTIONS if row["turns"][0] in text)
    sides = list(dict.fromkeys(side for side, _ in shown))
    if len(sides) == 1:
        rating = RATINGS[question, sides[0], max(int(turn) for _, turn in shown)]
        return "I cannot say." if rating is None else f"Because. Rating: [[{rating}]]"
    if question == "What is a quark?":
        return "The first is better. [[A]]"
    winner = "aligned" if question == "Write about rain." else "base"
    return f"[[{'AB'[sides.index(winner)]}]]"


def test_scores_are_those_that_a_person_adds_up(fastchat: Path, tmp_path: Path) -> None:
    speaker, endpoint = Speaker(answer), ScriptedJudge(judge)
    result = run_suite("mt-bench", contest(tmp_path, generate=speaker, endpoint=endpoint), data=fastchat)
    written = json.loads((tmp_path / "eval" / "mt-bench" / "summary.json").read_text())
    assert written == json.loads(json.dumps(result.figures))
    base, aligned = written["scores"]["base"], written["scores"]["aligned"]
    assert base["average"] == pytest.approx((5 + 3 + 4 + 4 + 6) / 5)
    assert aligned["average"] == pytest.approx((7 + 6 + 2 + 3 + 8 + 9) / 6)
    assert (base["turn_1"], aligned["turn_1"]) == pytest.approx(((5 + 4 + 6) / 3, (7 + 2 + 8) / 3))
    assert (base["turn_2"], aligned["turn_2"]) == pytest.approx((3.5, 6.0))
    assert base["categories"] == {"writing": 4.0, "reasoning": 4.0, "stem": 6.0}
    assert aligned["categories"] == {"writing": 6.5, "reasoning": 2.5, "stem": 8.5}
    # paired: only what could be read for both
    assert written["headline"]["difference"] == pytest.approx((2 + 3 - 2 - 1 + 2) / 5)
    # rain won twice, third lost twice, quark preferred by its place: two ties
    assert written["pairwise"] == {"wins": 2, "ties": 2, "losses": 2, "unread": 0}
    assert written["unread_ratings"] == 1
    rate = next(one for one in written["comparisons"] if one["name"] == "win rate")
    assert (rate["aligned"], rate["n"]) == (0.5, 6)
    assert written["judge_prompts"] == "FastChat's"
    assert any("1 had an unreadable rating" in sentence for sentence in written["sentences"])


def test_the_second_turn_sees_the_same_models_first_answer_and_temperatures_follow_the_category(
    fastchat: Path, tmp_path: Path
) -> None:
    speaker = Speaker(answer)
    run_suite("mt-bench", contest(tmp_path, generate=speaker, endpoint=ScriptedJudge(judge)), data=fastchat)
    second = [(side, prompt) for side, prompt, _ in speaker.asked if len(prompt) == 3]
    assert len(second) == 6
    for side, prompt in second:
        assert [message["role"] for message in prompt] == ["user", "assistant", "user"]
        assert prompt[1]["content"] == f"<{side} 1>"
    used = {last(prompt): row["sampling"]["temperature"] for _, prompt, row in speaker.asked}
    assert used["Write about rain."] == 0.7
    assert used["And who is last?"] == 0.0
    assert used["What is a lepton?"] == 0.1
    assert TEMPERATURES["math"] == TEMPERATURES["coding"] == TEMPERATURES["extraction"] == 0.0


def test_the_judge_sees_references_where_the_category_has_them(fastchat: Path, tmp_path: Path) -> None:
    endpoint = ScriptedJudge(judge)
    run_suite("mt-bench", contest(tmp_path, generate=Speaker(answer), endpoint=endpoint), data=fastchat)
    asked = [(messages[0]["content"], messages[1]["content"]) for messages in endpoint.asked if len(messages) == 2]
    assert {system for system, text in asked if "Who is third?" in text} == {
        "You are single-math-v1.",
        "You are single-math-v1-multi-turn.",
        "You are pair-math-v1.",
        "You are pair-math-v1-multi-turn.",
    }
    assert all("Anna is third." in text for system, text in asked if "math" in system)
    assert not any("Never shown." in text for _, text in asked)  # stem is judged without
    assert all(system.startswith(("You are single-v1", "You are pair-v2")) for system, text in asked if "rain" in text)


def test_without_fastchats_prompts_the_projects_own_do(fastchat: Path, tmp_path: Path) -> None:
    (fastchat / "judge_prompts.jsonl").unlink()
    endpoint = ScriptedJudge(judge)
    result = run_suite("mt-bench", contest(tmp_path, generate=Speaker(answer), endpoint=endpoint), data=fastchat)
    assert result.figures["scores"]["aligned"]["average"] == pytest.approx(35 / 6)
    assert result.figures["judge_prompts"] == "preftune's"
    math = [messages for messages in endpoint.asked if "Anna is third." in messages[1]["content"]]
    assert len(math) == 8  # both models and both turns, graded and compared in both orders
    assert all("reference answer" in messages[0]["content"] for messages in math)
    alone = next(m for m in endpoint.asked if "<base 2>" in m[1]["content"] and "aligned" not in m[1]["content"])
    assert "second request" in alone[0]["content"]
    assert "<base 1>" in alone[1]["content"]


def test_killed_and_begun_again_nothing_is_asked_twice(fastchat: Path, tmp_path: Path) -> None:
    stopped = ScriptedJudge(judge, stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        run_suite("mt-bench", contest(tmp_path, generate=Speaker(answer), endpoint=stopped), data=fastchat)
    speaker, endpoint = Speaker(answer), ScriptedJudge(judge)
    resumed = run_suite("mt-bench", contest(tmp_path, generate=speaker, endpoint=endpoint), data=fastchat)
    assert speaker.asked == []
    # 12 ratings and 12 comparisons, one reminder for what could not be read; 7 were answered before
    assert len(endpoint.asked) == 24 + 1 - 7
    whole = run_suite(
        "mt-bench", contest(tmp_path / "whole", generate=Speaker(answer), endpoint=ScriptedJudge(judge)), data=fastchat
    )
    assert resumed.figures == whole.figures


def test_answers_survive_a_kill_between_the_sides(fastchat: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_suite(
            "mt-bench",
            contest(tmp_path, generate=Speaker(answer, stop_after=6), endpoint=ScriptedJudge(judge)),
            data=fastchat,
        )
    speaker = Speaker(answer)
    run_suite("mt-bench", contest(tmp_path, generate=speaker, endpoint=ScriptedJudge(judge)), data=fastchat)
    assert [side for side, _, _ in speaker.asked] == ["aligned"] * 6
    assert len(read_lines(tmp_path / "eval" / "mt-bench" / "generations.jsonl")) == 3


def test_the_hubs_columns(tmp_path: Path) -> None:
    """HuggingFaceH4/mt_bench_prompts: prompt, prompt_id, category, reference (empty where there is none)."""
    path = tmp_path / "mt.jsonl"
    third = {"prompt": ["Who is third?", "And who is last?"], "reference": ["Anna is third.", "Ben."]}
    rain = {"prompt": ["Write about rain.", "Now without the letter e."], "reference": []}
    rows = [{**third, "prompt_id": 5, "category": "reasoning"}, {**rain, "prompt_id": 6, "category": "writing"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    endpoint = ScriptedJudge(judge)
    result = run_suite("mt-bench", contest(tmp_path, generate=Speaker(answer), endpoint=endpoint), data=path)
    assert result.figures["scores"]["base"]["average"] == 4.0
    assert any("Anna is third." in messages[1]["content"] for messages in endpoint.asked)


def test_a_limit_is_said_and_spread(fastchat: Path, tmp_path: Path) -> None:
    one = contest(tmp_path, generate=Speaker(answer), endpoint=ScriptedJudge(judge))
    result = run_suite("mt-bench", one, data=fastchat, limit=2)
    assert result.figures["headline"]["name"].endswith("(only 2 of 3)")
    assert result.figures["scores"]["base"]["categories"].keys() == {"writing", "reasoning"}
    with pytest.raises(RequestError, match=r"--limit 0"):
        run_suite("mt-bench", one, data=fastchat, limit=0)


def test_what_is_missing_is_named(fastchat: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--judge openai:"):
        run_suite("mt-bench", contest(tmp_path, generate=Speaker(answer)), data=fastchat)
    ready = contest(tmp_path, generate=Speaker(answer), endpoint=ScriptedJudge(judge))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="no MT-Bench questions"):
        run_suite("mt-bench", ready, data=empty)
    (fastchat / "judge_prompts.jsonl").write_text(json.dumps(template("single-v1")) + "\n")
    with pytest.raises(DatasetError, match="lacks the judge prompts"):
        run_suite("mt-bench", ready, data=fastchat)
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "?"}\n')
    with pytest.raises(DatasetError, match=r"Row 0 of .*other.jsonl has no 'turns' or 'prompt'"):
        run_suite("mt-bench", ready, data=other)


def test_a_judge_that_says_nothing_readable(fastchat: Path, tmp_path: Path) -> None:
    mute = contest(tmp_path, generate=Speaker(answer), endpoint=ScriptedJudge(lambda text: "well"))
    with pytest.raises(DatasetError, match="None of the judge's replies"):
        run_suite("mt-bench", mute, data=fastchat)


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Good. Rating: [[7]]", 7.0),
        ("[[8.5]]", 8.5),
        ("[[9/10]]", 9.0),
        ("Rating: [6]", 6.0),
        ("**Rating**: 4", 4.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("seven", None),
    ],
)
def test_ratings(reply: str, rating: float | None) -> None:
    assert read_rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "winner"),
    [("[[A]]", "a"), ("so [[B]] it is", "b"), ("[[C]]", "tie"), ("[[A]] no, [[B]]", None), ("A", None)],
)
def test_winners(reply: str, winner: str | None) -> None:
    assert read_winner(reply) == winner


def test_answers_are_kept_one_by_one_as_they_come(fastchat: Path, tmp_path: Path) -> None:
    class Streaming(Speaker):
        """Is killed in the middle of a side."""

        def stream(self, side, prompts, rows, take) -> None:
            for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
                (said,) = self(side, [prompt], [row])
                take(number, said)

    first = Streaming(answer, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        run_suite("mt-bench", contest(tmp_path, generate=first, endpoint=ScriptedJudge(judge)), data=fastchat)
    kept = read_lines(tmp_path / "eval" / "mt-bench" / "answers.jsonl")
    assert [record["text"] for record in kept] == ["<base 1>", "<base 1>"]
    second = Streaming(answer)
    run_suite("mt-bench", contest(tmp_path, generate=second, endpoint=ScriptedJudge(judge)), data=fastchat)
    assert len(second.asked) == 2 * 2 * len(QUESTIONS) - 2


def test_the_second_turn_holds_no_thought_even_where_thoughts_are_judged(fastchat: Path, tmp_path: Path) -> None:
    speaker = Speaker(lambda side, prompt: f"<think>\nhm\n</think>\n\n{answer(side, prompt)}")
    endpoint = ScriptedJudge(judge)
    thinking = contest(tmp_path, generate=speaker, endpoint=endpoint, judge_thoughts=True)
    run_suite("mt-bench", thinking, data=fastchat)
    asked = [prompt for _, prompt, _ in speaker.asked if len(prompt) > 1]
    assert asked
    assert not any("<think>" in turn["content"] for prompt in asked for turn in prompt)
    assert any("<think>" in str(question) for question in endpoint.asked)
