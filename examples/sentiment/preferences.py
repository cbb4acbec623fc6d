"""Preferences: completions of the reference, compared by the gold reward.

As in the paper (appendix C.1): four completions of a prompt, all six pairs among them, the one with the larger gold
reward chosen. The labels are not drawn: there is no noise in them. Pairs of equal reward are left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gold import Floats
from sampling import sample

from preftune.data import GroupDataset
from preftune.errors import DatasetError
from preftune.storage.atomic import write_whole
from preftune.types import Preference, TokenizedGroup

Reward = Callable[[Sequence[str]], Floats]


class Preferences(NamedTuple):
    """Groups to train on, and what is known about them."""

    groups: GroupDataset
    facts: dict[str, float]


def prompts_of(texts: Sequence[str], tokenizer: Any, count: int, lengths: tuple[int, int], *, seed: int) -> list[Any]:
    """The first tokens of sentences, each once: lists of token ids, the token that begins a sentence in front.

    Only prefixes whose text has these tokens again: DPO is given tokens and PPO text, and both mean the same.

    Args:
        lengths: fewest and most tokens of a prefix; drawn evenly. Always less than the sentence has.
    Raises: DatasetError, when there are not so many.
    """
    draw = np.random.default_rng(seed)
    seen: dict[tuple[int, ...], None] = {}
    for index in draw.permutation(len(texts)):
        ids = tokenizer(texts[index], add_special_tokens=False)["input_ids"]
        length = int(draw.integers(lengths[0], lengths[1] + 1))
        prompt = (tokenizer.bos_token_id, *ids[:length])
        if len(ids) > length and tokenizer(prompt_text(tokenizer, prompt))["input_ids"] == list(prompt):
            seen.setdefault(prompt)
        if len(seen) == count:
            break
    if len(seen) < count:
        raise DatasetError(
            f"{len(texts)} sentences give {len(seen)} prompts, and {count} are needed. Lower the number."
        )
    return [list(prompt) for prompt in seen]


def prompt_text(tokenizer: Any, prompt: Sequence[int]) -> str:
    return str(tokenizer.decode(prompt, skip_special_tokens=True))


def texts_of(tokenizer: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[str]:
    """Prompt and completion as one text, which is what the rewards read."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    return list(tokenizer.batch_decode(rows, skip_special_tokens=True))


def make_preferences(
    file: Path, reference: Any, tokenizer: Any, reward: Reward, prompts: Sequence[Sequence[int]], *,
    completions: int, new_tokens: int, seed: int,
) -> Preferences:  # fmt: skip
    """Preferences of one seed, written to `file`, or read from it if it is there.

    Args:
        reward: the gold reward.
        completions: of each prompt.
    """
    if not file.exists():
        repeated = [prompt for prompt in prompts for _ in range(completions)]
        sampled = sample(reference, repeated, new_tokens=new_tokens, seed=10_000 + seed)
        scores = reward(texts_of(tokenizer, repeated, sampled))
        record = {"prompts": list(prompts), "completions": sampled, "rewards": [round(float(s), 6) for s in scores]}
        write_whole(file, json.dumps(record).encode())
    record = json.loads(file.read_text(encoding="utf-8"))
    groups, pairs, equal = [], 0, 0
    scores = np.array(record["rewards"]).reshape(-1, completions)
    for index, prompt in enumerate(record["prompts"]):
        rows = record["completions"][index * completions : (index + 1) * completions]
        group = _group(f"prompt {index}", prompt, rows, scores[index].tolist())
        pairs, equal = pairs + len(group.pairs), equal + completions * (completions - 1) // 2 - len(group.pairs)
        if group.pairs:
            groups.append(group)
    facts = {
        "prompts": len(groups),
        "pairs": pairs,
        "pairs_left_out_as_equal": equal,
        "reward_mean": round(float(scores.mean()), 4),
        "reward_deviation": round(float(scores.std()), 4),
        "reward_deviation_within_a_prompt": round(float(np.sqrt(scores.var(axis=1, ddof=1).mean())), 4),
    }
    return Preferences(GroupDataset.from_groups(groups), facts)


def _group(
    name: str, prompt: Sequence[int], completions: Sequence[Sequence[int]], rewards: Sequence[float]
) -> TokenizedGroup:
    """One prompt, its distinct completions, and a pair for every two of unequal reward."""
    reward_of = {tuple(completion): reward for completion, reward in zip(completions, rewards, strict=True)}
    distinct = list(reward_of)
    pairs = []
    for one, other in combinations(range(len(distinct)), 2):
        difference = reward_of[distinct[one]] - reward_of[distinct[other]]
        if difference:
            pairs.append(Preference(one, other) if difference > 0 else Preference(other, one))
    used = sorted({side for pair in pairs for side in (pair.chosen, pair.rejected)})
    place = {completion: index for index, completion in enumerate(used)}
    return TokenizedGroup(
        tuple(prompt),
        tuple(distinct[index] for index in used),
        tuple(pair._replace(chosen=place[pair.chosen], rejected=place[pair.rejected]) for pair in pairs),
        id=name,
    )
