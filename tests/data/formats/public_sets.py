"""Rows in the columns of public datasets, with the pair that each must give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

QUESTION, GOOD, BAD = "Which river runs through Lima?", "The Rimac does.", "The Rhine does."


SYSTEM = "Answer in one sentence."


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def parts(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


WHOLE_GOOD, WHOLE_BAD = [user(QUESTION), assistant(GOOD)], [user(QUESTION), assistant(BAD)]


TEXT = (QUESTION, GOOD, BAD)


CHAT = ([user(QUESTION)], [assistant(GOOD)], [assistant(BAD)])


WITH_SYSTEM = ([system(SYSTEM), user(QUESTION)], [assistant(GOOD)], [assistant(BAD)])


class Public(NamedTuple):
    """A public set."""

    row: Mapping[str, Any]
    pair: tuple[Any, Any, Any]
    """Prompt, chosen, rejected, as they must be read."""
    strength: float | None = None
    unused: tuple[str, ...] = ()
    """Columns with text that no format reads, in the order in which they are named."""
    more: tuple[Mapping[str, Any], ...] = ()
    """Rows that belong to the first."""


SETS: dict[str, Public] = {
    "Intel/orca_dpo_pairs": Public(
        {"system": SYSTEM, "question": QUESTION, "chosen": GOOD, "rejected": BAD}, WITH_SYSTEM
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": Public(
        {
            "system": SYSTEM,
            "input": QUESTION,
            "chosen": GOOD,
            "rejected": BAD,
            "generations": [GOOD, BAD],
            "order": ["chosen", "rejected"],
            "labelling_model": "m",
            "labelling_prompt": [system("You compare answers."), user("Compare these two.")],
            "raw_labelling_response": "9 2 because",
            "rating": [9.0, 2.0],
            "rationale": "The second one is wrong.",
            "status": "unchanged",
            "original_chosen": GOOD,
            "original_rejected": BAD,
            "chosen_score": 9.0,
            "in_gsm8k_train": False,
        },
        WITH_SYSTEM,
        unused=(
            "generations",
            "labelling_prompt",
            "raw_labelling_response",
            "rationale",
            "original_chosen",
            "original_rejected",
        ),
    ),
    "argilla/ultrafeedback-binarized-preferences": Public(
        {
            "source": "sharegpt",
            "instruction": QUESTION,
            "chosen_response": GOOD,
            "rejected_response": BAD,
            "chosen_avg_rating": 4.75,
            "rejected_avg_rating": 2.0,
            "chosen_model": "m",
        },
        TEXT,
        strength=2.75,
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": Public(
        {
            "source": "sharegpt",
            "prompt": QUESTION,
            "chosen": WHOLE_GOOD,
            "chosen-rating": 4.75,
            "chosen-model": "m",
            "rejected": WHOLE_BAD,
            "rejected-rating": 2.0,
            "rejected-model": "n",
        },
        CHAT,
        strength=2.75,
    ),
    "argilla/dpo-mix-7k": Public(
        {
            "dataset": "argilla/x",
            "chosen": [system(SYSTEM), *WHOLE_GOOD],
            "chosen_rating": 5.0,
            "rejected": [system(SYSTEM), *WHOLE_BAD],
            "rejected_rating": 3.0,
        },
        WITH_SYSTEM,
        strength=2.0,
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": Public(
        {
            "source": "Dove",
            "conversation": [{"input": "Hello?", "output": "Good day."}, {"input": QUESTION, "output": GOOD}],
            "original_response": GOOD,
            "generation_prompt": [f"<s>[INST] {QUESTION} [/INST]"],
            "raw_generation_responses": [BAD],
            "new_generations": [BAD],
            "prompt": f"{QUESTION} ",
            "chosen": [user("Hello?"), assistant("Good day."), *WHOLE_GOOD],
            "rejected": [user("Hello?"), assistant("Good day."), *WHOLE_BAD],
            "rating_chosen": 5,
            "rating_rejected": 1,
            "chosen_model": "m",
            "rejected_model": "n",
        },
        ([user("Hello?"), assistant("Good day."), user(QUESTION)], [assistant(GOOD)], [assistant(BAD)]),
        strength=4,
        unused=(
            "conversation",
            "original_response",
            "generation_prompt",
            "raw_generation_responses",
            "new_generations",
        ),
    ),
    "argilla/distilabel-math-preference-dpo": Public(
        {
            "metadata": '{"length": 3}',
            "instruction": QUESTION,
            "chosen_response": GOOD,
            "chosen_rating": 9.0,
            "rejected_response": BAD,
            "rejected_rating": 7.0,
        },
        TEXT,
        strength=2,
        unused=("metadata",),
    ),
    "argilla/OpenHermesPreferences": Public(
        {
            "source": "airoboros",
            "category": "general",
            "prompt": QUESTION,
            "candidates_completions": [GOOD, BAD],
            "candidate_policies": ["m", "n"],
            "ranks": [0, 1],
            "rank_str": "0>1",
            "chosen_policy": "m",
            "rejected_policy": "n",
            "chosen": WHOLE_GOOD,
            "rejected": WHOLE_BAD,
        },
        CHAT,
        unused=("candidates_completions",),
    ),
    "Digish/huggingface-smol-course-preference-tuning-dataset (distilabel's rated generations)": Public(
        {
            "instruction": QUESTION,
            "generations": [BAD, GOOD],
            "ratings": [1, 5],
            "rationales": ["It is wrong.", "It is right."],
            "model_name": "m",
            "distilabel_metadata": {"raw": "Rating: 1 and 5"},
        },
        TEXT,
        strength=4,
        unused=("rationales", "distilabel_metadata"),
    ),
    "distilabel, FormatTextGenerationDPO": Public(
        {
            "instruction": QUESTION,
            "generations": [GOOD, BAD],
            "ratings": [5, 1],
            "prompt": QUESTION,
            "prompt_id": "77aa",
            "chosen": WHOLE_GOOD,
            "chosen_model": "m",
            "chosen_rating": 5,
            "rejected": WHOLE_BAD,
            "rejected_model": "n",
            "rejected_rating": 1,
        },
        CHAT,
        strength=4,
        unused=("instruction", "generations"),
    ),
    "Anthropic/hh-rlhf": Public(
        {
            "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}",
            "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {BAD}",
        },
        CHAT,
    ),
    "Dahoas/full-hh-rlhf": Public(
        {
            "prompt": f"\n\nHuman: {QUESTION}\n\nAssistant:",
            "response": f" {GOOD}",
            "chosen": f" {GOOD}",
            "rejected": f" {BAD}",
        },
        CHAT,
        unused=("response",),
    ),
    "trl-lib/ultrafeedback_binarized": Public(
        {"chosen": WHOLE_GOOD, "rejected": WHOLE_BAD, "score_chosen": 8.0, "score_rejected": 3.0}, CHAT, strength=5
    ),
    "HuggingFaceH4/orca_dpo_pairs": Public(
        {
            "system": SYSTEM,
            "question": QUESTION,
            "chosen": [system(SYSTEM), *WHOLE_GOOD],
            "rejected": [system(SYSTEM), *WHOLE_BAD],
        },
        WITH_SYSTEM,
        unused=("question",),
    ),
    "jondurbin/truthy-dpo-v0.1": Public(
        {"id": "a", "source": "truthy", "system": SYSTEM, "prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
        WITH_SYSTEM,
    ),
    "mlabonne/orpo-dpo-mix-40k": Public(
        {"source": "x", "chosen": WHOLE_GOOD, "rejected": WHOLE_BAD, "prompt": QUESTION, "question": QUESTION},
        CHAT,
        unused=("question",),
    ),
    "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset": Public(
        {
            "prompt_id": "p",
            "prompt": QUESTION,
            "chosen": WHOLE_GOOD,
            "rejected": WHOLE_BAD,
            "all_generated_responses": [GOOD, BAD],
            "all_rm_scores": [0.3, 0.1],
        },
        CHAT,
        unused=("all_generated_responses",),
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": Public(
        {"id": "i", "source": "s", "prompt": QUESTION, "chosen": WHOLE_GOOD, "rejected": WHOLE_BAD}, CHAT
    ),
    "openbmb/UltraInteract_pair": Public(
        {
            "task": "Coding",
            "dataset": "d",
            "trajectory": [{"from": "user", "value": QUESTION}],
            "chosen": GOOD,
            "rejected": BAD,
            "id": "0",
            "parent_id": "1",
        },
        CHAT,
        unused=("task",),
    ),
    "xinlai/Math-Step-DPO-10K": Public(
        {
            "dataset": "d",
            "prompt": QUESTION,
            "prompt_template": "Below is an instruction.",
            "initial_reason_steps": "Step 1: Lima is in Peru.",
            "chosen": GOOD,
            "rejected": BAD,
            "full_chosen": f"Step 1: Lima is in Peru. {GOOD}",
            "full_rejected": f"Step 1: Lima is in Peru. {BAD}",
            "answer": "Rimac",
        },
        TEXT,
        unused=("prompt_template", "initial_reason_steps", "full_chosen", "full_rejected"),
    ),
    "sumuks/lmarena": Public(
        {
            "id": "1",
            "prompt": QUESTION,
            "chosen": GOOD,
            "rejected": BAD,
            "context": [user("Hello?"), assistant("Good day.")],
            "source": "lmarena",
        },
        TEXT,
        unused=("context",),
    ),
    "lvwerra/stack-exchange-paired": Public(
        {
            "qid": 1,
            "question": QUESTION,
            "date": "2020-01-01",
            "metadata": ["https://example.org/1"],
            "response_j": GOOD,
            "response_k": BAD,
        },
        TEXT,
    ),
    "Magpie-Align/Magpie-Llama-3.1-Pro-DPO-100K": Public(
        {"uuid": "u", "instruction": QUESTION, "chosen": WHOLE_GOOD, "rejected": WHOLE_BAD}, CHAT
    ),
    "berkeley-nest/Nectar": Public(
        {
            "prompt": f"\n\nHuman: {QUESTION}\n\nAssistant: ",
            "answers": [{"answer": BAD, "model": "m", "rank": 2.0}, {"answer": GOOD, "model": "n", "rank": 1.0}],
            "turns": 1,
            "num_responses": 2,
            "source": ["x"],
            "good_natured": True,
        },
        CHAT,
        strength=1,
    ),
    "nvidia/HelpSteer2": Public(
        {"prompt": QUESTION, "response": BAD, "helpfulness": 0, "correctness": 0, "coherence": 4},
        TEXT,
        strength=4,
        more=({"prompt": QUESTION, "response": GOOD, "helpfulness": 4, "correctness": 4, "coherence": 4},),
    ),
    "nvidia/HelpSteer2 (several turns)": Public(
        {
            "prompt": f"Hello?\n<extra_id_1>Assistant\nGood day.\n<extra_id_1>User\n{QUESTION}",
            "response": BAD,
            "helpfulness": 0,
        },
        ([user("Hello?"), assistant("Good day."), user(QUESTION)], [assistant(GOOD)], [assistant(BAD)]),
        strength=4,
        more=(
            {
                "prompt": f"Hello?\n<extra_id_1>Assistant\nGood day.\n<extra_id_1>User\n{QUESTION}",
                "response": GOOD,
                "helpfulness": 4,
            },
        ),
    ),
    "lmarena-ai/arena-expert-5k": Public(
        {
            "id": "i",
            "model_a": "m",
            "model_b": "n",
            "winner": "model_a",
            "conversation_a": json.dumps([parts("user", QUESTION), parts("assistant", GOOD)]),
            "conversation_b": json.dumps([parts("user", QUESTION), parts("assistant", BAD)]),
            "evaluation_order": 1,
            "language": "en",
        },
        CHAT,
    ),
    "ScalerLab/JudgeBench": Public(
        {
            "pair_id": "p",
            "original_id": "o",
            "source": "s",
            "question": QUESTION,
            "response_model": "m",
            "response_A": BAD,
            "response_B": GOOD,
            "label": "B>A",
        },
        TEXT,
    ),
    "allenai/reward-bench": Public(
        {
            "prompt": QUESTION,
            "chosen": GOOD,
            "chosen_model": "m",
            "rejected": BAD,
            "rejected_model": "n",
            "subset": "x",
            "id": 3,
        },
        TEXT,
    ),
    "WeOpenML/PandaLM (human labels, as LLMBar has them)": Public(
        {"input": QUESTION, "output_1": GOOD, "output_2": BAD, "label": 1}, TEXT
    ),
}
