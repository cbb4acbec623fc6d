"""What a look looks at: answers to a few prompts, the reference's from before the first step, and held-out pairs.

The reference's answers are drawn once, while the policy still is the reference; so full fine-tuning needs no second
model either. Two kinds are drawn. Greedy ones are what people read and what is compared. Short ones sampled at
temperature 1 measure the distance: the mean over their tokens of log-probability under the reference minus under the
policy estimates KL(reference || policy) per token. (The other direction would need new samples of the policy and the
reference at hand; this one does not see what the policy invents, and grows without bound when the policy no longer
finds the reference's words likely, which is what a collapse looks like.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.data import GroupDataset
from preftune.errors import ConfigError
from preftune.generation.encode_prompts import encode_prompts
from preftune.generation.generate import Completion, generate
from preftune.storage.run_directory import write_json
from preftune.text_quality.single_answer import look_at, self_similarity
from preftune.training.guard.figures import Look
from preftune.training.setup.streams import is_stream
from preftune.types import Text, TokenizedGroup

if TYPE_CHECKING:
    import torch

REFERENCE_FILE = "guard_reference.json"


class Prompt(NamedTuple):
    """One question of the guard."""

    id: str
    text: Text
    template: Mapping[str, Any] = {}
    ids: Sequence[int] | None = None
    """Its token ids, where it comes from tokenised rows; `text` is then for people."""

    @property
    def asked(self) -> Text | list[int]:
        """What is generated from."""
        return self.text if self.ids is None else list(self.ids)


@dataclass
class ReferenceAnswers:
    """What the reference said before the first step. Kept on disk, for a run that is resumed."""

    prompts: list[Prompt]
    tokens: int
    """Longest greedy answer."""
    pairs: int
    """Held-out pairs that a look scores."""
    greedy: list[Completion] = field(default_factory=list)
    distance: list[TokenizedGroup] = field(default_factory=list)
    """Prompts with the sampled answers, as token ids; no pairs."""

    def save(self, folder: Path) -> None:
        content = asdict(self)
        content["prompts"] = [prompt._asdict() for prompt in self.prompts]
        content["greedy"] = [answer._asdict() for answer in self.greedy]
        content["distance"] = [
            {"id": g.id, "prompt": list(g.prompt_ids), "answer": list(g.completions[0])} for g in self.distance
        ]
        write_json(folder / REFERENCE_FILE, content)

    @classmethod
    def load(cls, folder: Path) -> ReferenceAnswers | None:
        """None without any, or with unreadable ones."""
        try:
            content = json.loads((folder / REFERENCE_FILE).read_text(encoding="utf-8"))
            return cls(
                prompts=[Prompt(**entry) for entry in content["prompts"]],
                tokens=content["tokens"],
                pairs=content["pairs"],
                greedy=[Completion(**entry) for entry in content["greedy"]],
                distance=[
                    TokenizedGroup(entry["prompt"], (entry["answer"],), (), id=entry["id"])
                    for entry in content["distance"]
                ],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


# --- which prompts ---


def opened(source: Any, load: Callable[[Any], Any]) -> Any:
    """A dataset with its rows opened, so that its prompts can be read without opening it a second time.

    Args:
        load: opens the rows that the trainer takes, pairs or answers with labels.
    """
    if isinstance(source, Mapping):
        return {name: opened(part, load) for name, part in source.items()}
    if source is None or isinstance(source, GroupDataset) or is_stream(source):
        return source
    return load(source)


def prompts_of(source: Any, count: int, tokenizer: Any) -> list[Prompt]:
    """Distinct prompts spread evenly over a dataset, or over several; rows without a prompt are passed over.

    Args:
        source: as `opened` gives it; of tokenised groups the prompts are read back from their tokens.
    """
    if isinstance(source, Mapping):
        each = [prompts_of(part, count, tokenizer) for part in source.values()]
        turns = [entry for row in range(count) for part in each for entry in part[row : row + 1]]
        return turns[:count]
    found: dict[str, Prompt] = {}
    for number in _spread(len(source), 4 * count):
        prompt = _prompt(source[number], number, tokenizer)
        if prompt.text == []:
            continue
        found.setdefault(json.dumps(prompt.text, sort_keys=True, default=str), prompt)
    distinct = list(found.values())
    return [distinct[index] for index in _spread(len(distinct), count)]


def _prompt(row: Any, number: int, tokenizer: Any) -> Prompt:
    if isinstance(row, TokenizedGroup):
        ids = list(row.prompt_ids)
        return Prompt(row.id or str(number), str(tokenizer.decode(ids)), ids=ids)
    template = dict(row.chat_template_kwargs)
    if row.tools:
        template["tools"] = list(row.tools)
    prompt = _question_of(row.completions[0]) if row.prompt is None else row.prompt
    return Prompt(row.id or str(number), prompt, template)


def _question_of(whole: Text) -> Text:
    """What the last answer of a conversation answers; empty for a plain text, which is all answer."""
    turns = [] if isinstance(whole, str) else list(whole)
    while turns and turns[-1].get("role") == "assistant":
        turns.pop()
    return turns


def prompts_from_file(path: str) -> list[Prompt]:
    """One prompt a line: plain text, or JSON lines with `prompt` (text or messages) and perhaps `id`.

    Raises:
        ConfigError: the file is not there, or holds no prompt.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"guard_prompts={path!r} cannot be read ({getattr(error, 'strerror', None) or error}). Name a file with "
            "one prompt per line, or give a number of prompts to take from the held-out rows."
        ) from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompts.append(_from_line(line, number, path))
    if not prompts:
        raise ConfigError(
            f"guard_prompts={path!r} holds no prompt. Write one on each line, or leave guard_prompts out."
        )
    return prompts


def _from_line(line: str, number: int, path: str) -> Prompt:
    if not line.lstrip().startswith("{"):
        return Prompt(str(number), line.strip())
    try:
        entry = json.loads(line)
    except ValueError:
        entry = {}
    prompt = entry.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        raise ConfigError(
            f"guard_prompts={path!r}, line {number}: no 'prompt' in this JSON. Give every line a 'prompt', text or "
            "messages, or write plain text."
        )
    return Prompt(str(entry.get("id", number)), prompt)


def as_the_model_is_asked(prompts: Sequence[Prompt], tokenizer: Any, *, chat: bool) -> list[Prompt]:
    """Plain prompts as messages, where the training data are conversations."""
    if not chat or not getattr(tokenizer, "chat_template", None):
        return list(prompts)
    return [p._replace(text=[{"role": "user", "content": p.text}]) if isinstance(p.asked, str) else p for p in prompts]


def _spread(length: int, count: int) -> list[int]:
    return sorted({index * length // min(count, length) for index in range(min(count, length))})


# --- answers ---


def answers_now(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, tokens: int, autocast: torch.dtype | None, **drawn: Any
) -> list[Completion]:
    """What the model says now, greedily unless options of `generate` say otherwise. No random state is touched."""
    return generate(
        model,
        tokenizer,
        [prompt.asked for prompt in prompts],
        max_new_tokens=tokens,
        batch_size=max(1, len(prompts)),
        chat_template_kwargs=[dict(prompt.template) for prompt in prompts],
        autocast=autocast,
        **drawn,
    )


def sampled_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, tokens: int, autocast: torch.dtype | None
) -> list[TokenizedGroup]:
    """Answers drawn from the model as it is, temperature 1 and nothing cut off, with their prompts, as token ids.

    The ids are those of the answer's text (and its end), tokenised again: rarely others than the model drew.
    """
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    drawn |= {"seeds": range(len(prompts)), "thoughts_apart": False}
    answers = answers_now(model, tokenizer, prompts, tokens=tokens, autocast=autocast, **drawn)
    prompt_ids = encode_prompts(tokenizer, [p.asked for p in prompts], [dict(p.template) for p in prompts])
    groups = []
    for prompt, begun, answer in zip(prompts, prompt_ids, answers, strict=True):
        ids = list(tokenizer(answer.text, add_special_tokens=False)["input_ids"])
        if answer.finished and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if ids:
            groups.append(TokenizedGroup(begun, (ids,), (), id=prompt.id))
    return groups


def text_figures(look: Look, reference: Sequence[Completion], policy: Sequence[Completion]) -> Look:
    """The look with what the answers show."""
    if not policy:
        return look
    ours, theirs = _of_side(policy), _of_side(reference)
    both = ours | {f"{name}_reference": value for name, value in theirs.items()}
    ratio = sum(answer.tokens for answer in policy) / max(1, sum(answer.tokens for answer in reference))
    return look._replace(answers=len(policy), length_ratio=ratio, **both)


def _of_side(answers: Sequence[Completion]) -> dict[str, Any]:
    figures = [look_at(answer.text, finished=answer.finished) for answer in answers]

    def mean(values: Iterable[float | None]) -> float:
        return sum(value or 0 for value in values) / len(answers)

    return {
        "repeated": mean(one.repeated for one in figures),
        "looping": mean(one.repeats for one in figures),
        "distinct_2": mean(one.distinct_2 for one in figures),
        "tokens": mean(answer.tokens for answer in answers),
        "finished": mean(answer.finished for answer in answers),
        "self_similarity": self_similarity([answer.text for answer in answers]),
        "empty": mean(one.empty for one in figures),
        "refusals": mean(one.refusal for one in figures),
    }


def sample_lines(
    step: int, time: float, prompts: Sequence[Prompt], reference: Sequence[Completion], policy: Sequence[Completion]
) -> list[dict[str, Any]]:
    """Lines of samples.jsonl."""
    return [
        {
            "step": step,
            "time": time,
            "id": prompt.id,
            "prompt": prompt.text,
            "reference": before.text,
            "policy": now.text,
            "reference_tokens": before.tokens,
            "policy_tokens": now.tokens,
            "reference_finished": before.finished,
            "policy_finished": now.finished,
        }
        for prompt, before, now in zip(prompts, reference, policy, strict=True)
    ]
