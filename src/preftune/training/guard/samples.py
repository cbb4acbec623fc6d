"""The guard's prompts, and the answers of reference and policy to them.

The reference's answers are drawn once, while the policy still is the reference, so that full fine-tuning needs no
second model. Two kinds are drawn. Greedy answers are for reading and for comparison. Short answers sampled at
temperature 1 measure the distance: the mean over their tokens of the log-probability under the reference minus that
under the policy estimates KL(reference || policy) per token. (The other direction would need new samples of the policy
and a reference in memory. This direction is blind to text that only the policy produces, and grows without bound when
the policy makes the reference's tokens improbable, as it does in a collapse.)
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
    """One prompt of the guard."""

    id: str
    text: Text
    template: Mapping[str, Any] = {}
    ids: Sequence[int] | None = None
    """Token ids of a prompt from tokenised rows; `text` is then only for display."""

    @property
    def asked(self) -> Text | list[int]:
        """The input of the generation: the token ids if there are any, else the text."""
        return self.text if self.ids is None else list(self.ids)


@dataclass
class ReferenceAnswers:
    """The reference's answers from before the first step. They are written to disk for a resumed run."""

    prompts: list[Prompt]
    tokens: int
    """Most tokens of a greedy answer."""
    pairs: int
    """Held-out pairs that a look scores."""
    greedy: list[Completion] = field(default_factory=list)
    distance: list[TokenizedGroup] = field(default_factory=list)
    """Groups of a prompt and its sampled answer, without pairs."""

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
        """The answers in a run directory; None if the file does not exist or cannot be read."""
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
    """A dataset, opened by `load` so that its prompts can be read without opening it a second time; for a mapping, each
    of its datasets. Tokenised groups and streams are returned unchanged.

    Args:
        load: opens the rows of the trainer's kind: pairs, or answers with labels.
    """
    if isinstance(source, Mapping):
        return {name: opened(part, load) for name, part in source.items()}
    if source is None or isinstance(source, GroupDataset) or is_stream(source):
        return source
    return load(source)


def prompts_of(source: Any, count: int, tokenizer: Any) -> list[Prompt]:
    """Distinct prompts spread evenly over one dataset or several. Rows without a prompt are skipped.

    Args:
        source: as `opened` returns it. The prompts of tokenised groups are decoded from their tokens.
        count: most prompts.
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
    """The turns before the last answer of a conversation; empty for a plain text, which has no prompt."""
    turns = [] if isinstance(whole, str) else list(whole)
    while turns and turns[-1].get("role") == "assistant":
        turns.pop()
    return turns


def prompts_from_file(path: str) -> list[Prompt]:
    """The prompts of a file, one per line: plain text, or JSON with `prompt` (text or messages) and an optional `id`.

    Raises:
        ConfigError: the file cannot be read, holds no prompt, or has a line of JSON without a prompt.
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
    """The prompts, with plain text as the message of a user if the training data are conversations.

    Args:
        chat: whether they are.
    """
    if not chat or not getattr(tokenizer, "chat_template", None):
        return list(prompts)
    return [p._replace(text=[{"role": "user", "content": p.text}]) if isinstance(p.asked, str) else p for p in prompts]


def _spread(length: int, count: int) -> list[int]:
    return sorted({index * length // min(count, length) for index in range(min(count, length))})


# --- answers ---


def answers_now(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, tokens: int, autocast: torch.dtype | None, **drawn: Any
) -> list[Completion]:
    """The model's answers: greedy, unless `drawn` has other options of `generate`."""
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
    """Answers sampled from the model at temperature 1, without top-p or top-k, with their prompts, as token ids.

    The answer's text is tokenised again, and its end token is added if it ended. These ids rarely differ from the ids
    that the model drew. Empty answers are left out.
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
    """The look with the figures of the answers of policy and reference; unchanged without answers."""
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
