"""Training on conversations that part before the last answer: what users say is context, in every number of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from preftune.logps import pack
from tests.training.dpo_runs import LN2, logged, naive_scores, trainer
from tiny import tiny_model


def turns(*contents: str) -> list[dict[str, str]]:
    """Turns of the assistant and the user, one after the other."""
    return [{"role": ("assistant", "user")[at % 2], "content": content} for at, content in enumerate(contents)]


def conversations(count: int, question: str = "and") -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"why {i}?"}],
            "chosen": turns("one", f"{question} {i}?", "two"),
            "rejected": turns("three", f"{question} {i}?", "four four"),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("engine", ["packed", "separate"])
def test_a_run_scores_answers_only_and_begins_at_ln_2(engine: str, tmp_path: Any) -> None:
    run = trainer(tiny_model(), tmp_path, data=conversations(6), engine=engine, eval_dataset=conversations(2))
    groups = run.train_dataset
    run.train()
    assert logged(run)[0] == pytest.approx(LN2, abs=1e-4)
    assert logged(run)[-1] < LN2
    # "one" and "two", "three" and "four four" as bytes, each with its end mark and line break
    assert logged(run, "completions/chosen_length")[0] == 3 + 2 + 3 + 2
    assert logged(run, "completions/rejected_length")[0] == 5 + 2 + 9 + 2
    assert groups.scored_tokens == 6 * (10 + 18) < groups.total_tokens


def test_no_users_token_is_scored_and_logged_scores_are_the_oracles(tmp_path: Any) -> None:
    """The oracle scores everything after the prompt; the answers' bytes are picked from that by where they stand."""
    run = trainer(tiny_model(), tmp_path, data=conversations(2), max_steps=1)
    groups = list(run.train_dataset)
    scored = run.processing_class.decode(pack(groups).target_T)
    assert scored == "one<|im_end|>\ntwo<|im_end|>\nthree<|im_end|>\nfour four<|im_end|>\n" * 2
    everything = [replace(group, scored=()) for group in groups]
    parts = naive_scores(tiny_model(), everything).split([len(ids) for g in groups for ids in g.completions])
    between = len("<user\nand 0?>\n<assistant\n")  # a token per byte, and for each mark, here < or >
    run.train()
    for side, answers in (("chosen", (5, 5)), ("rejected", (7, 11))):
        own = parts[side == "rejected" :: 2]
        sums = [float(p[: answers[0]].sum() + p[answers[0] + between :].sum()) for p in own]
        assert all(len(p) == sum(answers) + between for p in own)
        assert logged(run, f"logps/{side}")[0] == pytest.approx(sum(sums) / 2, abs=1e-3)


def test_a_second_run_finds_the_scores_of_several_turns_in_the_cache(tmp_path: Any) -> None:
    """And a run over the same tokens, scored whole, does not take them for its own."""
    first = trainer(tiny_model(), tmp_path / "1", data=conversations(4))
    assert len(first.reference.missing(first.train_dataset)) == 4
    first.train()
    second = trainer(tiny_model(), tmp_path / "2", data=conversations(4))
    assert second.reference.missing(second.train_dataset) == []
    whole = [replace(group, scored=()) for group in second.train_dataset]
    assert len(second.reference.missing(whole)) == 4
